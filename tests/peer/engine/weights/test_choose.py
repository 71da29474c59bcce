"""Which form of the weights is chosen: a decision over measured numbers, and the measurements themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.weights.choose import (
    INT8_FORMS,
    MAX_ERRORS,
    MAX_PREPACKED_ERROR,
    MachineProbe,
    Trial,
    check_packing,
    choose_packing,
    find_packing,
    int8_form,
    relative_error,
    try_packings,
)
from blockswarm.peer.engine.weights.packed import PackedMatrix
from blockswarm.peer.engine.weights.quantize import Packing
from blockswarm.proto.errors import UnsupportedModel, UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.wire.tensors import DTYPES
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import SERVED_MODELS, tiny_model_config, write_tiny_checkpoint
from transformers import PreTrainedConfig


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def trial(seconds: float, error: float = 0.0) -> Trial:
    return Trial({1: seconds, 8: 4 * seconds}, error)


TRIALS = {
    Packing.PLAIN: trial(4.0),
    Packing.PREPACKED: trial(2.0, 1e-6),
    Packing.INT8: trial(0.5, 2e-4),
    Packing.INT8_REDUCED: trial(0.6, 8e-4),
    Packing.INT4: trial(0.4, 0.1),
}


def test_auto_keeps_the_numbers_and_says_what_int8_would_gain() -> None:
    choice = choose_packing("auto", TRIALS)
    assert choice.packing is Packing.PREPACKED
    assert "--quantize int8 would be 4.0x as fast" in choice.reason


@given(
    plain=st.floats(1e-6, 1),
    prepacked=st.floats(1e-6, 1),
    int8=st.floats(1e-6, 1),
    error=st.floats(0, 1),
    quantize=st.sampled_from(["auto", "none"]),
)
def test_without_being_asked_no_number_changes(
    plain: float, prepacked: float, int8: float, error: float, quantize: str
) -> None:
    trials = {
        Packing.PLAIN: trial(plain),
        Packing.PREPACKED: trial(prepacked),
        Packing.INT8: trial(int8, error),
    }
    choice = choose_packing(quantize, trials)
    assert choice.packing is (Packing.PREPACKED if prepacked < plain else Packing.PLAIN)
    assert choice.packing.numeric_format("float32") == "float32"


def test_int8_needs_right_products_not_fast_ones() -> None:
    """It may be wanted for its memory."""
    assert choose_packing("int8", TRIALS).packing is Packing.INT8
    slow = {**TRIALS, Packing.INT8: trial(99.0, 2e-4)}
    assert choose_packing("int8", slow).packing is Packing.INT8
    saturating = {**TRIALS, Packing.INT8: trial(0.5, 0.3)}
    assert choose_packing("int8", saturating).packing is Packing.INT8_REDUCED
    assert Packing.INT8_REDUCED.numeric_format("float32") == "int8"


def test_a_machine_that_computes_wrong_products_is_told_what_to_choose() -> None:
    broken = {Packing.PLAIN: trial(1.0), Packing.INT8: trial(0.1, math.inf), Packing.INT4: trial(0.1, 0.5)}
    with pytest.raises(UsageError) as caught:
        choose_packing("int8", broken)
    assert caught.value.hint == "Start with --quantize none."
    with pytest.raises(UsageError) as caught:
        choose_packing("int4", broken)
    assert "int8" in (caught.value.hint or "")
    assert choose_packing("auto", broken).packing is Packing.PLAIN


@pytest.mark.parametrize("quantize", ["nf4", "int3", ""])
def test_what_a_cpu_cannot_do_is_refused(quantize: str) -> None:
    with pytest.raises(UsageError):
        choose_packing(quantize, TRIALS)


def test_this_machine_is_tried() -> None:
    here = [packing for packing in Packing if packing is not Packing.NF4]
    found = try_packings(256, 512, torch.float32, here)
    assert found[Packing.PLAIN].relative_error < 1e-5
    assert found[Packing.PREPACKED].relative_error < 1e-5
    assert found[Packing.INT8_REDUCED].relative_error < 1e-3
    assert 0.002 < found[Packing.INT8_WEIGHTS].relative_error < 0.02  # all of the rounding of the weights
    assert 0.01 < found[Packing.INT4].relative_error < MAX_ERRORS[Packing.INT4]
    assert all(0 < seconds < 1 for tried in found.values() for seconds in tried.seconds.values())


@pytest.mark.long
@pytest.mark.parametrize("columns", [64, 512, 4096, 28672])
def test_the_int8_form_of_this_machine_is_as_exact_as_its_bits_allow(columns: int) -> None:
    """Whichever form that is: full bits where a processor computes them right, one less in each row elsewhere."""
    form = int8_form(columns)
    assert relative_error(form, columns) < {Packing.INT8: 5e-4, Packing.INT8_REDUCED: 2e-3}[form]
    trials = try_packings(64, columns, torch.float32, [Packing.PLAIN, *INT8_FORMS])
    assert choose_packing("int8", trials).packing is form


def test_products_are_right_or_far_from_right() -> None:
    """A form of int8 that this processor does not compute is rejected by a wide margin, never nearly taken."""
    for form in INT8_FORMS:
        error = relative_error(form, 512)
        assert error < MAX_ERRORS[form] / 2 or error > 20 * MAX_ERRORS[form]
        assert error <= MAX_ERRORS[form] or form is not int8_form(512)


class _Saturating:
    """A packed matrix as of processors without VNNI, where sums of two products are cut to 16 bits."""

    def __init__(self, exact: PackedMatrix) -> None:
        self._exact = exact
        self.nbytes = exact.nbytes

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return self._exact.multiply(rows).clamp(-300, 300)


def test_products_that_saturate_are_noticed() -> None:
    def pack(packing: Packing, weights: Sequence[torch.Tensor]) -> PackedMatrix:
        exact = Packing.INT8_REDUCED.pack(weights)
        return _Saturating(exact) if packing is Packing.INT8 else exact

    trials = try_packings(64, 512, torch.float32, [Packing.PLAIN, *INT8_FORMS], pack)
    assert trials[Packing.INT8].relative_error > MAX_ERRORS[Packing.INT8]
    assert choose_packing("int8", trials).packing is Packing.INT8_REDUCED


def test_missing_operators_are_a_form_that_is_not_chosen() -> None:
    def missing(packing: Packing, weights: Sequence[torch.Tensor]) -> PackedMatrix:
        raise RuntimeError("no kernel")

    found = try_packings(64, 512, torch.float32, [Packing.PLAIN, Packing.PREPACKED, Packing.INT8], missing)
    assert found[Packing.PREPACKED].relative_error == found[Packing.INT8].relative_error == math.inf
    assert choose_packing("auto", found).packing is Packing.PLAIN


@pytest.mark.parametrize(
    ("plain_error", "error", "found"),
    [
        (1e-7, MAX_PREPACKED_ERROR, Packing.PREPACKED),
        (1e-7, 2 * MAX_PREPACKED_ERROR, Packing.PLAIN),
        (2e-3, 3e-3, Packing.PREPACKED),
        (2e-3, 5e-3, Packing.PLAIN),
    ],
)
def test_prepacked_products_that_lose_digits_are_not_chosen(plain_error: float, error: float, found: Packing) -> None:
    """However fast: oneDNN may be told to compute float32 in bfloat16, and 16-bit kernels may be poor."""
    trials = {Packing.PLAIN: trial(4.0, plain_error), Packing.PREPACKED: trial(1.0, error)}
    assert choose_packing("none", trials).packing is found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("quantize", ["auto", "none", "int8", "int4"])
def test_every_dtype_is_computed_or_refused(dtype: str, quantize: str, tmp_path: Path) -> None:
    """oneDNN has no 16-bit kernels for many processors: a peer that is started with 16 bits serves without them."""
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))
    found = find_packing(checkpoint, dtype, quantize).packing
    if quantize in ("auto", "none"):
        assert found in (Packing.PLAIN, Packing.PREPACKED)
    if found is not Packing.PLAIN:
        weight, rows = torch.ones(64, 96, dtype=DTYPES[dtype]), torch.ones(3, 96, dtype=DTYPES[dtype])
        assert found.pack([weight]).multiply(rows).allclose(torch.tensor(96.0, dtype=DTYPES[dtype]), rtol=0.02)


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_every_served_family_can_be_packed(name: str) -> None:
    check_packing(tiny_model_config(name))


class _PacksWrong(MachineProbe):
    """A machine on which a packed block computes something else."""

    def check_packing(self, config: PreTrainedConfig) -> None:
        check_packing(config, pack=lambda block, *_: block.self_attn.q_proj.weight.data.mul_(1.001))


def test_a_family_that_cannot_be_packed_stays_as_it_is(tmp_path: Path) -> None:
    """Unless packing was asked for: then the operator is told."""
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))
    assert find_packing(checkpoint, "float32", "auto", probe=_PacksWrong()).packing is Packing.PLAIN
    with pytest.raises(UnsupportedModel, match="differs"):
        find_packing(checkpoint, "float32", "int8", probe=_PacksWrong())


def test_a_form_is_found_for_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint("gpt2", tmp_path))
    assert find_packing(checkpoint, "float32", "auto").packing in (Packing.PLAIN, Packing.PREPACKED)
    assert find_packing(checkpoint, "float32", "int8").packing.saves_memory
    with pytest.raises(UsageError, match="GPU"):
        find_packing(checkpoint, "float32", "nf4")
