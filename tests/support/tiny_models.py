"""Tiny models of many families: configurations, and checkpoints with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from blockswarm.proto.model.tiny import random_model
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig

_SIZES: Mapping[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GPT2_SIZES = {"vocab_size": 257, "n_embd": 64, "n_layer": 6, "n_head": 4}
_FALCON_SIZES = {key: _SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}

_COMMON: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama3-rope": ("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "mixtral": ("mixtral", {**_LOCAL_EXPERTS, "sliding_window": None}),
    "qwen2_moe": ("qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 64, "decoder_sparse_step": 2}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "head_dim": 16, "mlp_only_layers": [1]}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": 8}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 8}),
    "stablelm": ("stablelm", {}),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", {"sliding_window": 8}),
    "starcoder2": ("starcoder2", {"sliding_window": 8}),
    "granite": ("granite", {"embedding_multiplier": 12.0, "logits_scaling": 3.0, "residual_multiplier": 0.22}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "n_shared_experts": 1,
        },
    ),
    "gpt_oss": ("gpt_oss", {**_LOCAL_EXPERTS, "head_dim": 16, "sliding_window": 8}),
    "glm4": ("glm4", {"head_dim": 16}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 3}),
    "phimoe": ("phimoe", {**_LOCAL_EXPERTS, "sliding_window": 8}),
    "llama4": (
        "llama4_text",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "attention_chunk_size": 8,
            "interleave_moe_layer_step": 2,
        },
    ),
    "biogpt": ("biogpt", {}),
    "jetmoe": ("jetmoe", {**_LOCAL_EXPERTS, "kv_channels": 16, "num_key_value_heads": 2, "num_attention_heads": 4}),
    "qwen3_next": (
        "qwen3_next",
        {
            **_EXPERTS,
            "shared_expert_intermediate_size": 48,
            "head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
}
"""Families that use the common names of sizes."""

_OWN_NAMES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt_neox": ("gpt_neox", {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"}),
    "gpt2": ("gpt2", {**_GPT2_SIZES, "n_positions": 512}),
    "opt": (
        "opt",
        {**_FALCON_SIZES, "ffn_dim": 96, "max_position_embeddings": 512, "word_embed_proj_dim": 64},
    ),
    "falcon": (
        "falcon",
        {**_FALCON_SIZES, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
    ),
    "falcon-new": ("falcon", {**_FALCON_SIZES, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon-alibi": (
        "falcon",
        {
            **_FALCON_SIZES,
            "new_decoder_architecture": False,
            "multi_query": False,
            "parallel_attn": False,
            "alibi": True,
            "bias": True,
        },
    ),
    "bloom": ("bloom", {"vocab_size": 257, "hidden_size": 64, "n_layer": 6, "n_head": 4}),
    "mpt": ("mpt", {"vocab_size": 257, "d_model": 64, "n_layers": 6, "n_heads": 4, "max_seq_len": 512}),
    "gptj": ("gptj", {**_GPT2_SIZES, "rotary_dim": 8}),
}

REFUSED_MODELS = ("qwen3_next",)
"""Models with state that cannot be rolled back."""

MODELS_THAT_LOOK = ("biogpt", "jetmoe")
"""Served models that look at values on the way to their attention cache; only tests of that need them."""

SERVED_MODELS = tuple(
    name for name in (*_COMMON, *_OWN_NAMES) if name not in REFUSED_MODELS and name not in MODELS_THAT_LOOK
)


PADDED_MODELS = ("stablelm", "falcon", "falcon-new", "falcon-alibi", "bloom", "mpt", "gptj")
"""Served models that attend in their own way, or do not pass on what the packed attention needs."""

SINGLE_MODELS = ("llama4",)
"""Served models whose rows do not bear to be in one step beyond a length: Llama 4 counts positions from the cache's."""


def tiny_model_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a tiny model of six blocks; `changes` override its values."""
    if name in _COMMON:
        model_type, values = _COMMON[name]
        return AutoConfig.for_model(model_type, **{**_SIZES, **values, **changes})
    model_type, values = _OWN_NAMES[name]
    return AutoConfig.for_model(model_type, **{**values, **changes})


def write_tiny_checkpoint(
    name: str,
    folder: Path,
    *,
    max_shard_size: str = "200KB",
    stored: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Write a checkpoint with random weights (seed 0) into `folder`, in several shards; returns the folder."""
    model = random_model(tiny_model_config(name, **changes)).to(stored)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def all_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read by safetensors itself."""
    return {name: tensor for shard in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(shard).items()}
