"""Keeps a peer without an open port reachable: finds relays, holds a place at two of them, and proves that they work.

A place counts once the peer has reached itself through it: this also finds relays that grant a place but pass nothing
on.  The proof is repeated, and a relay that fails it is left alone for a while.  Nearer relays are preferred.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from ...proto.directory.records import MAX_RELAYS
from ...proto.errors import PeerUnavailable, SwarmError
from ...proto.network.address import HostPort, PeerAddress, RelayedAddress
from ...proto.network.transport import Dialer, ping
from ...proto.wire.messages.opening import Signed
from ...routing.swarm import PeerId
from ..tasks import cancel_all
from ..timing import PeerTiming
from .tunnel import Tunnel

logger = logging.getLogger(__name__)

MAX_PINGED = 8
"""Relays, drawn at random from all, of which the nearest is chosen."""
MAX_FAILED = 1024


@dataclass(eq=False)
class _Place:
    """A tunnel to one relay."""

    relay: PeerAddress
    rtt_seconds: float
    task: asyncio.Task[None] | None = None
    proven: bool = False
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the place is proven, or over."""


class RelayKeeper:
    """Keeps the relays through which this peer is reached."""

    def __init__(
        self,
        own: PeerId,
        offers: Callable[[], Awaitable[Sequence[PeerAddress]]],
        dialer: Dialer,
        introduce: Callable[[PeerId], Signed],
        on_change: Callable[[], None],
        clock: Callable[[], float],
        rng: random.Random,
        timing: PeerTiming,
    ) -> None:
        """`offers` looks up the peers that relay and have a place; it raises SwarmError.

        `introduce` signs a hello; `clock` gives monotonic seconds.
        """
        self.wanted = asyncio.Event()
        """Set while this peer needs relays."""
        self._own = own
        self._offers = offers
        self._dialer = dialer
        self._introduce = introduce
        self._on_change = on_change
        self._clock = clock
        self._rng = rng
        self._timing = timing
        self._places: dict[PeerId, _Place] = {}
        self._failed: dict[PeerId, float] = {}
        self._moved = asyncio.Event()

    @property
    def relays(self) -> tuple[PeerId, ...]:
        """The relays through which this peer is reached, nearest first."""
        return tuple(place.relay.peer for place in self._proven)

    @property
    def nearest(self) -> PeerAddress | None:
        """The address of the nearest relay."""
        return next((place.relay for place in self._proven), None)

    @property
    def rtt_seconds(self) -> float:
        """The round trip to the nearest relay; 0 without any."""
        return min((place.rtt_seconds for place in self._proven), default=0.0)

    @property
    def _proven(self) -> list[_Place]:
        return sorted((place for place in self._places.values() if place.proven), key=lambda place: place.rtt_seconds)

    async def run(self, local: HostPort) -> None:
        """Keep places as long as relays are wanted, until cancelled; this peer's own server is at `local`."""
        try:
            while True:
                await self.wanted.wait()
                self._moved.clear()
                if len(self._places) < MAX_RELAYS and await self._add(local):
                    continue
                try:
                    async with asyncio.timeout(self._timing.relay_retry_seconds):
                        await self._moved.wait()
                except TimeoutError:
                    continue
        finally:
            await cancel_all([place.task for place in self._places.values() if place.task is not None])

    def release(self) -> None:
        """Leave all relays; connections through them end."""
        for place in self._places.values():
            if place.task is not None:
                place.task.cancel()

    async def _add(self, local: HostPort) -> bool:
        """Take a place at the nearest relay that offers one; return whether it is proven."""
        chosen = await self._nearest()
        if chosen is None:
            return False
        relay, rtt_seconds = chosen
        place = self._places[relay.peer] = _Place(relay, rtt_seconds)
        place.task = asyncio.create_task(self._hold(place, local), name="hold a place at a relay")
        await place.decided.wait()
        return place.proven

    async def _nearest(self) -> tuple[PeerAddress, float] | None:
        now = self._clock()
        self._failed = {relay: until for relay, until in self._failed.items() if until > now}
        try:
            offered = await self._offers()
        except SwarmError as error:
            logger.debug("relays cannot be looked up: %s", error)
            return None
        left_out = {self._own, *self._places, *self._failed}
        candidates = [relay for relay in offered if relay.peer not in left_out]
        chosen = self._rng.sample(candidates, min(MAX_PINGED, len(candidates)))
        answers = await asyncio.gather(*map(self._rtt_to, chosen))
        answered = [(rtt, index) for index, rtt in enumerate(answers) if rtt is not None]
        if not answered:
            return None
        rtt_seconds, index = min(answered)
        return chosen[index], rtt_seconds

    async def _rtt_to(self, relay: PeerAddress) -> float | None:
        try:
            async with self._dialer.dialed_once(relay) as stub:
                await ping(stub, relay, self._timing.relay_answer_seconds)
                return (await ping(stub, relay, self._timing.relay_answer_seconds))[1]
        except SwarmError:
            self._note_failure(relay.peer)
            return None

    async def _hold(self, place: _Place, local: HostPort) -> None:
        """Hold a place at one relay until it fails."""
        reserved = asyncio.Event()
        tunnel = Tunnel(place.relay, local, self._dialer, self._introduce, self._timing)
        proving = asyncio.create_task(self._prove(place, reserved), name="prove a relay")
        holding = asyncio.create_task(tunnel.run(reserved.set), name="a tunnel to a relay")
        reason = "it was left"
        try:
            await asyncio.wait({proving, holding}, return_when=asyncio.FIRST_COMPLETED)
            for task in (proving, holding):
                if task.done():
                    task.result()
        except SwarmError as error:
            reason = str(error)
            self._note_failure(place.relay.peer)
        finally:
            await cancel_all([proving, holding])
            if place.proven:
                logger.warning("this peer is not reached through relay %s any more: %s", place.relay.peer, reason)
            else:
                logger.info("relay %s cannot be used: %s", place.relay.peer, reason)
            place.proven = False
            del self._places[place.relay.peer]
            place.decided.set()
            self._changed()

    async def _prove(self, place: _Place, reserved: asyncio.Event) -> None:
        """Reach this peer through the relay, at intervals. Raises PeerUnavailable when that fails twice in a row."""
        await reserved.wait()
        through = RelayedAddress(self._own, place.relay)
        while True:
            if not await self._reaches_itself(through) and not await self._reaches_itself(through):
                raise PeerUnavailable("it passes nothing on")
            if not place.proven:
                place.proven = True
                place.decided.set()
                logger.info("this peer is reached through relay %s", place.relay.peer)
                self._changed()
            await asyncio.sleep(self._timing.relay_proof_seconds)

    async def _reaches_itself(self, through: RelayedAddress) -> bool:
        try:
            async with self._dialer.dialed_once(through) as stub:
                await ping(stub, through, self._timing.relay_answer_seconds)
        except SwarmError as error:
            logger.debug("this peer is not reached %s: %s", through, error)
            return False
        return True

    def _note_failure(self, relay: PeerId) -> None:
        if len(self._failed) < MAX_FAILED:
            self._failed[relay] = self._clock() + self._timing.relay_shun_seconds

    def _changed(self) -> None:
        self._moved.set()
        self._on_change()
