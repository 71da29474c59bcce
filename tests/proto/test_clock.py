"""Unix time goes on when somebody sets the clock of the machine, until others have decided whether it is right now."""

from __future__ import annotations

import time

import pytest
from blockswarm.proto.clock import SteadyClock, elapsed_seconds
from blockswarm.proto.wire.timing import CLOCK_STEP_SECONDS

START = 1.7e9
HOUR = 3600.0


class Machine:
    """A machine's clock, and one that nobody sets."""

    def __init__(self) -> None:
        self.wall, self.elapsed = START, 50.0
        self.clock = SteadyClock(lambda: self.wall, lambda: self.elapsed)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.elapsed += seconds


@pytest.mark.parametrize("step", [-HOUR, HOUR, -3.0, 3.0])
def test_time_goes_on_where_the_clock_is_set(step: float) -> None:
    machine = Machine()
    machine.wait(10.0)
    assert machine.clock() == START + 10
    machine.wall += step
    machine.wait(5.0)
    assert machine.clock() == START + 15
    assert machine.clock.machine() == START + 15 + step
    assert machine.clock.set_by_seconds == pytest.approx(step)
    machine.wall -= step
    assert machine.clock.set_by_seconds == 0.0


def test_small_corrections_are_followed_however_many_they_are() -> None:
    machine = Machine()
    for _ in range(100):
        machine.wait(1.0)
        machine.wall += 0.9 * CLOCK_STEP_SECONDS
        assert machine.clock() == machine.wall
    assert machine.clock.set_by_seconds == 0.0


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_what_most_others_say_decides(step: float) -> None:
    for others, follows in (
        ([], True),  # alone
        ([0.1, -0.2, 0.3], False),  # all are where this one was
        ([step, step + 1, 0.0], True),  # it was wrong before
        ([step, 0.0], True),
        ([step, 0.0, 0.0], False),
        ([1e9, -1e9, float("nan"), 0.0], False),  # one that lies votes once, and makes up no time
    ):
        machine = Machine()
        machine.wall += step
        assert machine.clock.decide(others) == follows, others
        assert machine.clock() == (machine.wall if follows else START)
        assert (machine.clock.set_by_seconds == 0.0) == follows
        machine.wait(7.0)
        assert machine.clock() == (machine.wall if follows else START + 7)


def test_it_is_the_time_of_the_machine() -> None:
    clock, began = SteadyClock(), time.time()
    assert began - 1.0 < clock() < time.time() + 1.0
    before = elapsed_seconds()
    assert elapsed_seconds() >= before
