"""Network coordinates: the round trip of any two nodes from a few numbers per node.

The model is Vivaldi's: F. Dabek, R. Cox, F. Kaashoek, R. Morris, "Vivaldi: A Decentralized Network Coordinate System",
SIGCOMM 2004.  A node is a point with a height (section 5.4) and an estimated error; the round trip of two nodes is the
distance of the points plus both heights, and every node moves by itself to where its own round trips are right.

We deviate in how a node moves.  The paper's node makes one small step per sample and forgets it; here it keeps its
latest samples (`Samples`), whose coordinates every record renews anyway, and takes the position that fits them best:

* A few samples are enough: a client knows its position after its first look at a swarm, and a peer after eight pings.
* The fit is robust: the loss of a sample is the Cauchy loss of the logarithm, base 2, of predicted over measured.
  A sample that contradicts the others by 2x has half the weight, one that contradicts by 30x a thirtieth of it, so a
  minority of nodes that lie about their positions, or answer late, cannot move others far.  (J. Ledlie et al., "Network
  Coordinates in the Wild", NSDI 2007, on outliers, and on the next point.)
* A node announces a new position only if it is clearly better (`MIN_GAIN`).  Since all nodes fit to announced
  positions, a swarm comes to rest, and does not drift or rotate.

Everything except `Samples` is a pure function; randomness comes in as `rng`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .swarm import Coordinate, PeerId
from .timing import MAX_RTT_SECONDS, RTT_MEMORY_SECONDS

FloatArray = NDArray[np.float64]

DIMENSIONS = 3
"""Dimensions of the Euclidean part; the height comes on top."""
MIN_HEIGHT = 1e-4
"""Heights stay positive (section 5.4 of the paper); seconds, as all lengths here."""
MAX_PLACE = 2.0
"""The largest absolute value on an axis, and the largest height, in seconds; beyond is an error or an attack."""
MIN_GAIN = 0.02
"""Reduction of the loss that justifies a new position.  The loss is a mean over samples, in which a sample that is
wrong by 2x counts 0.7, and one that is wrong by 10 % counts 0.02."""
MIN_ERROR_CHANGE = 0.1
"""The smallest change of the estimated error that is announced."""
PASSES = 12
MAX_STEP = 0.1
"""The longest move of a node in one pass of the fit, seconds."""
PRIOR_SAMPLES = 2
"""The error of a new node is 1, with the weight of this many samples."""

ORIGIN = Coordinate(vector=(0.0,) * DIMENSIONS, height=MIN_HEIGHT, error=1.0)
"""The position of the first node of a swarm, relative to which the others place themselves."""


def validate(coordinate: Coordinate) -> None:
    """Raise ValueError unless the coordinate has our dimensions and finite values of a plausible size."""
    if len(coordinate.vector) != DIMENSIONS:
        raise ValueError(f"a coordinate has {DIMENSIONS} dimensions, not {len(coordinate.vector)}")
    if not all(abs(x) <= MAX_PLACE for x in coordinate.vector):
        raise ValueError(f"a coordinate lies within {MAX_PLACE} s of the origin, not at {coordinate.vector}")
    if not 0.0 <= coordinate.height <= MAX_PLACE:
        raise ValueError(f"the height of a coordinate is 0 to {MAX_PLACE} s, not {coordinate.height}")
    if not 0.0 <= coordinate.error <= 1.0:
        raise ValueError(f"the error of a coordinate is 0 to 1, not {coordinate.error}")


def is_plausible(coordinate: Coordinate) -> bool:
    """Whether `validate` accepts the coordinate."""
    try:
        validate(coordinate)
    except ValueError:
        return False
    return True


# --- samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """A round trip that a node has measured, and the coordinate that the other node announces."""

    coordinate: Coordinate
    rtt_seconds: float

    def __post_init__(self) -> None:
        validate(self.coordinate)
        if not 0.0 < self.rtt_seconds <= MAX_RTT_SECONDS:
            raise ValueError(f"a round trip takes more than 0 and at most {MAX_RTT_SECONDS} s, not {self.rtt_seconds}")


MAX_NEIGHBOURS = 32
"""Nodes whose round trips are kept (the paper's number, section 5.1)."""
MAX_ROUND_TRIPS = 4
"""Round trips kept per node; the shortest counts, since noise only makes them longer."""


class Samples:
    """The latest round trips to other nodes, bounded: the most recently measured nodes are kept."""

    def __init__(self) -> None:
        self._round_trips: dict[PeerId, list[tuple[float, float]]] = {}
        """(when, seconds) per node; the most recently measured node comes last."""

    def add(self, peer: PeerId, rtt_seconds: float, now_seconds: float) -> None:
        """Add a measured round trip; an implausible one is ignored."""
        if not 0.0 < rtt_seconds <= MAX_RTT_SECONDS:
            return
        kept = self._round_trips.pop(peer, [])[1 - MAX_ROUND_TRIPS :]
        self._round_trips[peer] = [*kept, (now_seconds, rtt_seconds)]
        if len(self._round_trips) > MAX_NEIGHBOURS:
            del self._round_trips[next(iter(self._round_trips))]

    def rtt_seconds(self, now_seconds: float) -> dict[PeerId, float]:
        """The shortest round trip to each node within the last `RTT_MEMORY_SECONDS`; forgets older ones."""
        oldest = now_seconds - RTT_MEMORY_SECONDS
        self._round_trips = {
            peer: recent
            for peer, kept in self._round_trips.items()
            if (recent := [each for each in kept if each[0] > oldest])
        }
        return {peer: min(seconds for _, seconds in kept) for peer, kept in self._round_trips.items()}

    def with_places(self, places: Mapping[PeerId, Coordinate | None], now_seconds: float) -> tuple[Sample, ...]:
        """The samples to nodes with a known, plausible coordinate."""
        known = ((places.get(peer), seconds) for peer, seconds in self.rtt_seconds(now_seconds).items())
        return tuple(Sample(place, seconds) for place, seconds in known if place is not None and is_plausible(place))


# --- the own place ---------------------------------------------------------------------------------------------------


def placed(before: Coordinate | None, samples: Sequence[Sample], rng: random.Random) -> Coordinate | None:
    """The coordinate to announce after these samples: `before`, unless another position is clearly better.

    None if there are neither samples nor `before`.  O(PASSES * samples).
    """
    if not samples:
        return before
    fit = _Fit.of(samples)
    found = fit.best([*([before] if before is not None else []), *_starts(samples)], rng)
    if before is not None and fit.loss(point_of(before)) - fit.loss(point_of(found)) < MIN_GAIN:
        found = Coordinate(before.vector, before.height, fit.error(point_of(before)))
        if abs(found.error - before.error) < MIN_ERROR_CHANGE:
            return before
    return found


def _starts(samples: Sequence[Sample]) -> list[Coordinate]:
    """Starting points of the fit besides the present position, in which a node that was misled may be stuck.

    They are the nearest node, and the median of all nodes on every axis, which a minority cannot move far.
    """
    nearest = min(samples, key=lambda sample: sample.rtt_seconds).coordinate
    axes = np.median([sample.coordinate.vector for sample in samples], axis=0)
    return [nearest, Coordinate(tuple(map(float, axes)), MIN_HEIGHT)]


def rtts_to(points: FloatArray, place: Coordinate) -> FloatArray:
    """Predicted round trips, (n,) seconds, from a position to points (n, DIMENSIONS + 1), each a vector and a height;
    NaN where a point is NaN."""
    return np.asarray(np.linalg.norm(points[:, :-1] - np.array(place.vector), axis=1) + points[:, -1] + place.height)


def point_of(coordinate: Coordinate) -> FloatArray:
    """(1, DIMENSIONS + 1): the vector and the height."""
    return np.array([[*coordinate.vector, coordinate.height]])


@dataclass(frozen=True)
class _Fit:
    """The loss of positions, given m samples. Points are (n, DIMENSIONS + 1), the height last."""

    vectors: FloatArray
    """(m, DIMENSIONS)"""
    heights: FloatArray
    """(m,)"""
    rtt_seconds: FloatArray
    """(m,)"""
    confidence: FloatArray
    """(m,), between 0 and 1: how sure the other nodes are of their positions."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _Fit:
        return cls(
            np.array([sample.coordinate.vector for sample in samples]),
            np.array([sample.coordinate.height for sample in samples]),
            np.array([sample.rtt_seconds for sample in samples]),
            np.array([1.0 - 0.75 * sample.coordinate.error for sample in samples]),
        )

    def best(self, starts: Iterable[Coordinate], rng: random.Random) -> Coordinate:
        """The best position found from any of the starts."""
        points = np.concatenate([point_of(start) for start in starts])
        # Without noise, nodes at the same position would have no direction in which to separate.
        points[:, :-1] += [[rng.gauss(0.0, 1e-4) for _ in range(DIMENSIONS)] for _ in points]
        for _ in range(PASSES):
            step = self._step(points)
            points = _within_bounds(points + step)
            if np.abs(step).max() < 1e-5:
                break
        point = points[np.argmin(self.loss(points))][None]
        return Coordinate(tuple(map(float, point[0, :-1])), float(point[0, -1]), self.error(point))

    def loss(self, points: FloatArray) -> FloatArray:
        """(n,): the mean Cauchy loss of log2(predicted / measured)."""
        octaves = np.log2(self._predicted(points) / self.rtt_seconds)
        return np.log1p(octaves**2) @ self.confidence / self.confidence.sum()  # type: ignore[no-any-return]

    def error(self, point: FloatArray) -> float:
        """The estimated relative error of predictions from a point: the samples' median, averaged with the prior."""
        errors = np.abs(self._predicted(point)[0] - self.rtt_seconds) / self.rtt_seconds
        samples = len(errors)
        return min(1.0, (float(np.median(errors)) * samples + PRIOR_SAMPLES) / (samples + PRIOR_SAMPLES))

    def _predicted(self, points: FloatArray) -> FloatArray:
        """(n, m) seconds."""
        distances = np.linalg.norm(points[:, None, :-1] - self.vectors, axis=2)
        return np.asarray(distances + points[:, -1:] + self.heights)

    def _step(self, points: FloatArray) -> FloatArray:
        """One damped Gauss-Newton pass over the reweighted squares of relative errors; (n, DIMENSIONS + 1)."""
        difference = points[:, None, :-1] - self.vectors
        distance = np.linalg.norm(difference, axis=2)
        predicted = distance + points[:, -1:] + self.heights
        octaves = np.log2(predicted / self.rtt_seconds)
        scale = self.confidence / (1.0 + octaves**2) / np.maximum(self.rtt_seconds, predicted) ** 2
        directions = difference / np.maximum(distance, 1e-9)[..., None]
        slope = np.concatenate([directions, np.ones((*distance.shape, 1))], axis=2)
        weighted = slope * scale[..., None]
        matrix = np.swapaxes(weighted, 1, 2) @ slope
        matrix += 0.01 * np.trace(matrix, axis1=1, axis2=2)[:, None, None] * np.eye(DIMENSIONS + 1)
        force = (weighted * (self.rtt_seconds - predicted)[..., None]).sum(axis=1)
        step = np.linalg.solve(matrix, force[..., None])[..., 0] * 0.7
        length = np.linalg.norm(step, axis=1, keepdims=True)
        return np.asarray(step * np.minimum(1.0, MAX_STEP / np.maximum(length, 1e-12)))


def _within_bounds(points: FloatArray) -> FloatArray:
    points[:, :-1] = np.clip(points[:, :-1], -MAX_PLACE, MAX_PLACE)
    points[:, -1] = np.clip(points[:, -1], MIN_HEIGHT, MAX_PLACE)
    return points


# --- many places ------------------------------------------------------------------------------------------------------


def centroids(coordinates: Sequence[Coordinate], limit: int = 4) -> tuple[Coordinate, ...]:
    """At most `limit` coordinates that represent many: a peer announces these for the clients that it served.

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


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The accuracy of predicted round trips, over all pairs of nodes."""

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
