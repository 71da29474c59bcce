"""Round trips between the peers of a snapshot: measured where known, else predicted from coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .perf import FloatArray
from .swarm import PeerId, PeerSpec, Swarm


class RttTable:
    """Round trips between peers as a matrix: measured where known, else predicted from coordinates.

    It can be called like any `peer_rtt_seconds`; the router reads the matrix at once instead of calling it per pair.
    """

    def __init__(self, swarm: Swarm, *, unknown_seconds: float = 0.3) -> None:
        self.ids = tuple(peer.id for peer in swarm.peers)
        self._row = {peer: row for row, peer in enumerate(self.ids)}
        self.seconds = _predicted_rtts(swarm.peers, unknown_seconds)
        for (a, b), rtt in swarm.rtt_seconds.items():
            if a in self._row and b in self._row:
                self.seconds[self._row[a], self._row[b]] = rtt
                if (b, a) not in swarm.rtt_seconds:
                    self.seconds[self._row[b], self._row[a]] = rtt
        np.fill_diagonal(self.seconds, 0.0)

    def __call__(self, a: PeerId, b: PeerId) -> float:
        return float(self.seconds[self._row[a], self._row[b]])

    def matrix(self, ids: Sequence[PeerId]) -> FloatArray:
        """(len(ids), len(ids)) round trips in seconds. Raises KeyError for a peer the snapshot did not have."""
        rows = np.array([self._row[peer] for peer in ids], dtype=np.int64)
        return self.seconds[np.ix_(rows, rows)]


def _predicted_rtts(peers: Sequence[PeerSpec], unknown_seconds: float) -> FloatArray:
    n = len(peers)
    seconds = np.full((n, n), unknown_seconds)
    dimensions = {len(peer.coordinate.vector) for peer in peers if peer.coordinate is not None}
    for size in dimensions:  # coordinates of different dimensions cannot be compared
        members = [
            j for j, peer in enumerate(peers) if peer.coordinate is not None and len(peer.coordinate.vector) == size
        ]
        vectors = np.array([peers[j].coordinate.vector for j in members])  # type: ignore[union-attr]
        heights = np.array([peers[j].coordinate.height for j in members])  # type: ignore[union-attr]
        squares = (vectors**2).sum(axis=1)
        squared = np.maximum(squares[:, None] + squares - 2 * vectors @ vectors.T, 0.0)
        seconds[np.ix_(members, members)] = np.sqrt(squared) + heights[:, None] + heights
    return seconds
