"""Which form of the weights is chosen: a decision over measured numbers, and the measurements themselves."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.weights.choose import (
    MachineProbe,
    check_packing,
    choose_packing,
    compiled_form,
    find_forms,
)
from blockswarm.peer.engine.weights.quantize import PackedLinear, pack_block, shared_inputs
from blockswarm.proto.errors import UnsupportedModel, UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.model.tiny import random_model
from blockswarm.proto.weights.forms import Packing
from blockswarm.proto.weights.kept import KeptMeasurements
from blockswarm.proto.weights.measure import TRIAL_ROWS, TWO_ROW_FORMS, Trial, try_packings
from blockswarm.proto.weights.packed import PackedMatrix
from blockswarm.proto.weights.trials import MAX_ERRORS, MAX_EXACT_ERROR
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


def test_no_gain_is_claimed_where_there_is_none() -> None:
    reason = choose_packing("none", {Packing.PLAIN: trial(1.0), Packing.PREPACKED: trial(0.97)}).reason
    assert reason == "weights are packed for this processor"


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
    slow = {Packing.PLAIN: trial(1.0), Packing.INT8: trial(99.0, 2e-4)}
    assert choose_packing("int8", slow).packing is Packing.INT8
    fast = {**TRIALS, Packing.INT8_ROWS: trial(0.4, 1e-6)}
    assert choose_packing("int8", fast).packing is Packing.INT8_ROWS
    wrong = {**TRIALS, Packing.INT8_ROWS: trial(0.4, 1e-4)}
    assert choose_packing("int8", wrong).packing is Packing.INT8
    saturating = {**TRIALS, Packing.INT8: trial(0.5, 0.3)}
    assert choose_packing("int8", saturating).packing is Packing.INT8_REDUCED
    with_vnni = {**TRIALS, Packing.INT8: trial(0.61, 2e-4)}
    assert choose_packing("int8", with_vnni).packing is Packing.INT8, "both right: no tie of the clock"
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

    trials = try_packings(64, 512, torch.float32, [Packing.PLAIN, *TWO_ROW_FORMS], pack)
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
        (1e-7, MAX_EXACT_ERROR, Packing.PREPACKED),
        (1e-7, 2 * MAX_EXACT_ERROR, Packing.PLAIN),
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
    found = find_forms(checkpoint, dtype, quantize, fewest_elements=0).forms.others
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
    assert find_forms(checkpoint, "float32", "auto", probe=_PacksWrong(), fewest_elements=0).forms.is_plain
    with pytest.raises(UnsupportedModel, match="differs"):
        find_forms(checkpoint, "float32", "int8", probe=_PacksWrong())


class _Untouched(MachineProbe):
    """A machine on which nothing may be tried."""

    def check_packing(self, config: PreTrainedConfig) -> None:
        raise AssertionError("packing is checked")

    def try_forms(self, outputs: int, columns: int, dtype: str, forms: tuple[Packing, ...]) -> Mapping[Packing, Trial]:
        raise AssertionError("forms are tried")


@pytest.mark.parametrize("quantize", ["auto", "none"])
def test_nothing_is_tried_for_blocks_so_small_that_the_form_cannot_matter(tmp_path: Path, quantize: str) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))
    assert find_forms(checkpoint, "float32", quantize, probe=_Untouched()).forms.is_plain
    elements = checkpoint.block_elements(0)
    with pytest.raises(AssertionError, match="checked"):
        find_forms(checkpoint, "float32", quantize, probe=_Untouched(), fewest_elements=elements)


def test_a_form_is_found_for_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint("gpt2", tmp_path))
    forms = find_forms(checkpoint, "float32", "auto", fewest_elements=0).forms
    assert forms.numeric_format("float32") == "float32"
    assert find_forms(checkpoint, "float32", "int8").forms.numeric_format("float32") == "int8"
    with pytest.raises(UsageError, match="GPU"):
        find_forms(checkpoint, "float32", "nf4")


def test_a_form_in_half_of_the_memory_is_taken_unless_another_one_is_much_faster() -> None:
    trials = {
        Packing.PLAIN: trial(4.0),
        Packing.ROWS: trial(1.0, 1e-7),
        Packing.ROWS_BFLOAT16: trial(1.2, 1e-7),
    }
    assert choose_packing("none", trials).packing is Packing.ROWS_BFLOAT16
    assert choose_packing("none", {**trials, Packing.ROWS_BFLOAT16: trial(1.3)}).packing is Packing.ROWS


def test_trials_are_made_once_per_machine(tmp_path: Path) -> None:
    """A later start takes the times from the file, and so decides alike: the file is changed to see it."""
    path, forms = tmp_path / "forms.json", (Packing.PLAIN, Packing.PREPACKED)
    found = MachineProbe(KeptMeasurements(path)).try_forms(64, 512, "float32", forms)
    content = json.loads(path.read_text())
    (entry,) = content.values()
    assert found[Packing.PLAIN].seconds[1] == entry["plain"]["seconds"]["1"]
    entry["plain"]["seconds"]["1"] = 123.0
    path.write_text(json.dumps(content))
    again = MachineProbe(KeptMeasurements(path)).try_forms(64, 512, "float32", forms)
    assert again[Packing.PLAIN].seconds[1] == 123.0
    other = MachineProbe(KeptMeasurements(path)).try_forms(64, 256, "float32", forms)
    assert other[Packing.PLAIN].seconds[1] < 1


@pytest.mark.parametrize(
    "entry",
    [3, [], {}, {"plain": 3}, {"plain": {"error": 0, "seconds": {"1": 1}}}, {"unheard of": {"error": 0, "seconds": {}}},
     {"plain": {"error": "x", "seconds": dict.fromkeys(map(str, TRIAL_ROWS), 1.0)}},
     {"plain": {"error": 0, "seconds": dict.fromkeys(map(str, TRIAL_ROWS), -1.0)}},
     {"plain": {"error": 0, "seconds": dict.fromkeys(map(str, TRIAL_ROWS), math.nan)}},
     {"plain": {"error": 10**400, "seconds": dict.fromkeys(map(str, TRIAL_ROWS), 1.0)}}],
)  # fmt: skip
def test_kept_trials_that_make_no_sense_are_made_again(
    tmp_path: Path, entry: object, caplog: pytest.LogCaptureFixture
) -> None:
    path, forms = tmp_path / "forms.json", (Packing.PLAIN, Packing.PREPACKED)
    MachineProbe(KeptMeasurements(path)).try_forms(64, 512, "float32", forms)
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), entry)))
    with caplog.at_level(logging.INFO):
        found = MachineProbe(KeptMeasurements(path)).try_forms(64, 512, "float32", forms)
    assert "not readable" in caplog.text
    assert set(found) == set(forms)
    assert json.loads(path.read_text()).popitem()[1]["plain"]["seconds"].keys() == set(map(str, TRIAL_ROWS))


def test_weights_are_tried_as_they_are_stored(tmp_path: Path) -> None:
    for stored, form in (("bfloat16", Packing.ROWS_BFLOAT16), ("float32", Packing.ROWS)):
        folder = tmp_path / stored
        checkpoint = open_checkpoint(write_tiny_checkpoint("llama", folder, stored=DTYPES[stored]))
        assert compiled_form(checkpoint, "float32") is form
        assert compiled_form(checkpoint, "bfloat16") is None


def test_a_matrix_that_int4_cannot_hold_stays_as_it_is(tmp_path: Path) -> None:
    """104 columns are no whole number of groups, nor 104 outputs of tiles; the others are packed."""
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path, intermediate_size=104))
    forms = find_forms(checkpoint, "float32", "int4").forms
    assert forms.numeric_format("float32") == "int4"
    model = random_model(checkpoint.config)
    block = model.model.layers[0]
    pack_block(block, forms, shared_inputs(checkpoint.config))
    packed = {name for name, module in block.named_modules() if isinstance(module, PackedLinear)}
    assert packed == {f"self_attn.{name}_proj" for name in "qkvo"}
