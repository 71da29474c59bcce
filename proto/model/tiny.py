"""A tiny model of any family: the same kind of blocks in the same pattern, small enough to run in milliseconds.

What a family does (whether its blocks return tuples, which way of batching gives the model's own numbers) is found out
by running such a model with random weights, not by knowing the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UnsupportedModel
from .family import attention_implementation, building, family_class, inference_copy
from .per_block import block_kinds, values_of_blocks

MAX_ELEMENTS = 1 << 27
"""Elements of a model with random weights."""

_WIDTHS: Mapping[str, int] = {
    "hidden_size": 64,
    "vocab_size": 199,
    "max_position_embeddings": 128,
    "max_seq_len": 128,
    "original_max_position_embeddings": 16,
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
    "moe_num_experts": 4,
    "vocab_size_per_layer_input": 199,
    "hidden_size_per_layer_input": 16,
    "attention_hidden_size": 64,
    "d_head": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_expand": 2,
}
"""Sizes of a tiny model, by the names that transformers uses, whatever they are in the model; 0 and None stay."""

_MOST: Mapping[str, int] = {
    "num_experts_per_tok": 2,
    "moe_top_k": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 2,
    "sliding_window": 8,
    "window_size": 8,
    "local_attention": 8,
    "attention_chunk_size": 8,
    "floor_scale": 8,
    "index_topk": 8,
    "index_topk_blocks": 2,
    "index_block_size": 4,
}
"""Upper limits of numbers that a model may also have smaller. What has another name is left alone."""

_LATENT_HEAD_SIZES: Mapping[str, int] = {"head_dim": 8, "qk_head_dim": 24}
"""Sizes that follow from the others where attention keeps a latent (MLA): rotated, and rotated plus not."""
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads")
_MEANINGLESS_WHEN_TINY = ("dtype", "id2label", "label2id")
_STRETCHED_BY_LENGTH = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
"""Kinds of rotary positions whose frequencies depend on the longest text so far, beyond the size of this name."""
_UNSTRETCHED_TOKENS = 128
"""The original context of such a tiny model: longer than the texts that are tried."""
_ONE_PER_FREQUENCY = ("short_factor", "long_factor")
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
FIRST_TEXT_TOKEN = len(_SPECIAL_TOKENS)
"""Tokens of a tiny model from this one on have no meaning of their own."""


def tiny_config(config: PreTrainedConfig, num_blocks: int = 6) -> PreTrainedConfig:
    """A model of the same kind with tiny widths and at most `num_blocks` blocks that keep the kinds of blocks in order.

    Windows and the original context of stretched positions shrink to a few tokens, so that a short prompt passes them;
    except where it may not be passed (`steady_length`).  Raises UnsupportedModel if the family does not
    accept the small sizes.
    """
    values = values_of_blocks(config, representative_blocks(config, num_blocks))
    tiny = _Shrinking(config, values).values()
    with building():
        return type(config).from_dict(tiny)


def steady_length(config: PreTrainedConfig) -> int | None:
    """How long a text may be before the keys and values of its first tokens depend on its length; None: any length.

    Beyond that, a cache does not hold what the model computes from the whole text at once.
    """
    limits = [getattr(config, "keep_window_size", None)]  # the keys that weigh most are kept, of those there are
    for parameters in _rope_parameters(getattr(config, "rope_parameters", None)):
        name = _STRETCHED_BY_LENGTH.get(str(parameters.get("rope_type")))
        if name is not None:
            limits.append(parameters.get(name) or getattr(config, name, None))
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def _rope_parameters(values: Any) -> list[Mapping[str, Any]]:
    """The rotary positions of a configuration, which may be different ones for each type of block."""
    if not isinstance(values, dict):
        return []
    return [values, *(found for inner in values.values() for found in _rope_parameters(inner))]


def representative_blocks(config: PreTrainedConfig, count: int) -> list[int]:
    """The first `count` blocks, the last of them replaced by later ones of kinds that would be missing."""
    kinds = block_kinds(config)
    first_of_kind = [block for block, kind in enumerate(kinds) if kind not in kinds[:block]]
    missing = [block for block in first_of_kind if block >= count][: count - 1]
    return [*range(min(count, len(kinds)) - len(missing)), *missing]


class _Shrinking:
    """The values of one configuration on their way to tiny ones; some depend on the original values of others."""

    def __init__(self, config: PreTrainedConfig, values: Mapping[str, Any]) -> None:
        self._values = {name: value for name, value in values.items() if name not in _MEANINGLESS_WHEN_TINY}
        self._common_names = {own: common for common, own in config.attribute_map.items()}
        common = {self._common_names.get(name, name): value for name, value in self._values.items()}
        self._heads: int | None = common.get("num_attention_heads")
        self._hidden_size = common.get("hidden_size")
        self._is_latent = "qk_rope_head_dim" in common
        self._original_context = _WIDTHS["original_max_position_embeddings"]
        if steady_length(config) is not None:
            self._original_context = _UNSTRETCHED_TOKENS
        rotated = common.get("qk_rope_head_dim") or common.get("head_dim")
        self._head_size = rotated or (self._hidden_size or 0) // (self._heads or 1)

    def values(self) -> dict[str, Any]:
        own = self._values.get("per_layer_config") or {}
        tiny = {name: self._shrunk(name, value) for name, value in self._values.items() if name != "per_layer_config"}
        if own:
            tiny["per_layer_config"] = {
                block: {name: self._own_value(name, value, tiny) for name, value in settings.items()}
                for block, settings in own.items()
            }
        return tiny

    def _own_value(self, name: str, value: Any, tiny: Mapping[str, Any]) -> Any:
        """A block's own setting: larger or smaller than that of the other blocks, if it is so in the model."""
        others, shrunk = self._values.get(name), tiny.get(name)
        if type(value) is type(others) is type(shrunk) is int and others != shrunk:
            return 2 * shrunk if value > others else max(1, shrunk // 2) if value < others else shrunk
        return self._shrunk(name, value)

    def _shrunk(self, name: str, value: Any) -> Any:
        name = self._common_names.get(name, name)
        if isinstance(value, dict):
            return {
                inner: self._shrunk(inner, content)
                for inner, content in value.items()
                if inner not in _MEANINGLESS_WHEN_TINY
            }
        if name.endswith("_token_id"):
            token = _SPECIAL_TOKENS.index(name) if name in _SPECIAL_TOKENS else 0
            return None if value is None else [token] if isinstance(value, list) else token
        if isinstance(value, list):
            return self._shrunk_list(name, value)
        return self._shrunk_size(name, value) if type(value) is int and value > 0 else value

    def _shrunk_list(self, name: str, value: list[Any]) -> list[Any]:
        size = _LATENT_HEAD_SIZES["head_dim"] if self._is_latent else _WIDTHS["head_dim"]
        if name in _ONE_PER_FREQUENCY:
            return value[: max(1, len(value) * size // self._head_size)]
        if name == "mrope_section":
            return [part * size // self._head_size for part in value]
        return value

    def _shrunk_size(self, name: str, value: int) -> int:
        if name in _KV_HEADS:
            return _WIDTHS["num_attention_heads"] if value == self._heads else min(value, 2)
        if self._is_latent and name in _LATENT_HEAD_SIZES:
            return _LATENT_HEAD_SIZES[name]
        if name == "original_max_position_embeddings":
            return self._original_context
        if name == "word_embed_proj_dim":
            return _WIDTHS["hidden_size"] // (1 if value == self._hidden_size else 2)
        return min(value, _MOST[name]) if name in _MOST else _WIDTHS.get(name, value)


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """The full model in float32 with random weights, large enough that every weight matters to the logits.

    The global random state is left as it was. Raises UnsupportedModel for a model that is not a small one.
    """
    family = family_class(config)
    with building(), torch.device("meta"):
        elements = sum(parameter.numel() for parameter in family(inference_copy(config)).parameters())
    if elements > MAX_ELEMENTS:
        raise UnsupportedModel(f"a small copy of this {config.model_type} has {elements} numbers")
    with building(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family._from_config(
            inference_copy(config), dtype=torch.float32, attn_implementation=attention_implementation(family)
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            else:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    built: PreTrainedModel = model.eval()
    return built
