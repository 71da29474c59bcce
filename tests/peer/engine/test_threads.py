"""The number of threads follows what was measured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from blockswarm.peer.engine.threads import available_cores, fewest_worthwhile, set_threads


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 0.55, 4: 0.3, 8: 0.29}, 4),
        ({1: 1.0, 2: 0.95}, 1),
        ({1: 1.0, 2: 1.4, 4: 0.5}, 4),
        ({1: 1.0, 2: 5.0, 4: 9.0}, 1),
        ({1: 1.0, 2: 0.6, 6: 0.2}, 6),
    ],
)
def test_threads_that_help_little_are_not_taken(seconds: dict[int, float], best: int) -> None:
    assert fewest_worthwhile(seconds) == best


def test_what_was_asked_for_is_set_without_measuring() -> None:
    assert set_threads(3, 64, lambda: pytest.fail("no need to measure")) == (3, {})
    assert torch.get_num_threads() == 3


def test_the_usual_variable_is_respected() -> None:
    two = {"OMP_NUM_THREADS": "2"}
    assert set_threads(None, 64, lambda: pytest.fail("no need to measure"), environment=two) == (2, {})
    assert set_threads(1, 64, lambda: pytest.fail("no need to measure"), environment=two) == (1, {})


def test_a_choice_is_measured() -> None:
    """By a clock on which every run takes longer than the one before: the first number wins."""
    ticks = iter(2.0**n for n in range(1000))
    threads, seconds = set_threads(None, 64, lambda: next(ticks), environment={})
    assert threads == torch.get_num_threads() == 1
    assert max(seconds, default=1) == available_cores()
