"""The forms of a matrix tried on this machine, once: what was measured is kept, and the fastest exact form chosen."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..wire.tensors import DTYPES
from .forms import Packing
from .kept import KeptMeasurements, machine_and_versions, number_of
from .measure import TRIAL_ROWS, Trial, try_packings

MAX_EXACT_ERROR = 1e-5
"""The largest `relative_error` of a form that keeps the numbers, unless the plain product has half as much."""
MEMORY_IS_WORTH = 1.25
"""A form that keeps the numbers in half of the memory is taken unless another one is faster than it by this factor."""


def tried(
    outputs: int, columns: int, dtype: str, forms: tuple[Packing, ...], kept: KeptMeasurements | None = None
) -> Mapping[Packing, Trial]:
    """Try forms on a matrix of that shape; the same question is measured once per process, and once in `kept`."""
    threads = torch.get_num_threads()
    if kept is None:
        return _measured(outputs, columns, dtype, forms, threads)
    question = [f"({outputs}, {columns})", dtype, ", ".join(form.value for form in forms), f"{threads} threads"]
    conditions = " | ".join(["forms", *question, machine_and_versions("torch", "llvmlite")])
    earlier = kept.load(conditions)
    if earlier is not None:
        try:
            return _trials_of(earlier, forms)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            kept.refuse(error)
    found = _measured(outputs, columns, dtype, forms, threads)
    kept.save(conditions, _to_keep(found))
    return found


def fastest_exact(trials: Mapping[Packing, Trial]) -> Packing:
    """The fastest of the tried forms that keep the numbers, the plain one among them. Pure."""
    bound = max(MAX_EXACT_ERROR, 2 * trials[Packing.PLAIN].relative_error)
    exact = [form for form in trials if form.keeps_numbers and trials[form].relative_error <= bound]
    return min(
        (Packing.PLAIN, *exact),
        key=lambda form: trials[form].typical_seconds / (MEMORY_IS_WORTH if form.saves_memory else 1.0),
    )


@functools.lru_cache(maxsize=64)
def _measured(
    outputs: int, columns: int, dtype: str, forms: tuple[Packing, ...], threads: int
) -> Mapping[Packing, Trial]:
    """`threads` is part of the question: packed and plain products gain differently from them."""
    return try_packings(outputs, columns, DTYPES[dtype], forms)


def _to_keep(trials: Mapping[Packing, Trial]) -> dict[str, Any]:
    """As JSON; forms that cannot be computed here have no entry."""
    return {
        form.value: {"error": trial.relative_error, "seconds": {str(rows): s for rows, s in trial.seconds.items()}}
        for form, trial in trials.items()
        if math.isfinite(trial.relative_error)
    }


def _trials_of(kept: Any, forms: Sequence[Packing]) -> dict[Packing, Trial]:
    """The trials that `_to_keep` was given. Raises ValueError, KeyError, TypeError or AttributeError."""
    trials = {}
    for name, entry in kept.items():
        form = Packing(name)
        seconds = {rows: number_of(entry["seconds"][str(rows)]) for rows in TRIAL_ROWS}
        error = number_of(entry["error"])
        if (
            form not in forms
            or not all(0 < value < math.inf for value in seconds.values())
            or not 0 <= error < math.inf
        ):
            raise ValueError(f"{name}: {entry}")
        trials[form] = Trial(seconds, error)
    if Packing.PLAIN not in trials:
        raise ValueError("no plain product")
    return trials
