"""Round trips between the peers of a snapshot: measured where known, else predicted from coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .perf import FloatArray
from .swarm import Coordinate, PeerId, Swarm


class RttTable:
    """Round trips between the peers of a snapshot, as a matrix of those that are asked for.

    Measured where the snapshot has a measurement, in either direction, else predicted from coordinates.  Where those
    cannot tell, the larger of the two round trips of a client that measured them (the way between two peers is no
    shorter than the difference of those, and no longer than the sum), and `unknown_seconds` without such a client.
    """

    def __init__(
        self,
        swarm: Swarm,
        *,
        client_rtt_seconds: Mapping[PeerId, float] | None = None,
        unknown_seconds: float = 0.3,
    ) -> None:
        client = client_rtt_seconds or {}
        self._row = {peer.id: row for row, peer in enumerate(swarm.peers)}
        self._coordinates = [peer.coordinate for peer in swarm.peers]
        self._client = np.array([client.get(peer.id, unknown_seconds) for peer in swarm.peers], dtype=np.float64)
        self._measured = dict(swarm.rtt_seconds)

    def __call__(self, a: PeerId, b: PeerId) -> float:
        return float(self.matrix([a, b])[0, 1]) if a != b else 0.0

    def matrix(self, ids: Sequence[PeerId]) -> FloatArray:
        """(len(ids), len(ids)) round trips in seconds. Raises KeyError for a peer the snapshot did not have."""
        rows = [self._row[peer] for peer in ids]
        client = self._client[rows]
        seconds = np.maximum(client[:, None], client)
        _predict([self._coordinates[row] for row in rows], seconds)
        place = {peer: index for index, peer in enumerate(ids)}
        for (a, b), rtt in self._measured.items():
            if a in place and b in place:
                seconds[place[a], place[b]] = rtt
                if (b, a) not in self._measured:
                    seconds[place[b], place[a]] = rtt
        np.fill_diagonal(seconds, 0.0)
        return seconds


def _predict(coordinates: Sequence[Coordinate | None], seconds: FloatArray) -> None:
    """Fill in what coordinates tell; those of different dimensions cannot be compared."""
    known = [(j, coordinate) for j, coordinate in enumerate(coordinates) if coordinate is not None]
    for size in {len(coordinate.vector) for _, coordinate in known}:
        alike = [(j, coordinate) for j, coordinate in known if len(coordinate.vector) == size]
        members = [j for j, _ in alike]
        vectors = np.array([coordinate.vector for _, coordinate in alike])
        heights = np.array([coordinate.height for _, coordinate in alike])
        squares = (vectors**2).sum(axis=1)
        squared = np.maximum(squares[:, None] + squares - 2 * vectors @ vectors.T, 0.0)
        seconds[np.ix_(members, members)] = np.sqrt(squared) + heights[:, None] + heights
