"""Round trips between the peers of a snapshot: measured where known, else predicted from coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .perf import FloatArray
from .swarm import Coordinate, PeerId, Swarm
from .timing import RTT_SLACK_SECONDS

MOST_ERROR = 0.5
"""A client whose own coordinate has a larger estimated error does not judge others' coordinates by it."""


class RttTable:
    """Round trips between the peers of a snapshot, as a matrix for the peers that are asked for.

    A round trip is the snapshot's measurement, in either direction, if there is one; else it is predicted from
    coordinates.  Without those it is the larger of the client's round trips to the two peers, where one that the client
    did not measure counts as `unknown_seconds`.

    Coordinates are claims, and a client's own measurements override them: a prediction is clipped to between the
    difference and the sum of its round trips to the two peers, and the coordinate of a peer is ignored if it
    mispredicts the round trip to the client itself by a factor of two.
    """

    def __init__(
        self,
        swarm: Swarm,
        *,
        client_rtt_seconds: Mapping[PeerId, float] | None = None,
        client: Coordinate | None = None,
        unknown_seconds: float = 0.3,
    ) -> None:
        """`client`: the client's own coordinate; `client_rtt_seconds`: its measured round trips."""
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
        """Round trips, (len(ids), len(ids)) seconds. Raises KeyError for a peer that is not in the snapshot."""
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
    """Whether a measured round trip shows that a peer is not where its coordinate says.

    A client that does not know its own position cannot tell; differences of at most `RTT_SLACK_SECONDS` do not count.
    """
    if peer is None or client is None or rtt_seconds is None or client.error > MOST_ERROR:
        return False
    if len(peer.vector) != len(client.vector):
        return True
    predicted = client.rtt_seconds(peer)
    apart = abs(predicted - rtt_seconds)
    return apart > RTT_SLACK_SECONDS and max(predicted, rtt_seconds) > 2 * min(predicted, rtt_seconds)


def _predict(coordinates: Sequence[Coordinate | None], seconds: FloatArray) -> None:
    """Fill in the predictions from coordinates; coordinates of different dimensions cannot be compared."""
    known = [(j, coordinate) for j, coordinate in enumerate(coordinates) if coordinate is not None]
    for size in {len(coordinate.vector) for _, coordinate in known}:
        alike = [(j, coordinate) for j, coordinate in known if len(coordinate.vector) == size]
        members = [j for j, _ in alike]
        vectors = np.array([coordinate.vector for _, coordinate in alike])
        heights = np.array([coordinate.height for _, coordinate in alike])
        squares = (vectors**2).sum(axis=1)
        squared = np.maximum(squares[:, None] + squares - 2 * vectors @ vectors.T, 0.0)
        seconds[np.ix_(members, members)] = np.sqrt(squared) + heights[:, None] + heights
