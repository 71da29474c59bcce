"""A chain of stages computes what the whole model computes, for every family and every way to cut it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.stage import RowSlice, Stage, load_stage
from blockswarm.proto.checkpoint import open_checkpoint
from blockswarm.proto.family import ends_class, load_model, random_model
from blockswarm.routing.swarm import BlockRange
from support.tiny_models import SERVED_MODELS, tiny_model_config, write_tiny_checkpoint
from torch import nn

TOLERANCE = 1e-5
"""Absolute, on float32 logits of about 1: the sums run in another order where a prompt is cut differently."""

CUTS = (BlockRange(0, 2), BlockRange(2, 3), BlockRange(3, 6))


class Chain(nn.Module):
    """Stages one after the other, as the remote module of a client; one row."""

    def __init__(self, stages: list[Stage]) -> None:
        super().__init__()
        self.views = [stage.view(stage.blocks) for stage in stages]
        self.rows = [view.new_row(max_tokens=64) for view in self.views]

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = hidden_states[0]
        for view, row in zip(self.views, self.rows, strict=True):
            hidden = view.forward(hidden, [RowSlice(row, row.length, hidden.shape[0])])
        return hidden[None]


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_three_chained_stages_equal_the_full_model(name: str, tmp_path: Path) -> None:
    """From a sharded checkpoint: a prompt, a second chunk behind it, and cached decoding."""
    folder = write_tiny_checkpoint(name, tmp_path)
    checkpoint = open_checkpoint(folder)
    chain = Chain([load_stage(checkpoint, blocks) for blocks in CUTS])
    ends = load_model(ends_class(checkpoint.config, lambda: chain), checkpoint.config, checkpoint.ends_state())
    tokens = torch.randint(3, 257, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = random_model(tiny_model_config(name))(input_ids=tokens, use_cache=False).logits
        position, logits = 0, []
        for count in (17, 1, 1, 6, 1, 1, 1, 1, 1):
            logits.append(run_ends(ends, tokens, position, count))
            position += count
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=TOLERANCE, rtol=0)


def run_ends(ends: nn.Module, tokens: torch.Tensor, position: int, count: int) -> torch.Tensor:
    """The logits of tokens position..position+count, which continue what the chain has cached."""
    positions = torch.arange(position, position + count)[None]
    logits: torch.Tensor = ends(
        input_ids=tokens[:, position : position + count], position_ids=positions, use_cache=False
    ).logits
    return logits
