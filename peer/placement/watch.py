"""This peer's view of its swarm: reads records, pings peers that are overdue, and measures its own coordinate."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...proto.directory.records import PeerRecord, open_peer_record
from ...proto.directory.signed import SignedRecord
from ...proto.directory.swarm_key import SwarmKey
from ...proto.errors import DeadlineExceeded, PeerUnavailable, SwarmError
from ...proto.network.address import network_of, reaches_of
from ...proto.network.transport import Dialer, ping
from ...routing.swarm import PeerId, PeerSpec, Swarm
from ...routing.trust import Trust, disputed, weigh
from ..timing import PeerTiming
from .coordinates import PINGS_A_REFRESH, PINGS_AT_START, OwnCoordinate
from .knowledge import SwarmKnowledge
from .weights import WeightsCheck

logger = logging.getLogger(__name__)

MAX_OVERDUE_A_LOOK = 32
"""Overdue peers that are pinged after one look, chosen at random; anybody can announce invented ones."""
MAX_DISPUTED_A_LOOK = 32
"""Peers that contradict others about a block and are pinged after one look, to learn in which network they are."""
MAX_PINGS_AT_ONCE = 16
OWN_NETWORK = "here"


class SwarmWatch:
    """Looks at the swarm on request."""

    def __init__(
        self,
        own: PeerId,
        num_blocks: int,
        records: Callable[[], Awaitable[Sequence[SignedRecord]]],
        swarm_key: SwarmKey | None,
        dialer: Dialer,
        clock: Callable[[], float],
        rng: random.Random,
        timing: PeerTiming,
        isolated: Callable[[], bool] = lambda: False,
        proven: Mapping[int, bytes] | None = None,
        aside: Callable[..., Awaitable[Any]] = asyncio.to_thread,
        age_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`records` looks them up and raises SwarmError; `clock` gives Unix seconds.

        `isolated`: whether no other node answers, so that the records are only those that this node stores. `proven`:
        the hashes of blocks that this machine's own files prove. `aside` calls a function off the event loop.
        `age_seconds`: the age of the records, if many are read at a limited pace; it does not count against peers.
        """
        self.knowledge = SwarmKnowledge(own, num_blocks, timing.claims)
        self.coordinate = OwnCoordinate(self._ping, rng, time.monotonic)
        self._records = records
        self._swarm_key = swarm_key
        self._dialer = dialer
        self._clock = clock
        self._rng = rng
        self._timing = timing
        self._isolated = isolated
        self._age_seconds = age_seconds
        self._proven = proven or {}
        self._aside = aside
        self._weights = WeightsCheck(self._proven)
        self._networks: dict[PeerId, str] = {}
        """The network in which each peer was reached."""

    async def look(self, own: Sequence[PeerSpec] = ()) -> None:
        """Read the records, and find out which peers are gone.

        `own`: this peer, if it announces hashes that others may contradict.

        Raises SwarmError if nothing can be read, or PeerUnavailable once this peer is cut off: it sees nobody, and must
        not plan as if the others were gone.
        """
        found = await self._records()
        if self._isolated() and self.knowledge.records:
            raise PeerUnavailable("no other node of the DHT answers")
        opened: list[PeerRecord] = await self._aside(self._opened, found)
        self.knowledge.read(opened, self._clock())
        overdue = self.knowledge.overdue(self._clock() - self._age_seconds())
        asked = self._some(overdue, MAX_OVERDUE_A_LOOK)
        limit = asyncio.Semaphore(MAX_PINGS_AT_ONCE)
        await asyncio.gather(*(self._examine(limit, record) for record in asked))
        await asyncio.gather(*(self._locate(limit, record) for record in self._to_locate(own)))
        first = self.coordinate.value is None
        await self.coordinate.measure(self.knowledge.records, PINGS_AT_START if first else PINGS_A_REFRESH)

    async def snapshot(self, own: Callable[[], PeerSpec]) -> Swarm:
        """Look, then return the swarm; `own` is called for this peer's present spec. Raises SwarmError.

        Peers whose weights are not believed are left out: clients do not use them, so they count as hosting nothing.
        """
        await self.look([own()])
        mine = own()
        snapshot = self.knowledge.snapshot(mine, self._clock())
        self._weights.note(mine, snapshot.peers)
        networks = {**self._networks, mine.id: OWN_NETWORK}
        trust: Trust = await self._aside(weigh, snapshot.peers, networks, self._proven)
        peers = tuple(peer for peer in snapshot.peers if peer.id == mine.id or peer.id not in trust.doubted)
        return replace(snapshot, peers=peers)

    def _opened(self, records: Sequence[SignedRecord]) -> list[PeerRecord]:
        """Open the records, dropping invalid ones. Called in a thread: a thousand take a tenth of a second."""
        opened = []
        for record in records:
            try:
                opened.append(open_peer_record(record, self._swarm_key))
            except SwarmError as error:
                logger.debug("a record is ignored: %s", error)
        return opened

    def _some(self, records: Sequence[PeerRecord], most: int) -> Sequence[PeerRecord]:
        return self._rng.sample(records, min(most, len(records)))

    def _to_locate(self, own: Sequence[PeerSpec]) -> Sequence[PeerRecord]:
        """Some of the peers that contradict others and have not been reached yet."""
        records = {record.spec.id: record for record in self.knowledge.records}
        self._networks = {peer: network for peer, network in self._networks.items() if peer in records}
        contradict = disputed([*own, *(record.spec for record in records.values())])
        unknown = sorted((contradict & records.keys()) - self._networks.keys())
        return self._some([records[peer] for peer in unknown], MAX_DISPUTED_A_LOOK)

    async def _locate(self, limit: asyncio.Semaphore, record: PeerRecord) -> None:
        async with limit:
            with suppress(SwarmError):  # it stays one of the unreached, which count as one network
                self.coordinate.note(record.spec.id, await self._ping(record))

    async def _examine(self, limit: asyncio.Semaphore, record: PeerRecord) -> None:
        if not record.addresses and not record.relays:
            return  # it joins and listens nowhere yet
        async with limit:
            try:
                self.coordinate.note(record.spec.id, await self._ping(record))
            except SwarmError as error:
                logger.info(
                    "no answer from peer %s, whose record is overdue: it is planned without (%s)", record.spec.id, error
                )
                self.knowledge.gone(record.spec.id)

    async def _ping(self, record: PeerRecord) -> float:
        """The round trip to a peer. Raises SwarmError if it answers nowhere.

        Uses connections of its own: those for sessions are few, and a peer that is only looked at must not displace
        any.  The second answer is timed, because the first one waits for the connection.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timing.overdue_ping_seconds
        error: SwarmError = PeerUnavailable(f"peer {record.spec.id} has no address")
        reaches = reaches_of(record)
        for number, address in enumerate(reaches):
            left = (deadline - loop.time()) / (len(reaches) - number)
            try:
                async with asyncio.timeout(left), self._dialer.dialed_once(address) as stub:
                    await ping(stub, address, left)
                    _, seconds, _ = await ping(stub, address, left)
                    self._networks[record.spec.id] = network_of(address.target)
                    return seconds
            except TimeoutError:
                error = DeadlineExceeded(f"{address} does not answer")
            except SwarmError as failed:
                error = failed
        raise error
