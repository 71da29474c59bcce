"""The benchmark of endpoint and pages: its interval, and its time per token."""

from __future__ import annotations

import random
import statistics

import pytest
from support.benchlib import benchlib

faces = benchlib("faces")


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """With nine values of any distribution: 96 % (binomial, exactly 0.961)."""
    rng = random.Random(0)
    hits = 0
    for _ in range(4000):
        median, low, high = faces.median_of([rng.expovariate(1.0) for _ in range(9)])
        assert low <= median <= high
        hits += low <= 0.6931471805599453 <= high
    assert hits / 4000 == pytest.approx(0.961, abs=0.012)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 32])
def test_an_interval_of_few_values_is_all_of_them(count: int) -> None:
    values = [float(value) for value in range(count)]
    median, low, high = faces.median_of(values)
    assert (median, low <= median <= high) == (statistics.median(values), True)


def test_the_time_per_token_begins_with_the_first_one() -> None:
    assert faces.Text("abc", 5, 1.0, 3.0).token_seconds == 0.5
    assert faces.Text("a", 1, 1.0, 1.0).token_seconds == 0.0
