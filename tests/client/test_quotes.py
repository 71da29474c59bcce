"""Quotes: the interval has the share of outcomes that it says, and the times of a session are those of its steps."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest
from blockswarm.client.quotes import (
    CONFIDENCE,
    LEAST_SESSIONS,
    MAX_SESSIONS,
    Estimate,
    QuoteHistory,
    Ratios,
    SessionTimes,
    estimate,
    reached_confidence,
)
from blockswarm.proto.wire.steps import StepPlan
from blockswarm.routing.route.predict import PredictedRequest
from blockswarm.routing.swarm import BlockRange, PeerId

CHAIN = ((PeerId("a"), BlockRange(0, 4)),)
PREDICTED = PredictedRequest(3.0, 2.0, 0.1)


def step(rows: int, tokens: int) -> StepPlan:
    return SimpleNamespace(tokens=tokens, rows=(None,) * rows)  # type: ignore[return-value]


def test_without_sessions_nothing_is_said_of_the_error() -> None:
    quote = QuoteHistory().quote(CHAIN, PREDICTED)
    assert (quote.wait_seconds, quote.sessions, quote.chain) == (3.0, 0, CHAIN)
    assert quote.first_token_seconds == Estimate(2.0, 0.0, math.inf)
    assert quote.tokens_per_second == Estimate(pytest.approx(10.0), 0.0, math.inf)


def test_predictions_that_were_too_short_are_corrected() -> None:
    history = QuoteHistory()
    for factor in (1.4, 1.5, 1.6, 1.5):
        history.add(PREDICTED, 2.0 * factor, 0.1 * 2 * factor)
    quote = history.quote(CHAIN, PREDICTED)
    assert quote.first_token_seconds.expected == pytest.approx(3.0)
    assert (quote.first_token_seconds.low, quote.first_token_seconds.high) == pytest.approx((2.8, 3.2))
    assert quote.tokens_per_second.expected == pytest.approx(1 / 0.3)
    assert quote.tokens_per_second.low < quote.tokens_per_second.expected < quote.tokens_per_second.high
    assert 3.0 in quote.first_token_seconds
    assert 4.0 not in quote.first_token_seconds


@pytest.mark.parametrize("count", [LEAST_SESSIONS, 10, 19, 40, MAX_SESSIONS])
def test_the_interval_has_the_share_of_outcomes_that_it_says(count: int) -> None:
    """Whatever the distribution: here a skewed one with a long tail."""
    rng = random.Random(1)
    hits = 0
    for _ in range(3000):
        *known, new = (rng.lognormvariate(0.2, 0.8) for _ in range(count + 1))
        hits += new in estimate(1.0, known)
    assert hits / 3000 == pytest.approx(reached_confidence(count), abs=0.03)
    assert reached_confidence(count) >= (CONFIDENCE if count >= 19 else 0.5)


def wandering(sessions: int, rng: random.Random) -> list[float]:
    """Ratios of a machine whose load changes all the time."""
    load, ratios = 0.0, []
    for _ in range(sessions):
        load = 0.97 * load + rng.gauss(0, 0.12)
        ratios.append(math.exp(load + rng.gauss(0, 0.2)))
    return ratios


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_has_its_share_also_where_the_load_changes(seed: int) -> None:
    """The last sessions alone leave 84 % inside such an interval, and 76 % at the worst."""
    history, inside, plain, known = Ratios(), 0, 0, list[float]()
    ratios = wandering(600, random.Random(seed))
    for ratio in ratios:
        inside += ratio in history.estimate(1.0)
        plain += ratio in estimate(1.0, known[-MAX_SESSIONS:])
        history.add(ratio)
        known.append(ratio)
    assert inside / len(ratios) == pytest.approx(CONFIDENCE, abs=0.02)
    assert plain < inside


def test_a_correction_is_bounded_and_forgotten() -> None:
    history = Ratios()
    for number in range(200):
        history.add(1.01**number)  # ever slower: each one is beyond all before it
    assert history.estimate(1.0).high < 1.01**400
    rng = random.Random(1)
    steady = [rng.lognormvariate(0, 0.2) for _ in range(600)]
    for ratio in steady:
        history.add(ratio)
    assert history.estimate(1.0).high <= sorted(steady[-MAX_SESSIONS:])[-1]


def test_times_of_nothing_give_an_interval_of_nothing() -> None:
    assert estimate(1.0, [0.0] * 10, -0.2) == Estimate(0.0, 0.0, 0.0)


def test_what_was_not_predicted_and_what_is_old_does_not_count() -> None:
    history = QuoteHistory()
    history.add(PredictedRequest(0.0, 0.0, 0.0), 1.0, 1.0)
    assert history.quote(CHAIN, PREDICTED).sessions == 0
    for _ in range(MAX_SESSIONS):
        history.add(PREDICTED, 200.0, 10.0)
    for _ in range(MAX_SESSIONS):
        history.add(PREDICTED, 2.0, 0.1)
    quote = history.quote(CHAIN, PREDICTED)
    assert quote.sessions == MAX_SESSIONS
    assert quote.first_token_seconds.high == pytest.approx(2.0)


def test_a_session_is_timed_by_its_first_step_and_those_of_one_token() -> None:
    """A second prompt in the same session, and guesses, are steps of another kind."""
    times = SessionTimes().after(step(2, 20), 10.0, 13.0)
    assert (times.prompt_tokens, times.first_seconds, times.trips, times.trip_seconds) == (20, 3.0, 0, 0.0)
    times = times.after(step(2, 2), 13.1, 13.5).after(step(2, 2), 13.6, 14.0)
    assert (times.trips, times.trip_seconds) == (2, pytest.approx(0.5))
    times = times.after(step(2, 30), 100.0, 103.0).after(step(2, 2), 103.1, 103.5)
    assert (times.first_seconds, times.trips, times.trip_seconds) == (3.0, 3, pytest.approx(0.5))
