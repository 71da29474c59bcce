"""Network coordinates: the round trip of any two nodes from a few numbers per node.

Vivaldi, F. Dabek, R. Cox, F. Kaashoek, R. Morris, "Vivaldi: A Decentralized Network Coordinate System",
SIGCOMM 2004, with the adaptive timestep of section 3 (figure 3) and the height vectors of section 5.4.

    symbol of the paper     here
    x_i, h_i                Coordinate.vector, Coordinate.height (seconds)
    e_i                     Coordinate.error
    rtt                     rtt_seconds
    c_c, c_e                TIMESTEP_GAIN, ERROR_GAIN

A node starts at `ORIGIN` and calls `updated` after each round trip that it measures to a node whose coordinate it
knows; nothing else is exchanged.  Everything is a pure function; randomness comes in as `rng`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .swarm import Coordinate

DIMENSIONS = 3
"""Dimensions of the Euclidean part; the height comes on top."""
TIMESTEP_GAIN = 0.25
ERROR_GAIN = 0.25
MIN_HEIGHT_SECONDS = 1e-4
"""Heights stay positive (section 5.4): a height of zero would have no direction in which to grow."""
MAX_RTT_SECONDS = 30.0
"""A longer round trip, or a coordinate farther out than this, is an error or an attack, not a network."""

ORIGIN = Coordinate(vector=(0.0,) * DIMENSIONS, height=MIN_HEIGHT_SECONDS, error=1.0)
"""Where a node that has measured nothing yet believes it is."""


def validate(coordinate: Coordinate) -> None:
    """Raise ValueError unless the coordinate has our dimensions and finite values of a plausible size."""
    if len(coordinate.vector) != DIMENSIONS:
        raise ValueError(f"a coordinate has {DIMENSIONS} dimensions, not {len(coordinate.vector)}")
    if not all(math.isfinite(x) and abs(x) <= MAX_RTT_SECONDS for x in coordinate.vector):
        raise ValueError(f"a coordinate lies within {MAX_RTT_SECONDS} s of the origin, not at {coordinate.vector}")
    if not 0.0 <= coordinate.height <= MAX_RTT_SECONDS:
        raise ValueError(f"the height of a coordinate is 0 to {MAX_RTT_SECONDS} s, not {coordinate.height}")
    if not 0.0 <= coordinate.error <= 1.0:
        raise ValueError(f"the error of a coordinate is 0 to 1, not {coordinate.error}")


def updated(local: Coordinate, remote: Coordinate, rtt_seconds: float, rng: random.Random) -> Coordinate:
    """The local node's coordinate after it measured `rtt_seconds` to a node at `remote`.

    `rng` is used only while the two vectors coincide and a direction has to be made up.
    Raises ValueError for a round trip that is not in (0, MAX_RTT_SECONDS] or a remote coordinate that `validate`
    refuses, so that a hostile node can displace us by a bounded amount only.
    """
    if not 0.0 < rtt_seconds <= MAX_RTT_SECONDS:
        raise ValueError(f"a round trip takes more than 0 and at most {MAX_RTT_SECONDS} s, not {rtt_seconds}")
    validate(remote)
    # (1) Weight of the sample: the balance of local and remote error.
    total_error = local.error + remote.error
    weight = local.error / total_error if total_error > 0.0 else 0.5
    # (2), (3) Relative error of the sample, and the moving average of our own.
    predicted = local.rtt_seconds(remote)
    sample_error = abs(predicted - rtt_seconds) / rtt_seconds
    gain = ERROR_GAIN * weight
    error = min(1.0, sample_error * gain + local.error * (1.0 - gain))
    # (4) Move along the unit vector away from (or towards) the remote node by the adaptive timestep.
    step = TIMESTEP_GAIN * weight * (rtt_seconds - predicted)
    direction, up = _unit_difference(local, remote, rng)
    vector = tuple(x + step * u for x, u in zip(local.vector, direction, strict=True))
    return Coordinate(vector=vector, height=max(MIN_HEIGHT_SECONDS, local.height + step * up), error=error)


def _unit_difference(local: Coordinate, remote: Coordinate, rng: random.Random) -> tuple[tuple[float, ...], float]:
    """u(x_i - x_j) of height vectors: differences of the vectors and sum of the heights, over the norm."""
    difference = [a - b for a, b in zip(local.vector, remote.vector, strict=True)]
    distance = math.hypot(*difference)
    heights = local.height + remote.height
    if distance < 1e-9:  # Two nodes at one place: any direction will do, but it must be one.
        difference = [rng.gauss(0.0, 1.0) for _ in difference]
        distance = math.hypot(*difference)
        return tuple(x / distance for x in difference), min(1.0, heights)
    norm = distance + heights
    return tuple(x / norm for x in difference), heights / norm


def centroids(coordinates: Sequence[Coordinate], limit: int = 4) -> tuple[Coordinate, ...]:
    """At most `limit` coordinates that stand for many: what a peer announces of the clients it served.

    Farthest-first seeds and Lloyd's rounds with the predicted RTT as the distance; deterministic, independent of the
    order of the input.  O(rounds * limit * n).
    """
    nodes = sorted(coordinates, key=lambda c: (c.vector, c.height, c.error))
    if not nodes:
        return ()
    seeds = [nodes[0]]
    while len(seeds) < min(limit, len(nodes)):
        candidate = max(nodes, key=lambda node: min(math.dist(node.vector, seed.vector) for seed in seeds))
        if candidate.vector in [seed.vector for seed in seeds]:
            break
        seeds.append(candidate)
    for _ in range(16):
        groups: list[list[Coordinate]] = [[] for _ in seeds]
        for node in nodes:
            distances = [math.dist(node.vector, seed.vector) for seed in seeds]
            groups[distances.index(min(distances))].append(node)
        means = [_mean(group) for group in groups if group]
        if means == seeds:
            break
        seeds = means
    return tuple(sorted(seeds, key=lambda c: (c.vector, c.height)))


def _mean(group: Sequence[Coordinate]) -> Coordinate:
    count = len(group)
    return Coordinate(
        vector=tuple(math.fsum(axis) / count for axis in zip(*(node.vector for node in group), strict=True)),
        height=math.fsum(node.height for node in group) / count,
        error=math.fsum(node.error for node in group) / count,
    )


def embed(
    rtt_seconds: NDArray[np.float64], rng: random.Random, rounds: int = 200, neighbours: int = 32
) -> tuple[Coordinate, ...]:
    """Coordinates of nodes whose round trips are the (n, n) matrix, as the nodes themselves would find them.

    Every node measures `neighbours` others chosen at random, one per round (section 5.1 of the paper uses 32, half of
    them near; random ones suffice with heights).  O(rounds * n).
    """
    n = len(rtt_seconds)
    coordinates = [ORIGIN] * n
    others = [rng.sample([j for j in range(n) if j != i], min(neighbours, n - 1)) for i in range(n)]
    for _ in range(rounds if n > 1 else 0):
        for i in rng.sample(range(n), n):
            j = rng.choice(others[i])
            coordinates[i] = updated(coordinates[i], coordinates[j], float(rtt_seconds[i, j]), rng)
    return tuple(coordinates)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How well coordinates predict a matrix of round trips, over all pairs."""

    median: float
    """Median of |predicted - real| / real."""
    p90: float


def accuracy(coordinates: Sequence[Coordinate], rtt_seconds: NDArray[np.float64]) -> Accuracy:
    """The relative error of the predictions against the (n, n) matrix, n >= 2, over pairs i < j."""
    rows, columns = np.triu_indices(len(coordinates), k=1)
    vectors = np.array([c.vector for c in coordinates])
    heights = np.array([c.height for c in coordinates])
    predicted = np.linalg.norm(vectors[rows] - vectors[columns], axis=1) + heights[rows] + heights[columns]
    real = rtt_seconds[rows, columns]
    errors = np.abs(predicted - real) / real
    return Accuracy(median=float(np.median(errors)), p90=float(np.quantile(errors, 0.9)))
