"""Blocks with packed matrices against the family's own, for every family."""

from __future__ import annotations

import copy
import math
import weakref
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.weights.quantize import (
    PackedExperts,
    PackedLinear,
    SharedProduct,
    held_bytes,
    pack_block,
    packed_block_bytes,
    shared_inputs,
)
from blockswarm.proto.model.family import family_class, find_blocks
from blockswarm.proto.model.tiny import random_model
from blockswarm.proto.weights.forms import Packing
from blockswarm.proto.weights.measure import relative_error as error_here
from blockswarm.proto.weights.trials import int8_form
from support.tiny_models import SERVED_MODELS, tiny_model_config
from torch import nn
from transformers import PreTrainedConfig

EVERY_EXPERT: dict[str, dict[str, Any]] = {
    "mixtral": {"num_experts_per_tok": 4},
    "qwen2_moe": {"num_experts_per_tok": 4},
    "qwen3_moe": {"num_experts_per_tok": 4},
    "deepseek_v3": {"num_experts_per_tok": 8, "topk_group": 2},
    "gpt_oss": {"num_experts_per_tok": 4},
    "llama4": {"num_experts_per_tok": 4},
    "phimoe": {"num_local_experts": 2},
}
"""A choice of experts may go the other way if two are nearly equal; where all are chosen it cannot."""

INT8_BOUND = 6e-2
"""Relative error of the logits over six blocks of random weights, whose rounding errors average over 64 columns only;
measured 5e-3 to 4e-2."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def config_of(name: str) -> PreTrainedConfig:
    return tiny_model_config(name, **EVERY_EXPERT.get(name, {}))


@torch.inference_mode()
def logits_of(model: nn.Module) -> torch.Tensor:
    tokens = torch.randint(3, 250, (1, 26), generator=torch.Generator().manual_seed(1))
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def packed_copy(model: Any, packing: Packing) -> Any:
    packed = copy.deepcopy(model)
    for block in find_blocks(packed, packed.config.num_hidden_layers).blocks:
        pack_block(block, packing, shared_inputs(packed.config))
    return packed


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_every_family_computes_with_packed_matrices(name: str) -> None:
    """No family is known to the packing; nothing of a matrix's size is left unpacked but what is named here."""
    model = random_model(config_of(name))
    exact = logits_of(model)
    assert relative_error(logits_of(packed_copy(model, Packing.PREPACKED)), exact) < 1e-5
    packed = packed_copy(model, int8_form(64))
    assert relative_error(logits_of(packed), exact) < INT8_BOUND
    blocks = find_blocks(packed, packed.config.num_hidden_layers).blocks
    assert any(isinstance(module, PackedLinear) for module in blocks.modules())
    left = [n for n, p in blocks.named_parameters() if p.dim() > 1 and p.shape[-2] >= 16 and "bias" not in n]
    assert not left or name == "llama4", left  # whose experts are computed by a scheme of its own


@pytest.mark.parametrize("name", SERVED_MODELS)
@pytest.mark.parametrize("packing", [Packing.ROWS, Packing.INT8_ROWS], ids=lambda packing: packing.value)
def test_every_family_computes_with_compiled_products(name: str, packing: Packing) -> None:
    if not packing.fits(64, 64):
        pytest.skip("the extra `fast` is not installed, or not for this processor")
    model = random_model(config_of(name))
    exact, found = logits_of(model), logits_of(packed_copy(model, packing))
    assert relative_error(found, exact) < (1e-5 if packing.keeps_numbers else INT8_BOUND)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_sixteen_bits_hold_the_same_numbers(name: str) -> None:
    """Weights that were stored in 16 bits: half of the bytes, and the very logits of those weights in 32."""
    if not Packing.ROWS_BFLOAT16.fits(64, 64):
        pytest.skip("the extra `fast` is not installed, or not for this processor")
    model = random_model(config_of(name)).bfloat16().float()
    wide, narrow = packed_copy(model, Packing.ROWS), packed_copy(model, Packing.ROWS_BFLOAT16)
    assert relative_error(logits_of(narrow), logits_of(model)) < 1e-5
    if name != "mixtral":  # experts are packed where that saves memory
        assert torch.equal(logits_of(narrow), logits_of(wide))
    held = [sum(map(held_bytes, find_blocks(m, m.config.num_hidden_layers).blocks)) for m in (narrow, wide)]
    assert held[0] < 0.6 * held[1]


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "phi", "mixtral", "deepseek_v3", "gpt_oss", "llama4"])
@pytest.mark.parametrize("packing", [Packing.PREPACKED, Packing.INT8, Packing.INT4, Packing.ROWS, Packing.INT8_ROWS])
def test_the_bytes_of_a_packed_block_are_known_before_it_is_loaded(name: str, packing: Packing) -> None:
    """From the meta device. How much oneDNN pads depends on the processor, for tiny matrices it is a lot."""
    model = random_model(config_of(name))
    with torch.device("meta"):
        unloaded = type(model)(copy.deepcopy(model.config))
    count = model.config.num_hidden_layers
    for block, coming in zip(find_blocks(model, count).blocks, find_blocks(unloaded, count).blocks, strict=True):
        predicted = packed_block_bytes(coming, packing, shared_inputs(model.config))
        pack_block(block, packing, shared_inputs(model.config))
        held = held_bytes(block)
        assert 0.98 * held <= predicted <= (1.5 if packing is Packing.PREPACKED else 1.02) * held


def test_a_plain_block_holds_its_parameters() -> None:
    block = find_blocks(random_model(config_of("llama")), 6).blocks[0]
    assert packed_block_bytes(block, Packing.PLAIN, frozenset()) == held_bytes(block)
    assert held_bytes(block) == sum(parameter.nbytes for parameter in block.parameters())


def test_int8_holds_a_quarter_of_a_real_block() -> None:
    with torch.device("meta"):
        config = tiny_model_config("llama", hidden_size=1024, intermediate_size=2816, num_hidden_layers=1)
        block = find_blocks(family_class(config)(config), 1).blocks[0]
    plain = held_bytes(block)
    assert packed_block_bytes(block, Packing.PREPACKED, frozenset()) < 1.001 * plain
    assert packed_block_bytes(block, Packing.INT8, frozenset()) < 0.27 * plain
    assert packed_block_bytes(block, Packing.INT4, frozenset()) < 0.15 * plain


def test_linears_that_share_an_input_are_found() -> None:
    assert shared_inputs(config_of("llama")) == {
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
    }
    assert shared_inputs(config_of("gpt2")) == frozenset()
    assert ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1") in shared_inputs(config_of("phi"))


def test_experts_are_packed_and_routers_are_not() -> None:
    packed = packed_copy(random_model(config_of("mixtral")), Packing.INT8)
    block = find_blocks(packed, 6).blocks[0]
    assert isinstance(block.mlp.experts, PackedExperts)
    assert block.mlp.gate.weight.shape == (4, 64)


class _Doubling:
    """A packed matrix that counts its products."""

    nbytes = 0

    latest: weakref.ref[torch.Tensor]

    def __init__(self) -> None:
        self.products = 0

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        self.products += 1
        product = torch.cat([rows, 2 * rows], dim=1)
        self.latest = weakref.ref(product)
        return product


def test_a_shared_product_is_computed_once_for_the_same_tensor() -> None:
    matrix = _Doubling()
    product = SharedProduct(matrix, [3, 3])
    rows = torch.rand(1, 5, 3)
    assert torch.equal(product.take(rows, 0), rows)
    assert torch.equal(product.take(rows, 1), 2 * rows)
    assert matrix.products == 1


def test_a_shared_product_is_never_used_for_another_tensor() -> None:
    """Nor twice, nor by the first of the next forward, even if the same tensor has new values then."""
    matrix = _Doubling()
    product = SharedProduct(matrix, [3, 3])
    rows = torch.rand(1, 5, 3)
    product.take(rows, 0)
    equal = rows.clone()
    assert torch.equal(product.take(equal.mul_(7), 1), 2 * equal)
    product.take(rows, 0)
    rows.add_(1)
    assert torch.equal(product.take(rows, 0), rows)
    assert torch.equal(product.take(rows, 1), 2 * rows)
    rows.add_(1)
    assert torch.equal(product.take(rows, 1), 2 * rows)


def test_a_shared_product_keeps_nothing_once_all_parts_are_taken() -> None:
    """Neither its input nor its output, which are as large as a step."""
    matrix = _Doubling()
    product = SharedProduct(matrix, [3, 3])
    rows = torch.rand(1, 5, 3)
    product.take(rows, 0)
    given, made = weakref.ref(rows), matrix.latest
    product.take(rows, 1)
    del rows
    assert given() is None
    assert made() is None


def test_a_bfloat16_block_stays_bfloat16() -> None:
    model = random_model(config_of("llama")).bfloat16()
    exact = logits_of(model)
    forms = [(int8_form(64), 8e-2)]
    if math.isfinite(error_here(Packing.PREPACKED, 64, torch.bfloat16)):
        forms.append((Packing.PREPACKED, 2e-2))
    for packing, bound in forms:
        found = logits_of(packed_copy(model, packing))
        assert found.dtype == torch.bfloat16
        assert relative_error(found.float(), exact.float()) < bound
