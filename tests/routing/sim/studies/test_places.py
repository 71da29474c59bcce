"""Whole swarms find their places: against matrices of round trips, with noise, with liars, and after a change."""

from __future__ import annotations

import random

import numpy as np
import pytest
from blockswarm.routing.sim.studies.places import Lie, PlacedSwarm
from blockswarm.routing.sim.worlds.geography import Planet, bundled_topology, violation_fraction

PLANET = Planet().rtt_seconds(24, random.Random(5))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "median", "p90"), [("abovenet", 0.08, 0.40), ("bellcanada", 0.08, 0.35), ("planet", 0.10, 0.30)]
)
def test_a_swarm_predicts_its_round_trips_after_five_minutes(name: str, median: float, p90: float) -> None:
    """Without noise; the maps are the hardest case, as a third of their pairs are a millisecond apart."""
    rtt = PLANET if name == "planet" else bundled_topology(name).rtt_seconds()
    swarm = PlacedSwarm(rtt, random.Random(1), jitter=0.0)
    swarm.run(30)
    assert swarm.accuracy().median < median
    assert swarm.accuracy().p90 < p90


@pytest.mark.long
def test_a_swarm_comes_to_rest_and_stays_where_it_is() -> None:
    """With 10 % of noise: nobody announces more than about two changes in an hour, and the swarm does not drift."""
    swarm = PlacedSwarm(PLANET, random.Random(1))
    swarm.run(60)
    settled = swarm.places
    swarm.run(30)
    assert np.mean(swarm.changes[60:]) / len(PLANET) * 360 < 5  # announcements of one node in an hour
    assert swarm.accuracy().median < 0.12
    moved = [np.linalg.norm(np.subtract(a.vector, b.vector)) for a, b in zip(settled, swarm.places, strict=True)]
    assert np.median(moved) < 0.005


def test_equal_seeds_give_equal_places() -> None:
    first, second = (PlacedSwarm(PLANET[:8, :8], random.Random(1)) for _ in range(2))
    first.run(3)
    second.run(3)
    assert first.places == second.places


@pytest.mark.long
@pytest.mark.parametrize("lie", Lie)
def test_a_tenth_of_liars_harms_the_others_little(lie: Lie) -> None:
    rng = random.Random(2)
    swarm = PlacedSwarm(PLANET, rng, liars=dict.fromkeys(rng.sample(range(1, 24), 2), lie))
    swarm.run(40)
    assert swarm.accuracy().median < 0.15
    assert swarm.accuracy().p90 < 0.50


@pytest.mark.long
def test_places_follow_the_network() -> None:
    """The way to four nodes gets 150 ms longer: twenty minutes later predictions are as good as in a new swarm."""
    rtt = PLANET[:14, :14]
    swarm = PlacedSwarm(rtt, random.Random(3))
    swarm.run(30)
    longer = np.where(np.arange(14) < 4, 0.15, 0.0)
    swarm.rtt_seconds = rtt + (longer[:, None] + longer) * (1 - np.eye(14))
    assert swarm.accuracy().p90 > 0.6
    swarm.run(120)
    assert swarm.accuracy().median < 0.12
    assert swarm.accuracy().p90 < 0.30


@pytest.mark.long
def test_accuracy_survives_triangle_inequality_violations() -> None:
    """Ten per cent of the pairs take a detour twice as long: no coordinates fit those, the others must not suffer."""
    rtt = Planet(violation_fraction=0.1).rtt_seconds(40, random.Random(5))
    assert violation_fraction(rtt) > 0.09
    swarm = PlacedSwarm(rtt, random.Random(0), jitter=0.0)
    swarm.run(40)
    assert swarm.accuracy().median < 0.15
