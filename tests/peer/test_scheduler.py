"""What the engine computes next: everybody in bounded time, running sessions first, every token once."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import pytest
from blockswarm.peer.engine.scheduler import (
    GATHER_LIMIT_SECONDS,
    GATHER_SHARE,
    GPU_CHUNK_TOKENS,
    MIN_CHUNK_TOKENS,
    STALL_SECONDS,
    Choice,
    ExpectedSessions,
    TurnAround,
    chunk_tokens_within,
    gather_until,
    plan_step,
)
from blockswarm.routing.swarm import ComputeCost
from hypothesis import given
from hypothesis import strategies as st

JOBS = st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1, max_size=8)


def validate_choice(jobs: Sequence[Sequence[int]], chunk_tokens: int, choice: Choice) -> None:
    """What holds for every step."""
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


@given(st.lists(JOBS, min_size=1, max_size=12), st.integers(1, 40))
def test_every_job_is_complete_after_chunks_times_jobs_steps(arrivals: list[list[list[int]]], chunk: int) -> None:
    """Whoever keeps arriving. A row is always cut at the same places, so its results do not depend on the others."""
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
    chunk = chunk_tokens_within(cost, blocks)
    allowed = max(STALL_SECONDS, blocks * decode)
    assert chunk == MIN_CHUNK_TOKENS or blocks * prefill * chunk <= allowed
    assert chunk == GPU_CHUNK_TOKENS or blocks * prefill * chunk * 2 > allowed


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0, 1))
def test_the_engine_waits_for_nobody_in_particular_and_never_long(expected: list[float], last_step: float) -> None:
    ready_since = 0.5
    until = gather_until(ready_since, expected, last_step)
    longest = min(GATHER_LIMIT_SECONDS, GATHER_SHARE * last_step)
    assert ready_since <= until <= ready_since + longest
    assert until == ready_since or until in expected
    assert not any(until < moment <= ready_since + longest for moment in expected)


class _Session:
    pass


def test_who_was_answered_is_expected_after_the_usual_time_and_given_up_when_overdue() -> None:
    sessions = ExpectedSessions()
    punctual, silent = _Session(), _Session()
    for second in range(5):
        for session in (punctual, silent):
            sessions.answered(session, second)
            sessions.arrived(session, second + 0.002)
    for session in (punctual, silent):
        sessions.answered(session, 5.0)
    assert all(5.002 <= moment <= 5.003 for moment in sessions.moments(5.0))
    sessions.arrived(punctual, 5.002)
    assert len(sessions.moments(5.0)) == 1
    assert sessions.moments(5.1) == []
    sessions.arrived(silent, 65.0)
    sessions.answered(silent, 65.0)
    assert sessions.moments(65.0)[0] < 65.2, "a minute's pause says little about the next time"
    del session, silent, punctual
    assert sessions.moments(65.0) == [], "a session that ended is not expected"


@pytest.mark.parametrize("seconds", [0.0002, 0.001, 0.02])
def test_a_steady_turn_around_is_learnt(seconds: float) -> None:
    turn_around = TurnAround.first(0.05)
    for _ in range(60):
        turn_around = turn_around.observed(seconds)
    assert turn_around.latest_seconds == pytest.approx(seconds, rel=0.01)


def steps_of_lockstep_clients(turn_around: float, gather: bool, clients: int = 8, steps: int = 200) -> list[int]:
    """Rows of each step where `clients` come back `turn_around` after an answer, one 20 us after the other.

    A step takes 20 ms and 2 ms for every row.
    """
    expected = ExpectedSessions()
    sessions = [_Session() for _ in range(clients)]
    arrivals = [(0.00002 * index, index) for index in range(clients)]
    heapq.heapify(arrivals)
    now = last_step = free_since = 0.0
    rows = []

    def arrive(until: float) -> list[int]:
        here = []
        while arrivals and arrivals[0][0] <= until:
            moment, index = heapq.heappop(arrivals)
            expected.arrived(sessions[index], moment)
            here.append(index)
        return here

    for _ in range(steps):
        ready = arrive(now)
        if not ready:
            now = arrivals[0][0]
            ready = arrive(now)
        ready_since = max(now, free_since)
        while gather:
            until = gather_until(ready_since, expected.moments(ready_since), last_step)
            if until <= now:
                break
            now = min(until, arrivals[0][0]) if arrivals else until
            ready += arrive(now)
        rows.append(len(ready))
        last_step = 0.02 + 0.002 * len(ready)
        now += last_step
        free_since = now
        for order, index in enumerate(ready):
            expected.answered(sessions[index], now)
            heapq.heappush(arrivals, (now + turn_around + 0.00002 * order, index))
    return rows


@pytest.mark.parametrize("turn_around", [0.0002, 0.001])
def test_sessions_in_lockstep_stay_together(turn_around: float) -> None:
    """Without the pause the first one back starts a step alone, and it stays that way."""
    assert steps_of_lockstep_clients(turn_around, gather=False)[-2:] in ([1, 7], [7, 1])
    assert steps_of_lockstep_clients(turn_around, gather=True)[-20:] == [8] * 20
