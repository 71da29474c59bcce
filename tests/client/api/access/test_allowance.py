"""Budgets are refilled evenly, shared by requests that run at the same time, and pay for what was used only."""

from __future__ import annotations

import contextlib

import pytest
from blockswarm.client.api.access.allowance import Allowance, Budget
from blockswarm.client.api.openai.errors import ApiError
from hypothesis import given
from hypothesis import strategies as st


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def refusal(allowance: Allowance) -> ApiError:
    with pytest.raises(ApiError) as refused, allowance.spending():
        pass
    assert refused.value.status == 429
    return refused.value


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), max_size=20))
def test_a_budget_gives_its_size_and_what_was_refilled_and_no_more(events: list[tuple[float, float]]) -> None:
    clock = Clock()
    budget = Budget(10, 60, clock)
    taken = 0.0
    for pause, amount in events:
        clock.now += pause
        if budget.left() >= amount:
            budget.take(amount)
            taken += amount
        assert budget.left() <= 10
    assert taken <= 10 + (clock.now - Clock.now) / 6 + 1e-6


def test_requests_per_minute() -> None:
    clock = Clock()
    allowance = Allowance(2, None, clock)
    for _ in range(2):
        with allowance.spending():
            pass
    error = refusal(allowance)
    assert (error.code, error.headers()) == ("rate_limit_exceeded", {"Retry-After": "30"})
    clock.now += 30
    with allowance.spending():
        pass


def test_tokens_that_a_request_may_need_are_taken_until_it_ends() -> None:
    clock = Clock()
    allowance = Allowance(None, 100, clock)
    with allowance.spending() as first:
        first.reserve(100)
        first.use(10)
        error = refusal(allowance)
        assert error.code == "insufficient_quota"
    with allowance.spending() as second:
        second.reserve(95)
        second.use(90)
        refusal(allowance)
    refusal(allowance)
    clock.now += 86400 / 50
    with allowance.spending():
        pass


def test_requests_that_came_together_overdraw_a_budget_by_one() -> None:
    """All were let in before the first of them had its slot, and could say what it may need."""
    allowance = Allowance(None, 100, Clock())
    with allowance.spending() as first, allowance.spending() as second, allowance.spending() as third:
        first.reserve(90)
        second.reserve(90)
        with pytest.raises(ApiError) as refused:
            third.reserve(90)
        assert (refused.value.status, refused.value.code) == (429, "insufficient_quota")
    with allowance.spending() as fourth:
        fourth.reserve(100)


def test_a_request_that_fails_pays_for_what_it_used() -> None:
    allowance = Allowance(None, 100, Clock())
    with contextlib.suppress(RuntimeError), allowance.spending() as spending:
        spending.reserve(100)
        spending.use(40)
        raise RuntimeError
    with allowance.spending() as spending:
        spending.use(60)
    refusal(allowance)


def test_no_limits() -> None:
    allowance = Allowance(None, None, Clock())
    for _ in range(100):
        with allowance.spending() as spending:
            spending.reserve(10**9)
            spending.use(10**9)
