"""The coordinates that recent clients state; the record announces only their centroids."""

from __future__ import annotations

from ...routing.coordinates import centroids, is_plausible
from ...routing.swarm import Coordinate, PeerId

MAX_CLIENTS = 256
"""The most clients that are remembered: the latest."""


class ClientPlaces:
    """The last place of each client. Bounded; a client counts once, whatever the number of its sessions."""

    def __init__(self, memory_seconds: float) -> None:
        """`memory_seconds`: time for which a client counts after its last opening."""
        self._memory_seconds = memory_seconds
        self._seen: dict[PeerId, tuple[float, Coordinate]] = {}

    def note(self, client: PeerId, place: Coordinate, now_seconds: float) -> None:
        """Note the place of a client whose session was admitted; ignore an implausible one."""
        if not is_plausible(place):
            return
        self._seen.pop(client, None)
        self._seen[client] = now_seconds, place
        if len(self._seen) > MAX_CLIENTS:
            del self._seen[next(iter(self._seen))]

    def centroids(self, now_seconds: float) -> tuple[Coordinate, ...]:
        """Return at most four places that stand for all of them."""
        oldest = now_seconds - self._memory_seconds
        self._seen = {client: seen for client, seen in self._seen.items() if seen[0] > oldest}
        return centroids([place for _, place in self._seen.values()])
