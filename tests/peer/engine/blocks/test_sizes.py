"""The memory that a block will need, told before it is loaded, against the loaded stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.blocks.sizes import block_sizes
from blockswarm.peer.engine.blocks.stage import BatchingRoute
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.weights.forms import Packing
from blockswarm.routing.swarm import BlockRange
from support.tiny_models import PADDED_MODELS, write_tiny_checkpoint

FAMILIES = (
    "llama", "mistral", "gemma3", "deepseek_v3", "mixtral", "gpt_oss", "llama4", "falcon", "bloom", "gpt2", "biogpt",
    "jetmoe",
)  # fmt: skip
"""Grouped heads, windows, latent attention, experts, one head for all, fused projections, no rotary positions; a mask
made from its values, experts for the queries."""


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_measure_is_what_the_loaded_stage_takes(name: str, dtype: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(name, tmp_path))
    route = BatchingRoute.PADDED if name in PADDED_MODELS else BatchingRoute.PACKED
    stage = load_stage(checkpoint, BlockRange(0, checkpoint.num_blocks), getattr(torch, dtype), route=route)
    weights, kv_per_token = block_sizes(checkpoint.config, dtype, Packing.PLAIN)
    assert kv_per_token == stage.kv_bytes_per_token
    # Some families keep a few biases in float32 whatever is asked for.
    assert weights == pytest.approx(stage.block_bytes, rel=0 if dtype == "float32" else 1e-3)


def test_the_configuration_is_left_alone(tmp_path: Path) -> None:
    config = open_checkpoint(write_tiny_checkpoint("llama-tied", tmp_path)).config
    before = config.to_dict()
    block_sizes(config, "float32", Packing.PLAIN)
    assert config.to_dict() == before
