"""The trial of a machine is kept, checked when it is read, and decides by time, exactness and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blockswarm.proto.weights.forms import Packing
from blockswarm.proto.weights.kept import KeptMeasurements
from blockswarm.proto.weights.measure import TRIAL_ROWS, Trial
from blockswarm.proto.weights.trials import MAX_EXACT_ERROR, MEMORY_IS_WORTH, fastest_exact, tried

FORMS = (Packing.PLAIN,)


def trial(seconds: float, error: float = 1e-7) -> Trial:
    return Trial(dict.fromkeys(TRIAL_ROWS, seconds), error)


def test_what_an_earlier_run_measured_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    measured = tried(64, 64, "float32", FORMS, KeptMeasurements(path))
    (entry,) = (content := json.loads(path.read_text())).values()
    assert entry["plain"]["error"] == measured[Packing.PLAIN].relative_error
    entry["plain"]["seconds"]["1"] = 77.0
    path.write_text(json.dumps(content))
    assert tried(64, 64, "float32", FORMS, KeptMeasurements(path))[Packing.PLAIN].seconds[1] == 77.0


@pytest.mark.parametrize("value", [None, [], {}, {"plain": {"error": 0, "seconds": {"1": -1}}}, {"strange": {}}])
def test_what_makes_no_sense_is_measured_again(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    tried(64, 64, "float32", FORMS, KeptMeasurements(path))
    content = dict.fromkeys(json.loads(path.read_text()), value)
    path.write_text(json.dumps(content))
    found = tried(64, 64, "float32", FORMS, KeptMeasurements(path))
    assert all(seconds > 0 for seconds in found[Packing.PLAIN].seconds.values())


@pytest.mark.parametrize(
    ("form", "seconds", "error", "is_chosen"),
    [
        (Packing.ROWS, 0.99, 1e-7, True),
        (Packing.ROWS, 1.01, 1e-7, False),
        (Packing.ROWS_BFLOAT16, MEMORY_IS_WORTH - 0.01, 1e-7, True),
        (Packing.ROWS_BFLOAT16, MEMORY_IS_WORTH + 0.01, 1e-7, False),
        (Packing.ROWS_BFLOAT16, 0.5, 2 * MAX_EXACT_ERROR, False),
        (Packing.INT8_ROWS, 0.1, 1e-7, False),
    ],
)
def test_the_fastest_form_of_the_same_numbers(form: Packing, seconds: float, error: float, is_chosen: bool) -> None:
    assert (fastest_exact({Packing.PLAIN: trial(1.0), form: trial(seconds, error)}) is form) is is_chosen
