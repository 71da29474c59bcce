"""This peer's network coordinate, from its own pings to peers that announce theirs."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

from ...proto.directory.records import PeerRecord
from ...proto.errors import SwarmError
from ...routing.coordinates import MAX_RTT_SECONDS, ORIGIN, updated
from ...routing.swarm import Coordinate

PINGS_AT_START = 8
PINGS_A_REFRESH = 2


class OwnCoordinate:
    """Measured against a few random peers at a time; None until the first answer of a peer with a coordinate.

    The first peer of a swarm is where the others measure from: it calls the place where it is the origin.
    """

    def __init__(self, ping: Callable[[PeerRecord], Awaitable[float]], rng: random.Random) -> None:
        """`ping` gives the round trip to a peer in seconds and raises SwarmError if it does not answer."""
        self._ping = ping
        self._rng = rng
        self.value: Coordinate | None = None

    async def measure(self, peers: Sequence[PeerRecord], pings: int = PINGS_A_REFRESH) -> None:
        """Ping some of the peers, one after the other, and move towards what they tell."""
        known = [record for record in peers if record.spec.coordinate is not None and record.addresses]
        if not known and self.value is None:
            self.value = ORIGIN
        for record in self._rng.sample(known, min(pings, len(known))):
            try:
                seconds = await self._ping(record)
                theirs = record.spec.coordinate
                if theirs is not None and 0 < seconds <= MAX_RTT_SECONDS:
                    self.value = updated(self.value or ORIGIN, theirs, seconds, self._rng)
            except (SwarmError, ValueError):
                continue  # it does not answer, or announces a place outside the world
