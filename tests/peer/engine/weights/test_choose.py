"""Which form of the weights is chosen: a decision over measured numbers, and the measurements themselves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.weights import choose as formats
from blockswarm.peer.engine.weights import packed
from blockswarm.peer.engine.weights.choose import (
    MAX_INT4_ERROR,
    MAX_INT8_ERROR,
    Trial,
    check_packing,
    choose_packing,
    find_packing,
    try_packings,
)
from blockswarm.peer.engine.weights.quantize import Packing
from blockswarm.proto.errors import UnsupportedModel, UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import SERVED_MODELS, tiny_model_config, write_tiny_checkpoint


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
    assert found[Packing.PREPACKED].relative_error < 1e-5
    assert found[Packing.INT8_REDUCED].relative_error < MAX_INT8_ERROR
    assert 0.002 < found[Packing.INT8_WEIGHTS].relative_error < 0.02  # all of the rounding of the weights
    assert 0.01 < found[Packing.INT4].relative_error < MAX_INT4_ERROR
    assert all(0 < seconds < 1 for tried in found.values() for seconds in tried.seconds.values())


def test_products_that_saturate_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors without VNNI, where sums of two products are cut to 16 bits."""
    exact = packed.TwoRowMatrix._multiply

    def saturating(self: packed.TwoRowMatrix, rows: torch.Tensor) -> torch.Tensor:
        return exact(self, rows).clamp(-300, 300)

    monkeypatch.setattr(packed.TwoRowMatrix, "_multiply", saturating)
    assert try_packings(64, 512, torch.float32, [Packing.INT8])[Packing.INT8].relative_error > MAX_INT8_ERROR


def test_missing_operators_are_a_form_that_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: object, weights: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(packed.TwoRowMatrix, "__init__", missing)
    found = try_packings(64, 512, torch.float32, [Packing.PLAIN, Packing.INT8])
    assert found[Packing.INT8].relative_error == math.inf
    assert choose_packing("auto", found).packing is Packing.PLAIN


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_every_served_family_can_be_packed(name: str) -> None:
    check_packing(tiny_model_config(name))


def test_a_family_that_cannot_be_packed_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless packing was asked for: then the operator is told."""
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))
    monkeypatch.setattr(formats, "pack_block", lambda block, *_: block.self_attn.q_proj.weight.data.mul_(1.001))
    assert find_packing(checkpoint, "float32", "auto").packing is Packing.PLAIN
    with pytest.raises(UnsupportedModel, match="differs"):
        find_packing(checkpoint, "float32", "int8")


def test_a_form_is_found_for_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint("gpt2", tmp_path))
    assert find_packing(checkpoint, "float32", "auto").packing in (Packing.PLAIN, Packing.PREPACKED)
    assert find_packing(checkpoint, "float32", "int8").packing.saves_memory
    with pytest.raises(UsageError, match="GPU"):
        find_packing(checkpoint, "float32", "nf4")
