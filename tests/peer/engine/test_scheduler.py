"""The tokens of the next step: every session in bounded time, running sessions first, every token once."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from blockswarm.peer.engine.scheduler import (
    GATHER_SHARE,
    MAX_CHUNK_TOKENS,
    MIN_CHUNK_TOKENS,
    ExpectedSessions,
    Return,
    StepChoice,
    StepTiming,
    TurnAround,
    chunk_tokens_within,
    gather_until,
    plan_step,
)
from blockswarm.routing.swarm import ComputeCost
from hypothesis import given
from hypothesis import strategies as st

TIMING = StepTiming()
JOBS = st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1, max_size=8)


def validate_choice(jobs: Sequence[Sequence[int]], chunk_tokens: int, choice: StepChoice) -> None:
    """Check the rules that hold for every step."""
    assert sorted(choice.order) == list(range(len(jobs)))
    assert [(take.job, take.row) for take in choice.takes] == sorted({(take.job, take.row) for take in choice.takes})
    left = {(job, row): tokens for job, rows in enumerate(jobs) for row, tokens in enumerate(rows)}
    assert all(0 < take.count <= left[take.job, take.row] for take in choice.takes)
    prompts = [take for take in choice.takes if left[take.job, take.row] > 1]
    assert sum(take.count for take in prompts) <= chunk_tokens
    taken = {(take.job, take.row) for take in choice.takes}
    for job, rows in enumerate(jobs):
        single = [row for row, tokens in enumerate(rows) if tokens == 1]
        assert {(job, row) for row in single[:chunk_tokens]} <= taken


@given(JOBS, st.integers(1, 40))
def test_decode_rows_are_in_every_step_and_prompts_keep_to_the_budget(jobs: list[list[int]], chunk: int) -> None:
    validate_choice(jobs, chunk, plan_step(jobs, chunk))


@pytest.mark.slow
@given(st.lists(JOBS, min_size=1, max_size=12), st.integers(1, 40))
def test_every_job_is_complete_after_chunks_times_jobs_steps(arrivals: list[list[list[int]]], chunk: int) -> None:
    """However many others arrive. A row is always cut at the same places: its results do not depend on the others."""
    jobs: list[tuple[int, list[int], list[int]]] = []  # (arrival step, tokens left of every row, tokens at first)
    most_jobs, ages = 0, []
    for step in itertools.count():
        if step < len(arrivals):
            jobs += [(step, list(rows), list(rows)) for rows in arrivals[step]]
        if not jobs:
            break
        most_jobs = max(most_jobs, len(jobs))
        lefts = [left for _, left, _ in jobs]
        choice = plan_step(lefts, chunk)
        validate_choice(lefts, chunk, choice)
        assert choice.takes
        for take in choice.takes:
            _, left, first = jobs[take.job]
            assert (first[take.row] - left[take.row]) % chunk == 0
            assert take.count == min(chunk, left[take.row])
            left[take.row] -= take.count
        for arrived, left, first in jobs:
            if not any(left):
                ages.append((step - arrived + 1, sum(-(-tokens // chunk) for tokens in first)))
        jobs = [jobs[index] for index in choice.order if any(jobs[index][1])]
    assert len(ages) == sum(len(batch) for batch in arrivals)
    assert all(steps <= chunks * most_jobs for steps, chunks in ages)


@given(JOBS, st.integers(1, 40), st.data())
def test_guesses_are_no_part_of_a_step_in_which_others_have_text(
    jobs: list[list[int]], chunk: int, data: st.DataObject
) -> None:
    """The step is as if there were no guesses; a session whose step has the only text is not cut."""
    guesses = {
        index: data.draw(st.integers(1, jobs[index][-1])) for index in data.draw(st.sets(st.integers(0, len(jobs) - 1)))
    }
    choice = plan_step(jobs, chunk, guesses)
    texts = [index for index, rows in enumerate(jobs) if sum(rows) > guesses.get(index, 0)]

    def without_guesses(index: int) -> list[int]:
        *others, last = jobs[index]
        return [*others, last - (guesses.get(index, 0) if set(texts) - {index} else 0)]

    shown = [without_guesses(index) for index in range(len(jobs))]
    assert replace(choice, deferred=()) == plan_step(shown, chunk)
    assert choice.deferred == tuple(
        index for index in range(len(jobs)) if min(jobs[index][-1], chunk) > min(shown[index][-1], chunk)
    ), "a session is deferred if the step would have come to its guesses"
    assert sorted(choice.order) == list(range(len(jobs)))
    assert choice.takes
    if len(texts) < 2:
        assert all(shown[index] == jobs[index] for index in texts)


def test_prompts_take_turns() -> None:
    """A short prompt does not wait for a long one to end, nor the long one for a stream of short ones."""
    jobs = {"long": 640, "short": 64}
    served = []
    order = list(jobs)
    for _ in range(14):
        if "short" not in jobs:
            jobs["short"] = 64
            order.append("short")
        choice = plan_step([[jobs[name]] for name in order], 64)
        (take,) = choice.takes
        served.append(order[take.job])
        jobs[order[take.job]] -= take.count
        order = [order[index] for index in choice.order if jobs[order[index]]]
        jobs = {name: left for name, left in jobs.items() if left}
    assert served == ["long", "short"] * 7


def test_what_the_first_prompt_leaves_goes_to_the_next_that_fits() -> None:
    choice = plan_step([[40], [30], [20, 1], [4]], 64)
    assert [(take.job, take.row, take.count) for take in choice.takes] == [(0, 0, 40), (2, 0, 20), (2, 1, 1), (3, 0, 4)]
    assert choice.order == (1, 0, 2, 3)


@given(st.floats(1e-6, 0.1), st.floats(1e-6, 0.1), st.integers(1, 80))
def test_a_chunk_adds_a_quarter_of_a_second_or_one_step_at_most(decode: float, prefill: float, blocks: int) -> None:
    cost = ComputeCost(decode, prefill_per_token=prefill)
    chunk = chunk_tokens_within(cost, blocks, TIMING.stall_seconds)
    allowed = max(TIMING.stall_seconds, blocks * decode)
    assert chunk == MIN_CHUNK_TOKENS or blocks * prefill * chunk <= allowed
    assert chunk == MAX_CHUNK_TOKENS or blocks * prefill * chunk * 2 > allowed


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8), st.floats(0, 1))
def test_the_engine_waits_for_who_is_expected_and_never_long(
    expected: list[tuple[float, float]], last_step: float
) -> None:
    ready_since = 0.5
    returns = [Return(usually_at, usually_at + later) for usually_at, later in expected]
    until = gather_until(ready_since, returns, last_step, TIMING.gather_seconds)
    limit = ready_since + min(TIMING.gather_seconds, GATHER_SHARE * last_step)
    assert ready_since <= until <= limit
    awaited = [back for back in returns if back.usually_at <= limit]
    assert until == ready_since or awaited
    assert all(until in (limit, ready_since) or until >= back.latest_at for back in awaited)
    assert all(until >= min(limit, back.latest_at) for back in awaited)


class _Session:
    pass


def test_who_was_answered_is_expected_after_the_usual_time_and_given_up_when_overdue() -> None:
    sessions = ExpectedSessions(TIMING.turnaround_seconds)
    punctual, silent = _Session(), _Session()
    for second in range(5):
        for session in (punctual, silent):
            sessions.answered(session, second)
            sessions.arrived(session, second + 0.002)
    for session in (punctual, silent):
        sessions.answered(session, 5.0)
    for expected in sessions.returns(5.0):
        assert expected.usually_at == pytest.approx(5.002)
        assert 5.002 <= expected.latest_at <= 5.004
    sessions.arrived(punctual, 5.002)
    assert len(sessions.returns(5.0)) == 1
    assert sessions.returns(5.1) == []
    sessions.arrived(silent, 65.0)
    sessions.answered(silent, 65.0)
    (expected,) = sessions.returns(65.0)
    assert expected.usually_at < 65.1, "a minute's pause says little about the next time"
    del session, silent, punctual
    assert sessions.returns(65.0) == [], "a session that ended is not expected"


@pytest.mark.parametrize("seconds", [0.0002, 0.001, 0.02])
def test_a_steady_turn_around_is_learnt(seconds: float) -> None:
    turn_around = TurnAround.first(0.05)
    for _ in range(60):
        turn_around = turn_around.observed(seconds)
    expected = turn_around.after(100.0)
    assert expected.usually_at - 100 == pytest.approx(seconds, rel=0.01)
    assert expected.latest_at - 100 == pytest.approx(seconds, rel=0.01)


def rows_of_steps(turn_around: float, *, gather: bool, clients: int = 8, steps: int = 300) -> list[int]:
    """Rows of steps of 80 ms + 5 ms per row; clients come back `turn_around` after an answer, 20 % more or less."""
    rng = random.Random(0)
    expected = ExpectedSessions(TIMING.turnaround_seconds)
    sessions = [_Session() for _ in range(clients)]
    arrivals = [(rng.random() * 0.1, index) for index in range(clients)]
    heapq.heapify(arrivals)
    now = last_step = 0.0
    rows = []

    def arrive() -> list[int]:
        here = []
        while arrivals and arrivals[0][0] <= now:
            moment, index = heapq.heappop(arrivals)
            expected.arrived(sessions[index], moment)
            here.append(index)
        return here

    for _ in range(steps):
        now = max(now, arrivals[0][0])
        ready = arrive()
        ready_since = now
        while gather:
            until = gather_until(ready_since, expected.returns(ready_since), last_step, TIMING.gather_seconds)
            if until <= now:
                break
            now = min([until, *(moment for moment, _ in arrivals[:1])])
            ready += arrive()
        rows.append(len(ready))
        last_step = 0.08 + 0.005 * len(ready)
        now += last_step
        for index in ready:
            expected.answered(sessions[index], now)
            heapq.heappush(arrivals, (now + turn_around * rng.uniform(0.8, 1.2), index))
    return rows


@pytest.mark.parametrize("turn_around", [0.0002, 0.001, 0.005, 0.02])
def test_sessions_that_could_share_every_step_do(turn_around: float) -> None:
    """Without the pause two groups alternate for ever."""
    without, with_pause = (rows_of_steps(turn_around, gather=gather)[-100:] for gather in (False, True))
    assert sum(without) / 100 == pytest.approx(4, abs=0.1)
    assert sum(with_pause) / 100 > 7.5
