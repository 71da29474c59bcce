"""The own place: from few samples, at rest, and unmoved by nodes that lie; a whole swarm is in test_places.py."""

from __future__ import annotations

import math
import random

import pytest
from blockswarm.routing.coordinates import (
    DIMENSIONS,
    MAX_NEIGHBOURS,
    MAX_PLACE,
    MIN_HEIGHT,
    ORIGIN,
    Sample,
    Samples,
    centroids,
    placed,
    validate,
)
from blockswarm.routing.swarm import Coordinate, PeerId
from blockswarm.routing.timing import MAX_RTT_SECONDS, RTT_MEMORY_SECONDS
from hypothesis import given
from hypothesis import strategies as st

axis = st.floats(-1.0, 1.0)
coordinates = st.builds(
    Coordinate,
    vector=st.tuples(*[axis] * DIMENSIONS),
    height=st.floats(MIN_HEIGHT, 1.0),
    error=st.floats(0.0, 1.0),
)


def at(x: float, height: float = 0.001, error: float = 0.1) -> Coordinate:
    return Coordinate(vector=(x,) + (0.0,) * (DIMENSIONS - 1), height=height, error=error)


def rng() -> random.Random:
    return random.Random(0)


HERE = Coordinate((0.03, 0.01, -0.02), height=0.004, error=0.2)
CORNERS = [Coordinate((x, y, z), 0.002, 0.1) for x in (0.0, 0.06) for y in (0.0, 0.05) for z in (0.0, 0.04)]


def from_here(places: list[Coordinate]) -> list[Sample]:
    return [Sample(place, HERE.rtt_seconds(place)) for place in places]


def wrong_by(place: Coordinate, places: list[Coordinate]) -> float:
    """The largest relative error of the round trips from a place against those from HERE."""
    return max(abs(place.rtt_seconds(p) - HERE.rtt_seconds(p)) / HERE.rtt_seconds(p) for p in places)


def found(before: Coordinate | None, samples: list[Sample]) -> Coordinate:
    place = placed(before, samples, rng())
    assert place is not None
    return place


def test_a_newcomer_is_where_its_round_trips_say_it_is() -> None:
    """Eight exact samples, and one call: what a client has after its first look at a swarm."""
    assert wrong_by(found(None, from_here(CORNERS)), CORNERS) < 0.02


def test_without_samples_a_node_stays_where_it_is() -> None:
    assert placed(HERE, [], rng()) == HERE
    assert placed(None, [], rng()) is None


def test_two_nodes_part_from_one_place() -> None:
    """All nodes begin at the origin: there has to be a direction in which they part."""
    place = found(ORIGIN, [Sample(ORIGIN, 0.08)])
    assert place.rtt_seconds(ORIGIN) == pytest.approx(0.08, rel=0.1)


def test_a_place_that_fits_is_not_changed_by_noise() -> None:
    """A resting swarm announces what it announced: 5 % of noise on every round trip is no reason to move."""
    noise = random.Random(1)
    samples = [Sample(s.coordinate, s.rtt_seconds * noise.uniform(1.0, 1.05)) for s in from_here(CORNERS)]
    settled = found(None, samples)
    assert found(settled, samples) == settled
    again = [Sample(s.coordinate, s.rtt_seconds * noise.uniform(1.0, 1.05)) for s in from_here(CORNERS)]
    assert found(settled, again) == settled


def test_the_error_tells_how_good_predictions_are() -> None:
    few, many = found(None, from_here(CORNERS[:2])), found(None, from_here(CORNERS))
    assert 0.4 < few.error < 0.6  # two samples against a prior of two
    assert many.error < 0.25
    scattered = [Sample(place, 0.05 * 3 ** (index % 3)) for index, place in enumerate(CORNERS)]
    assert found(None, scattered).error > 0.4


@pytest.mark.parametrize(
    "lie",
    [
        Sample(Coordinate((MAX_PLACE,) * 3, 0.0, 0.0), 0.05),
        Sample(Coordinate((0.03, 0.01, -0.02), 0.0, 0.0), MAX_RTT_SECONDS),
        Sample(Coordinate((0.3, 0.3, 0.3), 0.0, 0.0), 0.02),
    ],
)
@pytest.mark.parametrize("before", [None, HERE, Coordinate((1.9, 1.9, 1.9), 0.001, 0.1)])
def test_one_liar_among_eight_moves_nobody_far(lie: Sample, before: Coordinate | None) -> None:
    """However sure it says that it is; and a node that was misled earlier finds its way back."""
    place = found(before, [*from_here(CORNERS), lie])
    assert wrong_by(place, CORNERS) < 0.1


@given(st.lists(st.builds(Sample, coordinates, st.floats(1e-6, MAX_RTT_SECONDS)), min_size=1, max_size=6), coordinates)
def test_any_samples_leave_a_valid_place_that_fits_no_worse(samples: list[Sample], before: Coordinate) -> None:
    place = found(before, samples)
    validate(place)
    assert place.height >= min(MIN_HEIGHT, before.height)
    assert loss(place, samples) <= loss(before, samples) + 1e-9


def loss(place: Coordinate, samples: list[Sample]) -> float:
    """The mean that the module promises to lower, from its definition."""
    weights = [1 - 0.75 * sample.coordinate.error for sample in samples]
    octaves = [math.log2(place.rtt_seconds(s.coordinate) / s.rtt_seconds) for s in samples]
    return sum(w * math.log1p(x * x) for w, x in zip(weights, octaves, strict=True)) / sum(weights)


@pytest.mark.parametrize("rtt", [0.0, -1.0, math.nan, math.inf, MAX_RTT_SECONDS + 1])
def test_an_absurd_round_trip_is_refused(rtt: float) -> None:
    with pytest.raises(ValueError, match="round trip"):
        Sample(at(0.1), rtt)


@pytest.mark.parametrize(
    "remote",
    [
        Coordinate(vector=(0.0,) * (DIMENSIONS + 1)),
        Coordinate(vector=(math.nan,) * DIMENSIONS),
        Coordinate(vector=(1e9,) * DIMENSIONS),
        Coordinate(vector=(0.0,) * DIMENSIONS, height=-1.0),
        Coordinate(vector=(0.0,) * DIMENSIONS, error=2.0),
    ],
)
def test_a_hostile_coordinate_is_refused(remote: Coordinate) -> None:
    with pytest.raises(ValueError, match="coordinate"):
        validate(remote)
    with pytest.raises(ValueError, match="coordinate"):
        Sample(remote, 0.1)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_the_shortest_of_the_latest_round_trips_counts_until_it_is_old() -> None:
    samples = Samples()
    for when, seconds in enumerate([0.01, 0.05, 0.06, 0.04, 0.07]):
        samples.add(PeerId("a"), seconds, when)
    assert samples.rtt_seconds(10.0) == {"a": 0.04}  # the first one was pushed out by the fifth
    assert samples.rtt_seconds(RTT_MEMORY_SECONDS + 3.5) == {"a": 0.07}
    assert samples.rtt_seconds(RTT_MEMORY_SECONDS + 5.0) == {}


def test_the_nodes_that_were_measured_last_are_kept() -> None:
    """The memory is bounded, whatever is measured."""
    samples = Samples()
    for peer in range(2 * MAX_NEIGHBOURS):
        samples.add(PeerId("first"), 0.5, peer)
        samples.add(PeerId(str(peer)), 0.1, peer)
    kept = samples.rtt_seconds(0.0)
    assert len(kept) == MAX_NEIGHBOURS
    assert "first" in kept
    assert "0" not in kept


def test_absurd_round_trips_and_impossible_places_are_left_out() -> None:
    samples = Samples()
    for peer, seconds in {"a": 0.1, "b": 0.1, "c": math.nan, "d": -1.0, "e": 0.1}.items():
        samples.add(PeerId(peer), seconds, 0.0)
    places = {PeerId("a"): at(0.1), PeerId("b"): Coordinate((900.0, 0.0, 0.0)), PeerId("c"): at(0.1), PeerId("e"): None}
    assert samples.with_places(places, 1.0) == (Sample(at(0.1), 0.1),)


# --- many places -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@given(st.lists(coordinates, max_size=12), st.randoms())
def test_centroids_do_not_depend_on_the_order_and_stay_inside(nodes, rnd):
    found = centroids(nodes)
    shuffled = list(nodes)
    rnd.shuffle(shuffled)
    assert centroids(shuffled) == found
    assert len(found) <= min(4, len(nodes))
    assert bool(found) == bool(nodes)
    for centre in found:
        validate(centre)


def test_centroids_find_separate_groups():
    groups = [at(0.0), at(0.001), at(0.5), at(0.501), at(1.0)]
    assert [round(c.vector[0], 2) for c in centroids(groups)] == [0.0, 0.5, 0.5, 1.0]
    assert [round(c.vector[0], 2) for c in centroids(groups, limit=3)] == [0.0, 0.5, 1.0]
