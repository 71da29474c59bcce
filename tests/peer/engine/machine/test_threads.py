"""The number of threads follows what was measured."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.machine.threads import available_cores, fewest_worthwhile, one_thread, set_threads
from blockswarm.proto.weights.kept import KeptMeasurements


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


@pytest.mark.skipif(available_cores() == 1, reason="one core: nothing to choose")
def test_a_choice_is_measured_once_per_machine(tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    ticks = iter(2.0**n for n in range(1000))
    first = set_threads(None, 64, lambda: next(ticks), environment={}, kept=KeptMeasurements(path))
    later = KeptMeasurements(path)
    assert set_threads(None, 64, lambda: pytest.fail("measured again"), environment={}, kept=later) == first
    for garbled in (-3, 10**400):
        path.write_text(json.dumps({key: {"1": garbled} for key in json.loads(path.read_text())}))
        clock = map((2.0).__pow__, itertools.count()).__next__
        assert set_threads(None, 64, clock, environment={}, kept=KeptMeasurements(path)) == first


def test_one_thread_is_for_a_while() -> None:
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    with pytest.raises(ValueError), one_thread():
        int("no number")
    assert torch.get_num_threads() == 2
