"""The choice of a form for each matrix of this peer, by trying the forms on this machine when it first starts.

Measure, then decide: `measure.try_packings` measures times and errors on a matrix of a shape that the model has, for
several numbers of rows; `choose_packing` is a pure function of the results.

`auto` keeps the numbers that the model was published with.  The promise that a swarm gives the same tokens as the
model alone is for float32, a chain is only as exact as its least exact peer, and an operator does not know what
the clients rely on.  So `auto` and `none` choose the fastest form of the same numbers, and `auto` says what int8 would
gain; one word on the command line trades digits for speed and memory, and clients see it in the record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from ....proto.errors import UnsupportedModel, UsageError
from ....proto.model.checkpoint import Checkpoint
from ....proto.model.family import FOREIGN_FAILURES, find_blocks, refused
from ....proto.model.tiny import random_model, tiny_config
from ....proto.weights.forms import Forms, Packing, compiled_rows
from ....proto.weights.kept import KeptMeasurements
from ....proto.weights.measure import INT8_FORMS, Trial
from ....proto.weights.packed_gpu import check_bitsandbytes
from ....proto.weights.trials import fastest_exact, fastest_right, int8_form, tried
from ....proto.wire.precision import QUANTIZATIONS
from ..blocks.selfcheck import TOLERANCE
from ..blocks.sizes import block_shapes
from ..device import CPU
from ..machine.threads import one_thread
from .quantize import pack_block, shared_inputs

WORTH_SAYING = 1.1
"""A smaller gain is not mentioned: it is noise to the reader."""
MOST_SHAPES = 8
FEWEST_ELEMENTS = 1 << 18
"""Only the `MOST_SHAPES` largest shapes are tried (few models have more), and no smaller matrices (CPU caches hold
them): the others take the form of the largest one."""
FEWEST_BLOCK_ELEMENTS = 1 << 20
"""Smaller blocks stay plain; nothing is compiled and tried for them, which would take a second and 43 MB.

Their weights stay in CPU caches, and other work than their products takes most of a step. Measured speed-ups over
plain, for steps of one block with 1, 2 and 8 rows on a busy machine: compiled 0.82 to 1.03 at 35 k elements, 0.85 to
0.97 at 0.2 M, 1.02 to 1.24 at 0.4 M, 0.96 to 1.09 at 0.8 M, 1.15 to 1.32 at 3 M; prepacked 0.69 to 0.93 up to 0.8 M."""


@dataclass(frozen=True)
class PackingChoice:
    """The form of a matrix, and why, for the log."""

    packing: Packing
    reason: str


@dataclass(frozen=True)
class FormsChoice:
    """The forms to load, and why, for the log."""

    forms: Forms
    reason: str


class MachineProbe:
    """The measurements that this machine is asked for."""

    def __init__(self, kept: KeptMeasurements | None = None) -> None:
        """`kept`: the measurements of earlier starts."""
        self._kept = kept

    def check_packing(self, config: PreTrainedConfig) -> None:
        """See `check_packing`."""
        with one_thread():
            check_packing(config)

    def try_forms(self, outputs: int, columns: int, dtype: str, forms: tuple[Packing, ...]) -> Mapping[Packing, Trial]:
        """Try forms on a matrix of that shape; the same trial is measured once per machine."""
        return tried(outputs, columns, dtype, forms, self._kept)

    def check_bitsandbytes(self) -> None:
        """See `check_bitsandbytes`."""
        check_bitsandbytes()


PROBE = MachineProbe()


def find_forms(
    checkpoint: Checkpoint,
    dtype: str,
    quantize: str,
    device: torch.device = CPU,
    probe: MachineProbe = PROBE,
    fewest_elements: int = FEWEST_BLOCK_ELEMENTS,
) -> FormsChoice:
    """Try the forms on matrices of the checkpoint's shapes and choose one for each shape, for `quantize`.

    Takes a second or two the first time on a machine; each trial is measured once. Nothing is tried on a GPU (see
    `choose_gpu_packing`), nor for "auto" and "none" if all blocks have fewer than `fewest_elements` elements.

    Raises UsageError for a form that the device cannot compute, with a hint what to choose instead, and
    UnsupportedModel for int8, int4 or nf4 in a family whose matrices cannot be packed.
    """
    if device != CPU:
        choice = choose_gpu_packing(quantize)
        if choice.packing is Packing.NF4:
            probe.check_bitsandbytes()
        if choice.packing is not Packing.PLAIN:
            probe.check_packing(checkpoint.config)
        return FormsChoice(Forms(choice.packing), choice.reason)
    _check_choice(quantize)
    blocks = range(checkpoint.num_blocks)
    if quantize in ("auto", "none") and max(map(checkpoint.block_elements, blocks)) < fewest_elements:
        return FormsChoice(Forms(Packing.PLAIN), "weights stay as they are, their blocks are too small to gain")
    try:
        probe.check_packing(checkpoint.config)
    except UnsupportedModel as error:
        if quantize not in ("auto", "none"):
            raise
        return FormsChoice(Forms(Packing.PLAIN), str(error))
    try:
        shapes = block_shapes(checkpoint.config)
    except FOREIGN_FAILURES as error:
        raise refused(checkpoint.config, error) from error
    if not shapes:
        raise UsageError("the blocks of this checkpoint have no matrices")
    compiled = compiled_form(checkpoint, dtype)
    packable = [shape for shape in shapes if quantize != "int4" or Packing.INT4.fits(*shape)]  # others stay plain
    largest, *others = sorted(packable or shapes, key=lambda shape: (-math.prod(shape), shape))[:MOST_SHAPES]
    chosen = {}
    for shape in (largest, *(shape for shape in others if math.prod(shape) >= FEWEST_ELEMENTS)):
        # Whether int8 would be faster is worth a message, but not a trial of every shape.
        asked = "none" if quantize == "auto" and shape != largest else quantize
        chosen[shape] = choose_packing(asked, probe.try_forms(*shape, dtype, candidates(*shape, asked, compiled)))
    first = chosen[largest]
    forms = Forms(first.packing, {shape: choice.packing for shape, choice in chosen.items()})
    differing = [form.value for form in forms.all if form is not first.packing]
    return FormsChoice(forms, first.reason + (f"; some matrices: {', '.join(differing)}" if differing else ""))


def compiled_form(checkpoint: Checkpoint, dtype: str) -> Packing | None:
    """Return the form for the compiled product that keeps the checkpoint's numbers, if there is one in `dtype`.

    Its weights are held as they are stored if every matrix of every block is stored in the same dtype.
    """
    if dtype != "float32":
        return None
    stored = {
        tensor.dtype
        for block in range(checkpoint.num_blocks)
        for tensor in checkpoint.block_tensors(block)
        if len(tensor.shape) > 1
    }
    return compiled_rows(stored)


def candidates(outputs: int, columns: int, quantize: str, compiled: Packing | None) -> tuple[Packing, ...]:
    """Return the forms to try for `quantize` on a matrix of that shape; the plain one, to compare with, first."""
    if quantize == "int4":
        wanted = [Packing.INT4]
    elif quantize == "int8":
        wanted = [Packing.INT8_ROWS, int8_form(columns)]
    else:
        wanted = [Packing.PREPACKED, *([compiled] if compiled is not None else [])]
        if quantize == "auto":
            wanted.append(Packing.INT8_ROWS if Packing.INT8_ROWS.fits(outputs, columns) else int8_form(columns))
    return (Packing.PLAIN, *(packing for packing in wanted if packing.fits(outputs, columns)))


def choose_packing(quantize: str, trials: Mapping[Packing, Trial]) -> PackingChoice:
    """Choose the form for `quantize` ("auto", "none", "int8", "int4") from the trials. Pure.

    Raises UsageError if none is exact enough, or if there is no such form.
    """
    _check_choice(quantize)
    if quantize == "int4":
        return _accurate(quantize, trials, [Packing.INT4])
    if quantize == "int8":
        return _accurate(quantize, trials, INT8_FORMS)
    plain = trials[Packing.PLAIN]
    best = fastest_exact(trials)
    if best is Packing.PLAIN:
        reason = "weights stay as they are, the fastest form of their numbers here"
    else:
        gain = plain.typical_seconds / trials[best].typical_seconds
        faster = f", {gain:.1f}x as fast" if gain >= WORTH_SAYING else ""
        reason = f"weights are {best.described} for this processor{faster}"
    if quantize == "auto":
        reason += _what_int8_would_gain(trials, trials[best])
    return PackingChoice(best, reason)


def choose_gpu_packing(quantize: str) -> PackingChoice:
    """Return the form on a GPU, where each name means one form and nothing is tried. Pure. Raises UsageError."""
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
    """Compare a tiny model of the same kind with its packed copy. Raises UnsupportedModel if they differ.

    Packing only changes how products are computed; this finds families that do more with a linear than call it.
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


def _accurate(quantize: str, trials: Mapping[Packing, Trial], packings: Sequence[Packing]) -> PackingChoice:
    """Choose by `fastest_right`. Raises UsageError if no form is right."""
    best = fastest_right(packings, trials)
    if best is None:
        raise UsageError(
            f"this machine cannot compute with {quantize} weights: its products are wrong or missing in this torch",
            hint="Start with --quantize none." if quantize == "int8" else "Start with --quantize int8.",
        )
    return PackingChoice(best, f"{best.value} weights{_compared(trials[best], trials[Packing.PLAIN])}")


def _what_int8_would_gain(trials: Mapping[Packing, Trial], fastest: Trial) -> str:
    try:
        int8 = trials[choose_packing("int8", trials).packing]
    except UsageError:
        return ""
    gain = fastest.typical_seconds / int8.typical_seconds
    if gain < WORTH_SAYING:
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
