"""The budget of a search ends it on time, from outside too, and before memory is taken."""

from __future__ import annotations

import pytest
from blockswarm.routing.route.budget import UNLIMITED, Meter, OverBudgetError, SearchBudget
from support.ticks import Ticks


def test_a_search_may_go_on_until_its_time_is_over_and_again_when_it_is_extended() -> None:
    meter = Meter(SearchBudget(seconds=2.0), Ticks())  # which reads 1, 2, 3, ...
    meter.check()
    meter.check()
    with pytest.raises(OverBudgetError, match=r"more than 2.0 s"):
        meter.check()
    meter.extend(1 / 2)  # until 6
    meter.check()
    with pytest.raises(OverBudgetError):
        meter.check()


def test_a_search_that_was_stopped_ends_though_it_has_time() -> None:
    meter = Meter(SearchBudget(), lambda: 0.0)
    meter.check()
    meter.stop()
    meter.extend(float("inf"))
    with pytest.raises(OverBudgetError, match="stopped"):
        meter.check()


def test_memory_is_refused_before_it_is_taken() -> None:
    meter = Meter(SearchBudget(nbytes=1 << 20), lambda: 0.0)
    meter.check_bytes(1 << 20)
    with pytest.raises(OverBudgetError, match="2 MiB"):
        meter.check_bytes(2 << 20)
    UNLIMITED.check_bytes(1e30)
