"""Round trips between the peers of a snapshot: measured where known, else predicted from coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .perf import FloatArray
from .swarm import Coordinate, PeerId, Swarm
from .timing import RTT_SLACK_SECONDS

MOST_ERROR = 0.5
"""The estimated error of a client's own coordinate up to which it judges others by it."""


class RttTable:
    """Round trips between the peers of a snapshot, as a matrix of those that are asked for.

    Measured where the snapshot has a measurement, in either direction, else predicted from coordinates.  Where those
    cannot tell, the larger of the two round trips of a client that measured them, and `unknown_seconds` without such a
    client.

    Coordinates are claims, and a client's own measurements override them: a prediction is no shorter than the
    difference of its round trips to the two peers and no longer than their sum, and the coordinate of a peer that
    predicts the round trip to the client itself wrong by 2x does not count.
    """

    def __init__(
        self,
        swarm: Swarm,
        *,
        client_rtt_seconds: Mapping[PeerId, float] | None = None,
        client: Coordinate | None = None,
        unknown_seconds: float = 0.3,
    ) -> None:
        """`client`: where the client is."""
        measured = client_rtt_seconds or {}
        self._row = {peer.id: row for row, peer in enumerate(swarm.peers)}
        self._coordinates = [
            None if contradicts(peer.coordinate, client, measured.get(peer.id)) else peer.coordinate
            for peer in swarm.peers
        ]
        self._client = np.array([measured.get(peer.id, unknown_seconds) for peer in swarm.peers], dtype=np.float64)
        self._bounded = np.array([peer.id in measured for peer in swarm.peers], dtype=bool)
        self._measured = dict(swarm.rtt_seconds)

    def __call__(self, a: PeerId, b: PeerId) -> float:
        return float(self.matrix([a, b])[0, 1]) if a != b else 0.0

    def matrix(self, ids: Sequence[PeerId]) -> FloatArray:
        """(len(ids), len(ids)) round trips in seconds. Raises KeyError for a peer the snapshot did not have."""
        rows = [self._row[peer] for peer in ids]
        client = self._client[rows]
        seconds = np.maximum(client[:, None], client)
        _predict([self._coordinates[row] for row in rows], seconds)
        bounded = np.ix_(self._bounded[rows], self._bounded[rows])
        near = client[self._bounded[rows]]
        seconds[bounded] = np.clip(seconds[bounded], np.abs(near[:, None] - near), near[:, None] + near)
        place = {peer: index for index, peer in enumerate(ids)}
        for (a, b), rtt in self._measured.items():
            if a in place and b in place:
                seconds[place[a], place[b]] = rtt
                if (b, a) not in self._measured:
                    seconds[place[b], place[a]] = rtt
        np.fill_diagonal(seconds, 0.0)
        return seconds


def contradicts(peer: Coordinate | None, client: Coordinate | None, rtt_seconds: float | None) -> bool:
    """Whether a measured round trip tells that a peer is not where it says.

    A client that does not know where it is itself cannot tell, and a few milliseconds matter to nobody.
    """
    if peer is None or client is None or rtt_seconds is None or client.error > MOST_ERROR:
        return False
    if len(peer.vector) != len(client.vector):
        return True
    predicted = client.rtt_seconds(peer)
    apart = abs(predicted - rtt_seconds)
    return apart > RTT_SLACK_SECONDS and max(predicted, rtt_seconds) > 2 * min(predicted, rtt_seconds)


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
