"""The demand in a snapshot: where requests come from, and how many sessions run at once (R).

Both are quantised, so that small changes of coordinates and load change no decision.  Every peer derives the same
values from the same snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from ..coordinates import DIMENSIONS, point_of, rtts_to
from ..perf import FloatArray, PerfModel
from ..swarm import Coordinate, PeerSpec, Swarm
from ..timing import CLIENT_CELL_SECONDS, UNKNOWN_RTT_SECONDS
from .cgbp import conservative_sizes, is_feasible

MAX_CLIENTS = 16
CONCURRENCY_STEPS: tuple[int, ...] = tuple(sorted({round(2**k * f) for k in range(13) for f in (1, 1.5)}))
"""The values that R may take: 1, 2, 3, 4, 6, 8, 12, ..."""


@dataclass(frozen=True, slots=True)
class Clients:
    """V_c: the positions that requests come from, each with its number of sessions, in a fixed order."""

    places: tuple[Coordinate, ...]
    weights: tuple[float, ...]


def clients_of(swarm: Swarm) -> Clients:
    """The centroids that the peers announce, weighted by their sessions; without any, the peers' own coordinates.

    Quantised to cells of CLIENT_CELL_SECONDS; the MAX_CLIENTS heaviest cells count.  May be empty.
    """
    weighted = [
        (centroid, max(peer.concurrency, 0.01) / len(peer.client_centroids))
        for peer in swarm.peers
        for centroid in peer.client_centroids
        if _is_usable(centroid)
    ]
    if not weighted:
        weighted = [(peer.coordinate, 1.0) for peer in swarm.peers if _is_usable(peer.coordinate)]
    if not weighted:
        return Clients((), ())
    points = np.array([(*coordinate.vector, coordinate.height) for coordinate, _ in weighted])
    cells, members = np.unique(np.rint(points / CLIENT_CELL_SECONDS), axis=0, return_inverse=True)
    weights = np.bincount(members.ravel(), weights=[weight for _, weight in weighted])
    heaviest = np.argsort(-weights.round(6), kind="stable")[:MAX_CLIENTS]
    places = cells[heaviest] * CLIENT_CELL_SECONDS
    return Clients(
        tuple(Coordinate(tuple(map(float, place[:-1])), height=float(place[-1])) for place in places),
        tuple(map(float, weights[heaviest])),
    )


def _is_usable(coordinate: Coordinate | None) -> TypeGuard[Coordinate]:
    """Whether there is a coordinate with our dimensions: one peer's invalid one must not stop everybody's planning."""
    return coordinate is not None and len(coordinate.vector) == DIMENSIONS


def client_rtt_seconds(clients: Clients, peers: Sequence[PeerSpec]) -> FloatArray:
    """Round trips from every position to every peer, (C, n) seconds; one unknown position if there are no clients."""
    rtt = np.full((max(1, len(clients.places)), len(peers)), UNKNOWN_RTT_SECONDS)
    known = [(j, peer.coordinate) for j, peer in enumerate(peers) if _is_usable(peer.coordinate)]
    if known and clients.places:
        columns = [j for j, _ in known]
        points = np.concatenate([point_of(coordinate) for _, coordinate in known])
        for row, place in enumerate(clients.places):
            rtt[row, columns] = rtts_to(points, place)
    return rtt


def concurrency_of(model: PerfModel, peer_sessions: FloatArray) -> int:
    """R: the largest that does not lengthen the shortest chain, or more if the peers observe more sessions than that.

    `peer_sessions`: (n,), concurrent sessions that each peer observed.  A session occupies L blocks in all, so there
    are about sum(sessions_j * m_j) / L of them, which over-estimates if chains leave a peer before its last block; m_j
    is taken for R and not from the present ranges, so that a move does not change R.  An R that is too large costs
    almost nothing until a chain needs one more peer, while one that is too small makes requests wait; so one standard
    deviation is added and R is rounded up to the next of CONCURRENCY_STEPS.  At least 1, even if 1 is infeasible.
    """
    feasible = [steps for steps in CONCURRENCY_STEPS if is_feasible(model, steps)]  # A prefix: monotone in R.
    if not feasible:
        return 1
    shortest = _fewest_peers(model, 1)
    free = max(steps for steps in feasible if _fewest_peers(model, steps) == shortest)
    for steps in feasible:
        sessions = float(peer_sessions @ conservative_sizes(model, steps)) / model.num_blocks
        if steps >= max(free, sessions + math.sqrt(sessions)):
            return steps
    return feasible[-1]


def _fewest_peers(model: PerfModel, concurrency: int) -> int:
    """The number of largest peers that it takes to host all blocks."""
    sizes = np.sort(conservative_sizes(model, concurrency))[::-1]
    hosted = np.cumsum(sizes)
    return 1 + int((hosted < model.num_blocks).sum())
