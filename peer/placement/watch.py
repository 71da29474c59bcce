"""This peer's eyes on its swarm: reads records, pings peers that are overdue, and measures the own coordinate."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ...proto.directory.records import PeerRecord, open_peer_record
from ...proto.directory.signed import SignedRecord
from ...proto.directory.swarm_key import SwarmKey
from ...proto.errors import PeerUnavailable, SwarmError
from ...proto.network.address import reaches_of
from ...proto.network.transport import Dialer, ping
from ...routing.swarm import PeerId, PeerSpec, Swarm
from ..timing import PeerTiming
from .coordinates import PINGS_A_REFRESH, PINGS_AT_START, OwnCoordinate
from .knowledge import SwarmKnowledge
from .weights import WeightsCheck

logger = logging.getLogger(__name__)

MAX_PINGS_AT_ONCE = 16


class SwarmWatch:
    """Looks at the swarm when it is asked to."""

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
    ) -> None:
        """`records` looks them up and raises SwarmError; `clock` gives Unix seconds.

        `isolated`: whether no other node answers, so that the records are those that this one has itself. `proven`: the
        hashes of blocks that this machine's own files prove.
        """
        self.knowledge = SwarmKnowledge(own, num_blocks, timing.claims)
        self.coordinate = OwnCoordinate(self._ping, rng)
        self._records = records
        self._swarm_key = swarm_key
        self._dialer = dialer
        self._clock = clock
        self._timing = timing
        self._isolated = isolated
        self._weights = WeightsCheck(proven or {})

    async def look(self) -> None:
        """Read the records, and find out which peers are gone. Raises SwarmError if nothing can be read.

        A peer that is cut off sees nobody: it must not plan as if the others were gone.
        """
        found = await self._records()
        if self._isolated() and self.knowledge.records:
            raise PeerUnavailable("no other node of the DHT answers")
        opened = []
        for record in found:
            try:
                opened.append(open_peer_record(record, self._swarm_key))
            except SwarmError as error:
                logger.debug("a record is ignored: %s", error)
        self.knowledge.read(opened, self._clock())
        limit = asyncio.Semaphore(MAX_PINGS_AT_ONCE)
        await asyncio.gather(*(self._examine(limit, record) for record in self.knowledge.overdue(self._clock())))
        first = self.coordinate.value is None
        await self.coordinate.measure(self.knowledge.records, PINGS_AT_START if first else PINGS_A_REFRESH)

    async def snapshot(self, own: Callable[[], PeerSpec]) -> Swarm:
        """The swarm after a look; `own` tells this peer as it is then. Raises SwarmError."""
        await self.look()
        mine = own()
        snapshot = self.knowledge.snapshot(mine, self._clock())
        self._weights.note(mine, snapshot.peers)
        return snapshot

    async def _examine(self, limit: asyncio.Semaphore, record: PeerRecord) -> None:
        if not record.addresses and not record.relays:
            return  # it joins and listens nowhere yet
        async with limit:
            try:
                await self._ping(record)
            except SwarmError as error:
                logger.info(
                    "no answer from peer %s, whose record is overdue: it is planned without (%s)", record.spec.id, error
                )
                self.knowledge.gone(record.spec.id)

    async def _ping(self, record: PeerRecord) -> float:
        """The round trip to a peer. Raises SwarmError if it answers nowhere."""
        error: SwarmError = PeerUnavailable(f"peer {record.spec.id} has no address")
        for address in reaches_of(record):
            try:
                _, seconds, _ = await ping(self._dialer.stub(address), address, self._timing.overdue_ping_seconds)
                return seconds
            except SwarmError as failed:
                error = failed
        raise error
