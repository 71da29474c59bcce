"""Vivaldi: one update does what the paper's figure says; many of them find coordinates that predict round trips."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from blockswarm.routing.coordinates import (
    DIMENSIONS,
    MAX_RTT_SECONDS,
    MIN_HEIGHT_SECONDS,
    ORIGIN,
    accuracy,
    centroids,
    embed,
    updated,
    validate,
)
from blockswarm.routing.sim.worlds.geography import Planet, bundled_topology, violation_fraction
from blockswarm.routing.swarm import Coordinate
from hypothesis import given
from hypothesis import strategies as st

axis = st.floats(-1.0, 1.0)
coordinates = st.builds(
    Coordinate,
    vector=st.tuples(*[axis] * DIMENSIONS),
    height=st.floats(MIN_HEIGHT_SECONDS, 1.0),
    error=st.floats(0.0, 1.0),
)


def at(x: float, height: float = 0.001, error: float = 0.5) -> Coordinate:
    return Coordinate(vector=(x,) + (0.0,) * (DIMENSIONS - 1), height=height, error=error)


def test_one_update_by_hand():
    """Figure 3 with equal errors: w = 1/2, a timestep of 1/8, along the unit height vector."""
    local, remote = at(0.0), at(0.098)
    assert local.rtt_seconds(remote) == pytest.approx(0.1)
    moved = updated(local, remote, 0.2, random.Random(0))
    step = 0.25 * 0.5 * (0.2 - 0.1)
    assert moved.vector[0] == pytest.approx(-step * 0.098 / 0.1)
    assert moved.height == pytest.approx(0.001 + step * 0.002 / 0.1)
    assert moved.error == pytest.approx(0.5 * 0.125 + 0.5 * 0.875)


def test_a_confident_node_moves_less_than_an_uncertain_one():
    """The adaptive timestep: a node that joins does not drag those that have settled."""
    settled, new = at(0.0, error=0.05), at(0.05, error=1.0)
    settled_step = math.dist(updated(settled, new, 0.3, random.Random(0)).vector, settled.vector)
    new_step = math.dist(updated(new, settled, 0.3, random.Random(0)).vector, new.vector)
    assert new_step > 10 * settled_step


@given(coordinates, coordinates, st.floats(1e-6, MAX_RTT_SECONDS), st.integers(0, 5))
def test_an_update_stays_valid_and_brings_the_prediction_closer(local, remote, rtt, seed):
    """Any valid sample leaves a valid coordinate; the prediction never overshoots (but for the floor of heights)."""
    moved = updated(local, remote, rtt, random.Random(seed))
    assert moved.height >= MIN_HEIGHT_SECONDS
    assert 0.0 <= moved.error <= 1.0
    assert all(map(math.isfinite, moved.vector))
    before, after = abs(local.rtt_seconds(remote) - rtt), abs(moved.rtt_seconds(remote) - rtt)
    assert after <= before + 2 * local.height + 1e-9


@pytest.mark.parametrize("rtt", [0.0, -1.0, math.nan, math.inf, MAX_RTT_SECONDS + 1])
def test_an_absurd_round_trip_is_refused(rtt):
    with pytest.raises(ValueError, match="round trip"):
        updated(ORIGIN, at(0.1), rtt, random.Random(0))


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
def test_a_hostile_coordinate_is_refused(remote):
    with pytest.raises(ValueError, match="coordinate"):
        validate(remote)
    with pytest.raises(ValueError, match="coordinate"):
        updated(ORIGIN, remote, 0.1, random.Random(0))


def test_embedding_is_deterministic_and_places_points_of_a_plane():
    """Round trips that a plane with heights explains are predicted almost exactly; equal seeds, equal coordinates."""
    rng = np.random.default_rng(3)
    points = rng.uniform(0.0, 0.1, (30, 2))
    rtt = np.linalg.norm(points[:, None] - points[None, :], axis=2) + 0.02 * (1 - np.eye(30))
    found = embed(rtt, random.Random(1), rounds=400)
    assert found == embed(rtt, random.Random(1), rounds=400)
    quality = accuracy(found, rtt)
    assert quality.median < 0.03
    assert quality.p90 < 0.1


@pytest.mark.parametrize("name", ["abovenet", "bellcanada", "gtsce"])
def test_accuracy_on_the_published_maps(name):
    """Without access delays, the hardest case: a third of the pairs are a millisecond apart."""
    rtt = bundled_topology(name).rtt_seconds()
    quality = accuracy(embed(rtt, random.Random(0)), rtt)
    assert quality.median < 0.10
    assert quality.p90 < 0.45


def test_accuracy_survives_triangle_inequality_violations():
    """Ten per cent of the pairs take a detour twice as long: no coordinates fit those, the others must not suffer."""
    rtt = Planet(violation_fraction=0.1).rtt_seconds(120, random.Random(5))
    assert violation_fraction(rtt) > 0.09
    assert accuracy(embed(rtt, random.Random(0)), rtt).median < 0.20


def test_one_node_or_two_can_be_embedded():
    assert embed(np.zeros((1, 1)), random.Random(0)) == (ORIGIN,)
    rtt = np.array([[0.0, 0.08], [0.08, 0.0]])
    a, b = embed(rtt, random.Random(0))
    assert a.rtt_seconds(b) == pytest.approx(0.08, rel=0.02)


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
