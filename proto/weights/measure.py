"""Tries the forms of the weights on this machine: the time and the accuracy of products with a matrix of a shape."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .forms import Packing
from .packed import PackedMatrix, int8_weight

TRIAL_ROWS: Mapping[int, int] = {1: 3, 2: 1, 8: 2, 48: 1}
"""The numbers of rows that are tried, and how much each counts: a session alone, one that guesses ahead or has company,
a well-used peer, a prompt."""

TWO_ROW_FORMS = (Packing.INT8, Packing.INT8_REDUCED)
INT8_FORMS = (Packing.INT8_ROWS, *TWO_ROW_FORMS)
"""The forms of int8 on a CPU, the more exact first."""

_MAX_ELEMENTS = 1 << 21
_MOST_COLUMNS = 1 << 16
"""More than any model has; a configuration may say anything, and its weights are looked at later."""
_FEWEST_OUTPUTS = 64
_ACCURACY_OUTPUTS = 128
_ACCURACY_ROWS = 16
_BYTES_IN_ALL, _MOST_COPIES = 48 << 20, 12
"""More than most caches hold: decoding reads weights that were not used for a whole step."""
_MEMORY_ROWS = 1
"""With more rows than this, products take their time for computing, and one copy is enough."""
_REPEATS = 5

_Multiply = Callable[[torch.Tensor], torch.Tensor]
Pack = Callable[[Packing, Sequence[torch.Tensor]], PackedMatrix]
"""As `Packing.pack`."""


@dataclass(frozen=True)
class Trial:
    """The time and the accuracy of a form of the weights on this machine."""

    seconds: Mapping[int, float]
    """Number of rows -> time of one product."""
    relative_error: float
    """See `relative_error`."""

    @property
    def typical_seconds(self) -> float:
        """Geometric mean over the numbers of rows, each as often as it counts."""
        weights = {rows: TRIAL_ROWS.get(rows, 1) for rows in self.seconds}
        logarithms = (weights[rows] * math.log(seconds) for rows, seconds in self.seconds.items())
        return math.exp(sum(logarithms) / sum(weights.values()))


@torch.inference_mode()
def try_packings(
    outputs: int,
    columns: int,
    dtype: torch.dtype,
    packings: Sequence[Packing],
    pack: Pack = Packing.pack,
    repeat_seconds: float = 0.25,
) -> dict[Packing, Trial]:
    """Time and check products with a random weight (outputs, columns); few enough of the outputs are tried for it to
    take a fraction of a second.

    The forms take turns, so that what else the machine does meets all alike. Several copies of the weight are read
    one after the other, as a stage reads its blocks, so that none is found in a cache where it will not be.  No repeat
    begins after `repeat_seconds`: on a busy machine threads wait for each other, and a start must not.
    """
    generator = torch.Generator().manual_seed(0)
    columns = min(columns, _MOST_COLUMNS)
    outputs = max(_FEWEST_OUTPUTS, min(outputs, _MAX_ELEMENTS // columns // _FEWEST_OUTPUTS * _FEWEST_OUTPUTS))
    weight = _of_few_bits(torch.empty(outputs, columns).uniform_(-1, 1, generator=generator)).to(dtype)
    errors = {packing: relative_error(packing, columns, dtype, pack) for packing in packings}
    copies = max(1, min(_MOST_COPIES, _BYTES_IN_ALL // weight.nbytes))
    multipliers = {
        packing: [_multiplier(packing, weight.clone(), pack) for _ in range(copies)]
        for packing in packings
        if math.isfinite(errors[packing])
    }
    seconds = _time(multipliers, columns, dtype, repeat_seconds)
    return {
        packing: Trial(seconds.get(packing, dict.fromkeys(TRIAL_ROWS, math.inf)), errors[packing])
        for packing in packings
    }


def _of_few_bits(weight: torch.Tensor) -> torch.Tensor:
    """Numbers that bfloat16 and float16 have as well, so that every form may hold them."""
    return weight.mul_(64).round_().div_(64)


def _time(
    multipliers: Mapping[Packing, Sequence[_Multiply]], columns: int, dtype: torch.dtype, repeat_seconds: float
) -> dict[Packing, dict[int, float]]:
    """Per copy the least of a few, and of those the mean: what disturbs a measurement only ever makes it longer."""
    values = {rows: torch.linspace(-1, 1, rows * columns).view(rows, columns).to(dtype) for rows in TRIAL_ROWS}
    best = {
        packing: {rows: [math.inf] * (len(copies) if rows <= _MEMORY_ROWS else 1) for rows in TRIAL_ROWS}
        for packing, copies in multipliers.items()
    }
    ends = time.perf_counter() + repeat_seconds
    for repeat, rows, (packing, copies) in itertools.product(range(_REPEATS), TRIAL_ROWS, multipliers.items()):
        if repeat and time.perf_counter() > ends:
            break
        times = best[packing][rows]
        for copy, multiply in enumerate(copies[: len(times)]):
            started = time.perf_counter()
            multiply(values[rows])
            times[copy] = min(times[copy], time.perf_counter() - started)
    return {
        packing: {rows: sum(times) / len(times) for rows, times in by_rows.items()} for packing, by_rows in best.items()
    }


def _multiplier(packing: Packing, weight: torch.Tensor, pack: Pack) -> _Multiply:
    if packing is Packing.PLAIN:
        return lambda rows: torch.nn.functional.linear(rows, weight)
    return pack(packing, [weight]).multiply


@torch.inference_mode()
def relative_error(
    packing: Packing, columns: int, dtype: torch.dtype = torch.float32, pack: Pack = Packing.pack
) -> float:
    """How far this processor's products in a form are from the best that the form can give, relative, in the norm.

    Infinite if this torch or processor cannot compute it. The larger of two: for rows with outliers, and for values at
    the ends of their ranges, whose sums overflow where a processor adds in 16 bits. The rows are float32, but those of
    forms that keep the numbers are in `dtype`, which decides whether there is a kernel.
    """
    if not packing.keeps_numbers:
        dtype = torch.float32  # the others' error would be hidden behind the rounding to 16 bits
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(_ACCURACY_OUTPUTS, columns, generator=generator)
    rows = torch.randn(_ACCURACY_ROWS, columns, generator=generator)
    rows[:, :: max(1, columns // 4)] *= 20
    signs = normal.sign()
    errors = []
    for case in ((_of_few_bits(normal), rows), (signs, signs[:_ACCURACY_ROWS])):
        case_weight, case_rows = (values.to(dtype) for values in case)
        try:
            found = _multiplier(packing, case_weight, pack)(case_rows).double()
        except (RuntimeError, AttributeError):  # an operator that is not there, or has no kernel for this processor
            return math.inf
        exact = case_rows.double() @ _held_values(packing, case_weight).T
        errors.append(((found - exact).norm() / exact.norm()).item())
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def _held_values(packing: Packing, weight: torch.Tensor) -> torch.Tensor:
    """The weight in float64 as the packed matrix holds it, where that is what its products are measured against."""
    if packing not in INT8_FORMS:
        return weight.double()
    values, scales = int8_weight(weight)
    return values.double() * scales.double()[:, None]
