"""This peer's network coordinate, from round trips to peers that announce theirs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from ...proto.directory.records import PeerRecord
from ...proto.errors import SwarmError
from ...routing.coordinates import ORIGIN, Samples, placed
from ...routing.swarm import Coordinate, PeerId

PINGS_AT_START = 8
PINGS_A_REFRESH = 2
"""One every ten seconds."""


class OwnCoordinate:
    """The coordinate that this peer announces; None until it has a round trip to a peer with a coordinate.

    The first peer of a swarm, from which the others measure, is at the origin.
    """

    def __init__(
        self,
        ping: Callable[[PeerRecord], Awaitable[float]],
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        """`ping` gives the round trip to a peer in seconds, and raises SwarmError if the peer does not answer.

        `clock` gives seconds from any start.
        """
        self._ping = ping
        self._rng = rng
        self._clock = clock
        self._samples = Samples()
        self.value: Coordinate | None = None

    def note(self, peer: PeerId, rtt_seconds: float) -> None:
        """Take a round trip that was measured elsewhere."""
        self._samples.add(peer, rtt_seconds, self._clock())

    async def measure(self, peers: Sequence[PeerRecord], pings: int = PINGS_A_REFRESH) -> None:
        """Ping some of the peers, chosen at random, at once; then move to where all round trips fit best."""
        places = {record.spec.id: record.spec.coordinate for record in peers}
        known = [record for record in peers if record.spec.coordinate is not None and record.addresses]
        asked = self._rng.sample(known, min(pings, len(known)))
        await asyncio.gather(*map(self._measure, asked))
        found = placed(self.value, self._samples.with_places(places, self._clock()), self._rng)
        if found is None and not known:
            found = ORIGIN
        self.value = found

    async def _measure(self, record: PeerRecord) -> None:
        with suppress(SwarmError):
            self.note(record.spec.id, await self._ping(record))
