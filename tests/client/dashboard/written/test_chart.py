"""Curves as paths: where a value is, and where there is none."""

from __future__ import annotations

import re

import pytest
from blockswarm.client.dashboard.written.chart import HEIGHT, WIDTH, chart, round_up
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=30))
def test_every_value_is_a_point_of_the_path_and_gaps_are_gaps(values: list[float | None]) -> None:
    made = chart("t", "u", values)
    points = re.findall(r"([ML])([\d.]+) ([\d.]+)", made.path)
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    assert len(points) == len(known)
    for (letter, x, y), (index, value) in zip(points, known, strict=True):
        assert (letter == "M") == (index == 0 or values[index - 1] is None)
        assert abs(float(x) - index * WIDTH / max(1, len(values) - 1)) < 0.06
        assert abs(float(y) - HEIGHT * (1 - value / made.top)) < 0.06
        assert 0 <= float(y) <= HEIGHT
    assert (made.latest_index, made.latest) == (known[-1] if known else (None, None))


def test_a_fixed_scale_cuts_what_is_above_it() -> None:
    assert chart("t", "%", [150.0], top=100.0).path == "M0.0 0.0h0"


@pytest.mark.parametrize(
    ("value", "edge"), [(0, 1), (1, 1), (1.1, 2), (3, 5), (5.1, 10), (99, 100), (101, 200), (0.03, 0.05), (5e-324, 1)]
)
def test_round_numbers(value: float, edge: float) -> None:
    assert round_up(value) == pytest.approx(edge)
