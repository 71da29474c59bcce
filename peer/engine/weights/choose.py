"""Which form the weights of this peer take, found out by trying the forms on this machine when it starts.

Measure, then decide: `try_packings` takes times and errors on a matrix of the model's own shape, `choose_packing` is
a pure function over them.

`auto` keeps the numbers that the model was published with.  The promise that a swarm gives the same tokens as the
model alone is for float32, a chain is only as exact as its least exact peer, and an operator does not know what
the clients rely on.  So `auto` and `none` choose the fastest form of the same numbers, and `auto` says what int8 would
gain; to trade digits for speed and memory is one word on the command line, and the clients see it in the record.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from ....proto.errors import UnsupportedModel, UsageError
from ....proto.model.checkpoint import Checkpoint
from ....proto.model.family import find_blocks
from ....proto.model.tiny import random_model, tiny_config
from ....proto.wire.precision import QUANTIZATIONS
from ....proto.wire.tensors import DTYPES
from ..blocks.selfcheck import TOLERANCE
from ..device import CPU
from .packed import PackedMatrix, int8_weight
from .packed_gpu import check_bitsandbytes
from .quantize import Packing, pack_block, shared_inputs

MAX_ERRORS: Mapping[Packing, float] = {
    Packing.INT8: 1e-3,
    Packing.INT8_REDUCED: 4e-3,
    Packing.INT4: 0.15,
}
"""The largest `relative_error` with which a form that rounds is right.

int8: the rounding of the activations alone. In exact arithmetic 4e-5 to 3.3e-4 for 32 to 28,672 columns, and four times
that with the reduced range, which has one bit less in each of its two rows. Sums that saturate cost 0.25 to 0.5.
int4: rounding the weights to 16 levels costs 0.08 to 0.10 where they are normally distributed."""
MAX_PREPACKED_ERROR = 1e-5
"""The largest `relative_error` of a form that keeps the numbers, unless the plain product has half as much."""

DECODE_ROWS = (1, 8)
"""The numbers of rows whose time decides: a session alone, and a well-used peer."""

_MAX_ELEMENTS = 1 << 22
_FEWEST_OUTPUTS = 64
_ACCURACY_OUTPUTS = 128
_ACCURACY_ROWS = 16
_COPIES = 8
_REPEATS = 5


_Multiply = Callable[[torch.Tensor], torch.Tensor]
Pack = Callable[[Packing, Sequence[torch.Tensor]], PackedMatrix]
"""As `Packing.pack`."""

INT8_FORMS = (Packing.INT8, Packing.INT8_REDUCED)
"""The forms of int8 on a CPU, the more exact first."""


@dataclass(frozen=True)
class Trial:
    """The time and the accuracy of a form of the weights on this machine."""

    seconds: Mapping[int, float]
    """Number of rows -> time of one product."""
    relative_error: float
    """See `relative_error`."""

    @property
    def typical_seconds(self) -> float:
        """Geometric mean over the numbers of rows, so that each weighs the same."""
        return math.exp(sum(math.log(seconds) for seconds in self.seconds.values()) / len(self.seconds))


@dataclass(frozen=True)
class PackingChoice:
    """The form to load, and why, for the log."""

    packing: Packing
    reason: str


class MachineProbe:
    """The questions that are put to this machine."""

    def check_packing(self, config: PreTrainedConfig) -> None:
        """See `check_packing`."""
        check_packing(config)

    def try_forms(self, outputs: int, columns: int, dtype: str, quantize: str) -> Mapping[Packing, Trial]:
        """Try the forms that `quantize` chooses among; the same question is asked once per process."""
        return _cached_trials(outputs, columns, dtype, quantize, torch.get_num_threads())

    def check_bitsandbytes(self) -> None:
        """See `check_bitsandbytes`."""
        check_bitsandbytes()


PROBE = MachineProbe()


def find_packing(
    checkpoint: Checkpoint, dtype: str, quantize: str, device: torch.device = CPU, probe: MachineProbe = PROBE
) -> PackingChoice:
    """Try the forms on a matrix of the checkpoint's largest shape and choose one for `quantize`.

    Takes less than a second on a CPU of today; the same question is measured once per process. On a GPU nothing is
    tried, see `choose_gpu_packing`. Raises UsageError for a form that the device cannot compute, with what to choose
    instead, and UnsupportedModel if int8, int4 or nf4 is wanted of a family whose matrices cannot be packed.
    """
    if device != CPU:
        choice = choose_gpu_packing(quantize)
        if choice.packing is Packing.NF4:
            probe.check_bitsandbytes()
        if choice.packing is not Packing.PLAIN:
            probe.check_packing(checkpoint.config)
        return choice
    _check_choice(quantize)
    try:
        probe.check_packing(checkpoint.config)
    except UnsupportedModel as error:
        if quantize not in ("auto", "none"):
            raise
        return PackingChoice(Packing.PLAIN, str(error))
    outputs, columns = _largest_matrix(checkpoint)
    return choose_packing(quantize, probe.try_forms(outputs, columns, dtype, quantize))


def choose_packing(quantize: str, trials: Mapping[Packing, Trial]) -> PackingChoice:
    """The form for `quantize` ("auto", "none", "int8", "int4") given what was tried. Pure.

    Raises UsageError if none is exact enough, or if there is no such form.
    """
    _check_choice(quantize)
    if quantize == "int4":
        return _accurate(quantize, trials, [Packing.INT4])
    if quantize == "int8":
        return _accurate(quantize, trials, INT8_FORMS)
    plain, prepacked = trials[Packing.PLAIN], trials.get(Packing.PREPACKED)
    choice = PackingChoice(Packing.PLAIN, "weights stay as they are, the fastest form of their numbers here")
    fastest = plain
    keeps_numbers = prepacked is not None and prepacked.relative_error <= max(
        MAX_PREPACKED_ERROR, 2 * plain.relative_error
    )
    if prepacked is not None and keeps_numbers and prepacked.typical_seconds < plain.typical_seconds:
        gain = plain.typical_seconds / prepacked.typical_seconds
        choice = PackingChoice(Packing.PREPACKED, f"weights are packed for this processor, {gain:.1f}x as fast")
        fastest = prepacked
    if quantize == "auto":
        choice = PackingChoice(choice.packing, choice.reason + _what_int8_would_gain(trials, fastest))
    return choice


def choose_gpu_packing(quantize: str) -> PackingChoice:
    """The form on a GPU, where each name means one and what is asked for is taken. Pure. Raises UsageError."""
    _check_known(quantize)
    match quantize:
        case "int8":
            return PackingChoice(Packing.INT8_WEIGHTS, "int8 weights, unpacked for every product")
        case "nf4":
            return PackingChoice(Packing.NF4, "nf4 weights, unpacked for every product")
        case "int4":
            raise UsageError("int4 weights are for CPUs", hint="Start with --quantize nf4, the 4 bits for GPUs.")
    return PackingChoice(Packing.PLAIN, "weights stay as they are")


@torch.inference_mode()
def check_packing(config: PreTrainedConfig, pack: Callable[..., object] = pack_block) -> None:
    """Compare a tiny model of the kind with its packed copy. Raises UnsupportedModel if they differ.

    The packing only changes how products are computed; this finds families that do more with a linear than call it.
    Takes about 0.1 s.
    """
    tiny = tiny_config(config)
    tokens = torch.arange(3, 12)[None]
    model = random_model(tiny)
    expected = model(input_ids=tokens, use_cache=False).logits
    try:
        for block in find_blocks(model, tiny.num_hidden_layers).blocks:
            pack(block, Packing.PREPACKED, shared_inputs(config))
        difference = (model(input_ids=tokens, use_cache=False).logits - expected).abs().max().item()
    except Exception as error:  # whatever goes wrong inside a family's code is the reason
        raise _cannot_be_packed(config, f"{type(error).__name__}: {error}") from error
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):  # NaN differs
        raise _cannot_be_packed(config, f"it differs by {difference:.1e}")


def _cannot_be_packed(config: PreTrainedConfig, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the weights of {config.model_type} cannot be packed: {reason}", hint="Start with --quantize none."
    )


@torch.inference_mode()
def try_packings(
    outputs: int, columns: int, dtype: torch.dtype, packings: Sequence[Packing], pack: Pack = Packing.pack
) -> dict[Packing, Trial]:
    """Time and check products with a random weight (outputs, columns); few enough of the outputs are tried for it to
    take a fraction of a second.

    The forms take turns, so that what else the machine does meets all alike. Several copies of the weight are read
    one after the other, as a stage reads its blocks, so that none is found in a cache where it will not be.
    """
    generator = torch.Generator().manual_seed(0)
    outputs = max(_FEWEST_OUTPUTS, min(outputs, _MAX_ELEMENTS // columns))
    weight = torch.empty(outputs, columns).uniform_(-1, 1, generator=generator).to(dtype)
    errors = {packing: relative_error(packing, columns, dtype, pack) for packing in packings}
    multipliers = {
        packing: [_multiplier(packing, weight.clone(), pack) for _ in range(_COPIES)]
        for packing in packings
        if math.isfinite(errors[packing])
    }
    seconds = _time(multipliers, columns, dtype)
    return {
        packing: Trial(seconds.get(packing, dict.fromkeys(DECODE_ROWS, math.inf)), errors[packing])
        for packing in packings
    }


def _accurate(quantize: str, trials: Mapping[Packing, Trial], packings: Sequence[Packing]) -> PackingChoice:
    """The first of `packings` whose products are right."""
    for packing in packings:
        trial = trials.get(packing)
        if trial is not None and trial.relative_error <= MAX_ERRORS[packing]:
            return PackingChoice(packing, f"{packing.value} weights{_compared(trial, trials[Packing.PLAIN])}")
    raise UsageError(
        f"this machine cannot compute with {quantize} weights: its products are wrong or missing in this torch",
        hint="Start with --quantize none." if quantize == "int8" else "Start with --quantize int8.",
    )


def _what_int8_would_gain(trials: Mapping[Packing, Trial], fastest: Trial) -> str:
    try:
        int8 = trials[choose_packing("int8", trials).packing]
    except UsageError:
        return ""
    gain = fastest.typical_seconds / int8.typical_seconds
    if gain < 1.1:
        return ""
    return f"; --quantize int8 would be {gain:.1f}x as fast and need about a quarter of the memory, but is less exact"


def _compared(trial: Trial, plain: Trial) -> str:
    return f", {plain.typical_seconds / trial.typical_seconds:.1f}x as fast as plain ones"


def _check_known(quantize: str) -> None:
    if quantize not in QUANTIZATIONS:
        raise UsageError(f"there is no way {quantize!r} to quantise", hint=f"Choose one of {', '.join(QUANTIZATIONS)}.")


def _check_choice(quantize: str) -> None:
    _check_known(quantize)
    if quantize == "nf4":
        raise UsageError("nf4 weights need an NVIDIA GPU", hint="Start with --quantize int8 or --quantize int4.")


@functools.lru_cache(maxsize=8)
def _cached_trials(outputs: int, columns: int, dtype: str, quantize: str, threads: int) -> Mapping[Packing, Trial]:
    """`threads` is part of the question: packed and plain products gain differently from them."""
    wanted = {
        "none": [Packing.PREPACKED],
        "auto": [Packing.PREPACKED, int8_form(columns)],
        "int8": [int8_form(columns)],
        "int4": [Packing.INT4],
    }
    possible = [packing for packing in wanted[quantize] if packing.fits(outputs, columns)]
    return try_packings(outputs, columns, DTYPES[dtype], [Packing.PLAIN, *possible])


def int8_form(columns: int) -> Packing:
    """The int8 form of this processor: with all bits of the activations where their products are right.

    Where neither form's are, `choose_packing` refuses the one that is returned.
    """
    full, reduced = INT8_FORMS
    return full if relative_error(full, columns) <= MAX_ERRORS[full] else reduced


def _largest_matrix(checkpoint: Checkpoint) -> tuple[int, int]:
    """The shape of the largest matrix of the first block; which of its axes is which makes no difference here."""
    shapes = [tensor.shape for tensor in checkpoint.block_tensors(0) if len(tensor.shape) == 2]
    if not shapes:
        raise UsageError("the blocks of this checkpoint have no matrices")
    outputs, columns = max(shapes, key=math.prod)
    return outputs, columns


def _time(
    multipliers: Mapping[Packing, Sequence[_Multiply]], columns: int, dtype: torch.dtype
) -> dict[Packing, dict[int, float]]:
    """Per copy the least of a few, and of those the mean: what disturbs a measurement only ever makes it longer."""
    values = {rows: torch.linspace(-1, 1, rows * columns).view(rows, columns).to(dtype) for rows in DECODE_ROWS}
    best = {packing: {rows: [math.inf] * _COPIES for rows in DECODE_ROWS} for packing in multipliers}
    for _, rows, (packing, copies) in itertools.product(range(_REPEATS), DECODE_ROWS, multipliers.items()):
        for copy, multiply in enumerate(copies):
            started = time.perf_counter()
            multiply(values[rows])
            best[packing][rows][copy] = min(best[packing][rows][copy], time.perf_counter() - started)
    return {
        packing: {rows: sum(seconds) / _COPIES for rows, seconds in by_rows.items()}
        for packing, by_rows in best.items()
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
    if packing.saves_memory:
        dtype = torch.float32  # the others' error would be hidden behind the rounding to 16 bits
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(_ACCURACY_OUTPUTS, columns, generator=generator)
    rows = torch.randn(_ACCURACY_ROWS, columns, generator=generator)
    rows[:, :: max(1, columns // 4)] *= 20
    signs = weight.sign()
    errors = []
    for case in ((weight, rows), (signs, signs[:_ACCURACY_ROWS])):
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
