"""A tiny copy is small, and of the model's kind in everything that the check of a family is to see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blockswarm.proto.model.per_block import per_block_settings
from blockswarm.proto.model.tiny import (
    FIRST_TEXT_TOKEN,
    random_model,
    representative_blocks,
    steady_length,
    tiny_config,
)
from support.tiny_models import tiny_model_config
from transformers import AutoConfig


def test_types_of_blocks_that_come_late_are_kept() -> None:
    config = AutoConfig.for_model(
        "qwen2", num_hidden_layers=40, use_sliding_window=True, sliding_window=4096, max_window_layers=30
    )
    assert representative_blocks(config, 6) == [0, 1, 2, 3, 4, 30]
    assert set(tiny_config(config).layer_types) == {"full_attention", "sliding_attention"}
    assert len(tiny_config(config).layer_types) == 6


def test_a_single_block_is_the_first() -> None:
    config = AutoConfig.for_model("gemma2", num_hidden_layers=8)
    assert representative_blocks(config, 1) == [0]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [(32, 8, (4, 2)), (32, 32, (4, 4)), (32, 1, (4, 1)), (1, 1, (4, 4)), (3, 3, (4, 4))],
)
def test_the_kind_of_attention_is_kept(heads: int, kv_heads: int, expected: tuple[int, int]) -> None:
    """All heads alone, in groups, or all together; a model of one head is not refused for a copy that has four."""
    tiny = tiny_config(
        AutoConfig.for_model("llama", hidden_size=96 * 32, num_attention_heads=heads, num_key_value_heads=kv_heads)
    )
    assert (tiny.num_attention_heads, tiny.num_key_value_heads) == expected


def test_nested_sizes_shrink_too() -> None:
    """DBRX keeps the number of its KV heads and experts in parts of its configuration."""
    published: dict[str, Any] = {
        "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000},
        "ffn_config": {"ffn_act_fn": {"name": "silu"}, "ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    }
    tiny = tiny_config(AutoConfig.for_model("dbrx", d_model=6144, n_heads=48, n_layers=40, **published))
    assert (tiny.attn_config.kv_n_heads, tiny.ffn_config.moe_num_experts, tiny.ffn_config.moe_top_k) == (2, 4, 2)
    random_model(tiny)


def test_blocks_with_sizes_of_their_own_keep_larger_or_smaller_ones() -> None:
    config = AutoConfig.for_model(
        "gemma4_text",
        num_hidden_layers=12,
        num_attention_heads=32,
        num_key_value_heads=16,
        num_global_key_value_heads=4,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
    )
    tiny = tiny_config(config)
    assert (tiny.to_dict()["head_dim"], dict(per_block_settings(tiny))) == (
        16,
        {5: {"head_dim": 32, "num_key_value_heads": 1}},
    )


def test_factors_of_stretched_positions_fit_the_tiny_heads() -> None:
    """Phi-4-mini rotates three quarters of a head of 128: 48 factors."""
    config = AutoConfig.for_model(
        "phi3",
        hidden_size=3072,
        num_attention_heads=24,
        num_key_value_heads=8,
        partial_rotary_factor=0.75,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0] * 48,
            "long_factor": [1.5] * 48,
        },
    )
    assert len(tiny_config(config).rope_parameters["short_factor"]) == 6
    assert steady_length(config) == 4096
    random_model(tiny_config(config))


def test_special_tokens_are_none_of_the_texts() -> None:
    """Families look for their padding in the tokens."""
    tiny = tiny_config(tiny_model_config("llama", pad_token_id=256, eos_token_id=[250, 251], bos_token_id=200))
    assert max(tiny.pad_token_id, tiny.bos_token_id, *tiny.eos_token_id) < FIRST_TEXT_TOKEN


def test_the_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    random_model(tiny_config(tiny_model_config("llama")))
    assert torch.equal(torch.random.get_rng_state(), state)
