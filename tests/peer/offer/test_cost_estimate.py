"""The announced cost follows what steps really take, and does not run away."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from blockswarm.peer.engine.step_record import StepRecord
from blockswarm.peer.offer.cost_estimate import CostEstimate, has_changed
from blockswarm.peer.timing import PeerTiming
from blockswarm.routing.swarm import ComputeCost
from hypothesis import given, settings
from hypothesis import strategies as st

TRUE = ComputeCost(4e-3, 3e-4, 2e-6, 1e-3, 5e-4)
HALF_LIFE_SECONDS = PeerTiming().cost_half_life_seconds

BLOCKS = 8


def step_of(cost: ComputeCost, rows: int, context: int, prefill: int, factor: float = 1.0) -> StepRecord:
    """A step that takes what `cost` says, times `factor`."""
    if prefill:
        seconds = cost.prefill_seconds(prefill) + cost.decode_per_row * rows
    else:
        seconds = cost.decode_seconds(rows, context)
    return StepRecord(
        sessions=rows + (1 if prefill else 0), rows=rows + (1 if prefill else 0), decode_rows=rows,
        prefill_tokens=prefill, context_tokens=context, blocks=BLOCKS, seconds=seconds * BLOCKS * factor,
        longest_wait_seconds=0.0,
    )  # fmt: skip


def traffic(cost: ComputeCost, rng: random.Random, steps: int, noise: float) -> list[StepRecord]:
    found = []
    for _ in range(steps):
        prefill = rng.choice([0, 0, 0, 0, 64, 33, 128])
        rows = rng.randint(0 if prefill else 1, 8)
        factor = rng.lognormvariate(0, noise)
        found.append(step_of(cost, rows, rows * rng.randint(10, 900), prefill, factor))
    return found


def assert_near(found: ComputeCost, true: ComputeCost, share: float) -> None:
    for rows, context in ((1, 100), (4, 1000), (8, 4000)):
        assert found.decode_seconds(rows, context) == pytest.approx(true.decode_seconds(rows, context), rel=share)
    for tokens in (32, 128):
        assert found.prefill_seconds(tokens) == pytest.approx(true.prefill_seconds(tokens), rel=share)


@pytest.mark.long
@given(seed=st.integers(0, 10**6), factor=st.floats(0.3, 4.0))
@settings(max_examples=20, deadline=None)
def test_a_wrong_start_is_corrected(seed: int, factor: float) -> None:
    wrong = ComputeCost(*(factor * getattr(TRUE, name) for name in ComputeCost.__slots__))
    estimate = CostEstimate(wrong, HALF_LIFE_SECONDS)
    for index, step in enumerate(traffic(TRUE, random.Random(seed), 1500, noise=0.1)):
        estimate.observe(step, 0.05 * index)
    assert_near(estimate.cost, TRUE, 0.1)


@pytest.mark.long
def test_a_machine_that_becomes_slow_is_followed() -> None:
    estimate = CostEstimate(TRUE, HALF_LIFE_SECONDS)
    slow = ComputeCost(*(2 * getattr(TRUE, name) for name in ComputeCost.__slots__))
    steps = traffic(TRUE, random.Random(1), 2000, 0.05) + traffic(slow, random.Random(2), 12000, 0.05)
    for index, step in enumerate(steps):
        estimate.observe(step, 0.05 * index)
    assert_near(estimate.cost, slow, 0.15)


def test_one_suspended_step_is_no_news() -> None:
    estimate = CostEstimate(TRUE, HALF_LIFE_SECONDS)
    for index, step in enumerate(traffic(TRUE, random.Random(1), 300, 0.05)):
        estimate.observe(step, 0.05 * index)
    estimate.observe(replace(step_of(TRUE, 1, 100, 0), seconds=3600.0), 20.0)
    assert_near(estimate.cost, TRUE, 0.15)


def test_on_a_busy_machine_a_step_costs_what_it_takes_on_average() -> None:
    """One step in ten waits for other programs for fifteen times as long as it computes: a token loses that time."""
    estimate, rng = CostEstimate(TRUE, HALF_LIFE_SECONDS), random.Random(5)
    factors = [16.0 if rng.random() < 0.1 else 1.0 for _ in range(4000)]
    for index, factor in enumerate(factors):
        estimate.observe(step_of(TRUE, 1, 500, 0, factor), 0.05 * index)
    mean = sum(factors) / len(factors) * TRUE.decode_seconds(1, 500)
    assert estimate.cost.decode_seconds(1, 500) == pytest.approx(mean, rel=0.15)


def test_without_steps_it_stays_the_start() -> None:
    cost = CostEstimate(TRUE, HALF_LIFE_SECONDS).cost
    assert_near(cost, TRUE, 1e-9)


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 64), st.integers(0, 10**6), st.integers(0, 4096), st.floats(1e-6, 1e4)), max_size=40
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_seen_the_cost_is_one(steps: list[tuple[int, int, int, float]]) -> None:
    """ComputeCost refuses negative and infinite values, so it is enough that there is one, always."""
    estimate = CostEstimate(TRUE, HALF_LIFE_SECONDS)
    for index, (rows, context, prefill, seconds) in enumerate(steps):
        record = StepRecord(1, max(1, rows), rows, prefill, context, 4, seconds, 0.0)
        estimate.observe(record, 100.0 * index)
        assert isinstance(estimate.cost, ComputeCost)


def test_a_step_in_which_a_session_failed_tells_nothing_of_the_cost() -> None:
    """Its time is that of several passes; a client whose steps fail could make the peer look slow."""
    estimate = CostEstimate(TRUE, HALF_LIFE_SECONDS)
    for index in range(200):
        for step in (step_of(TRUE, 2, 50, 0, factor=5.0), step_of(TRUE, 0, 0, 64, factor=5.0)):
            estimate.observe(replace(step, failed_sessions=1), index)
    assert estimate.cost == CostEstimate(TRUE, HALF_LIFE_SECONDS).cost


def test_a_start_without_measured_slopes_is_fine() -> None:
    estimate = CostEstimate(ComputeCost(1e-3), HALF_LIFE_SECONDS)
    for index in range(2000):
        estimate.observe(step_of(TRUE, 2, 50, 0), index)
        estimate.observe(step_of(TRUE, 0, 0, 64), index)
    assert estimate.cost.decode_seconds(2, 50) == pytest.approx(TRUE.decode_seconds(2, 50), rel=0.1)
    assert estimate.cost.prefill_seconds(64) == pytest.approx(TRUE.prefill_seconds(64), rel=0.1)


def test_a_visit_costs_what_it_costs_on_average() -> None:
    """Most visits are short, and some wait for the processor: the mean is what a token loses."""
    estimate, rng = CostEstimate(TRUE, HALF_LIFE_SECONDS), random.Random(3)
    assert estimate.cost.visit == 0.0, "nothing is invented"
    seen = [rng.expovariate(1 / 2e-3) for _ in range(4000)]
    for index, seconds in enumerate(seen):
        estimate.observe_visit(seconds, 0.05 * index)
    assert estimate.cost.visit == pytest.approx(2e-3, rel=0.1)
    estimate.observe_visit(3600.0, 201.0)  # the machine was suspended
    assert estimate.cost.visit == pytest.approx(2e-3, rel=0.15)
    for index in range(10_000):
        estimate.observe_visit(8e-3, 202.0 + 0.05 * index)
    assert estimate.cost.visit == pytest.approx(8e-3, rel=0.05), "it follows a machine that has become slow"
    assert_near(estimate.cost, TRUE, 1e-9)


def test_what_an_earlier_run_knew_of_visits_stays_until_there_are_some() -> None:
    estimate = CostEstimate(replace(TRUE, visit=4e-3), HALF_LIFE_SECONDS)
    assert estimate.cost.visit == 4e-3
    estimate.observe_visit(2e-3, 0.0)
    assert 3e-3 < estimate.cost.visit < 4e-3, "one is not the whole truth"


def test_a_client_is_told_of_a_fifth() -> None:
    assert not has_changed(TRUE, TRUE)
    assert not has_changed(TRUE, ComputeCost(*(1.15 * getattr(TRUE, name) for name in ComputeCost.__slots__)))
    assert has_changed(TRUE, ComputeCost(*(1.25 * getattr(TRUE, name) for name in ComputeCost.__slots__)))
    assert has_changed(TRUE, replace(TRUE, prefill_per_token=2 * TRUE.prefill_per_token))
    assert has_changed(TRUE, replace(TRUE, decode_per_row=4 * TRUE.decode_per_row))
