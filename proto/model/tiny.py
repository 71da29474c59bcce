"""A tiny model of any family: the same kind of blocks in the same pattern, small enough to run in milliseconds.

What a family does (whether its blocks return tuples, which way of batching gives the model's own numbers) is found out
by running such a model with random weights, not by knowing the family.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .family import attention_implementation, family_class, quiet_transformers

_TINY_SIZES: Mapping[str, int] = {
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "vocab_size": 199,
    "max_position_embeddings": 64,
    "max_seq_len": 64,
    "intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "n_inner": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "num_attention_heads": 4,
    "head_dim": 16,
    "rotary_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 2,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "original_max_position_embeddings": 16,
}
"""Upper limits of a tiny configuration, by the names that transformers uses; what has another name is left alone."""

_LATENT_HEAD_SIZES: Mapping[str, int] = {"head_dim": 8, "qk_head_dim": 24}
"""Sizes that follow from the others where attention keeps a latent (MLA): rotated, and rotated plus not."""
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_MEANINGLESS_WHEN_TINY = ("dtype", "id2label", "label2id")
_TINY_ROPE_FACTORS = ("short_factor", "long_factor")


def tiny_config(config: PreTrainedConfig, num_blocks: int = 6) -> PreTrainedConfig:
    """A model of the same kind with tiny widths and at most `num_blocks` blocks that keep the pattern of block types.

    Windows and the original context of stretched positions shrink to a few tokens, so that a short prompt passes
    them.  Raises UnsupportedModel if the family does not accept the small sizes.
    """
    blocks = _representative_blocks(config, num_blocks)
    values = {key: value for key, value in config.to_dict().items() if key not in _MEANINGLESS_WHEN_TINY}
    common_names = {own: common for common, own in config.attribute_map.items()}
    for name, value in list(values.items()):
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            values[name] = [value[block] for block in blocks]
        elif name in _KV_HEADS and isinstance(value, int):
            every_head = value == config.num_attention_heads
            values[name] = _TINY_SIZES["num_attention_heads"] if every_head else min(value, 2)
        elif name in _LATENT_HEAD_SIZES and "qk_rope_head_dim" in values:
            values[name] = _LATENT_HEAD_SIZES[name]
        else:
            values[name] = _tiny_value(common_names.get(name, name), value)
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(blocks)
    if "dynamic" in _rope_types(values.get("rope_parameters")):
        # This kind of stretched positions has no original context of its own.
        values["max_position_embeddings"] = _TINY_SIZES["original_max_position_embeddings"]
    with quiet_transformers():
        return type(config).from_dict(values)


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """The full model in float32 with random weights, large enough that every weight matters to the logits.

    The global random state is left as it was.
    """
    family = family_class(config)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family._from_config(
            copy.deepcopy(config), dtype=torch.float32, attn_implementation=attention_implementation(family)
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            else:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    built: PreTrainedModel = model.eval()
    return built


def _representative_blocks(config: PreTrainedConfig, count: int) -> list[int]:
    """The first `count` blocks, the last of them replaced by later ones of types that would be missing."""
    types: list[Any] = list(getattr(config, "layer_types", None) or [None] * config.num_hidden_layers)
    chosen = list(range(min(count, len(types))))
    missing = [index for index in range(len(chosen), len(types)) if types[index] not in types[:index]]
    return sorted(chosen[: count - len(missing)] + missing[:count])


def _rope_types(parameters: Any) -> set[str]:
    """The kinds of rotary positions in a configuration, which may have one per type of block."""
    if not isinstance(parameters, dict):
        return set()
    return {parameters.get("rope_type", "default")}.union(*(_rope_types(inner) for inner in parameters.values()))


def _tiny_value(common_name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tiny_value(name, inner) for name, inner in value.items() if name not in _MEANINGLESS_WHEN_TINY}
    if common_name in _TINY_ROPE_FACTORS:
        return value[: _TINY_SIZES["head_dim"] // 2]
    if common_name.endswith("_token_id"):
        ids = value if isinstance(value, list) else [value]
        ids = [None if token is None else min(token, _TINY_SIZES["vocab_size"] - 1) for token in ids]
        return ids if isinstance(value, list) else ids[0]
    if isinstance(value, int) and not isinstance(value, bool) and common_name in _TINY_SIZES:
        return min(value, _TINY_SIZES[common_name])
    return value
