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
from .measure import TRIAL_ROWS, Trial, relative_error, try_packings

MAX_ERRORS: Mapping[Packing, float] = {
    Packing.INT8_ROWS: 1e-5,
    Packing.INT8: 1e-3,
    Packing.INT8_REDUCED: 4e-3,
    Packing.INT4: 0.15,
}
"""The largest `relative_error` with which a form that rounds is right.

int8: the rounding of the activations alone. In exact arithmetic 4e-5 to 3.3e-4 for 32 to 28,672 columns, and four times
that with the reduced range, which has one bit less in each of its two rows. Sums that saturate cost 0.25 to 0.5. The
compiled product rounds none.
int4: rounding the weights to 16 levels costs 0.08 to 0.10 where they are normally distributed."""
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


def fastest_right(forms: Sequence[Packing], trials: Mapping[Packing, Trial]) -> Packing | None:
    """The fastest of some forms that round whose products are right; None if none is. Pure.

    Of two that differ in a bit only, the more exact one.
    """
    right = [form for form in forms if form in trials and trials[form].relative_error <= MAX_ERRORS[form]]
    if Packing.INT8 in right:  # with VNNI both forms are right and equally fast, and the clock would draw lots
        right = [form for form in right if form is not Packing.INT8_REDUCED]
    return min(right, key=lambda form: trials[form].typical_seconds, default=None)


@functools.cache
def int8_form(columns: int) -> Packing:
    """The int8 form of two rows for this processor: with all bits of the activations where their products are right.

    Where neither form's are, `fastest_right` refuses the one that is returned.
    """
    right = relative_error(Packing.INT8, columns) <= MAX_ERRORS[Packing.INT8]
    return Packing.INT8 if right else Packing.INT8_REDUCED


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
