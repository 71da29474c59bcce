"""Events happen in one order, whatever the order in which they were scheduled; failures stop the run."""

from __future__ import annotations

import math

import pytest
from blockswarm.routing.sim.kernel import Kernel
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.long
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-2, 2))))
def test_events_run_by_time_then_priority_then_order(planned: list[tuple[int, int]]) -> None:
    kernel = Kernel()
    seen: list[tuple[float, int, int]] = []
    for number, (seconds, priority) in enumerate(planned):
        action = lambda number=number, priority=priority: seen.append((kernel.now_seconds, priority, number))  # noqa: E731
        kernel.at(seconds, action, priority)
    kernel.run()
    assert len(seen) == len(planned)
    assert seen == sorted(seen)


def test_an_action_may_schedule_more_also_at_once() -> None:
    kernel = Kernel()
    seen: list[float] = []

    def tick() -> None:
        seen.append(kernel.now_seconds)
        if len(seen) < 4:
            kernel.after(0.0 if len(seen) == 2 else 1.5, tick)

    kernel.after(1.0, tick)
    kernel.run()
    assert seen == [1.0, 2.5, 2.5, 4.0]


def test_a_cancelled_event_does_nothing() -> None:
    kernel = Kernel()
    seen: list[str] = []
    event = kernel.at(2, lambda: seen.append("cancelled"))
    kernel.at(1, event.cancel)
    done = kernel.at(1, lambda: seen.append("done"))
    kernel.run()
    done.cancel()  # also after it ran
    assert seen == ["done"]


@pytest.mark.parametrize("seconds", [-1.0, 0.5, math.nan])
def test_nothing_happens_in_the_past(seconds: float) -> None:
    kernel = Kernel()
    kernel.at(1, lambda: None)
    kernel.run()
    with pytest.raises(ValueError, match="cannot schedule"):
        kernel.at(seconds, lambda: None)


def test_a_failure_stops_the_run() -> None:
    kernel = Kernel()
    seen: list[str] = []

    def fail() -> None:
        raise RuntimeError("in the model")

    kernel.at(1, fail)
    kernel.at(2, lambda: seen.append("later"))
    with pytest.raises(RuntimeError, match="in the model"):
        kernel.run()
    assert not seen
