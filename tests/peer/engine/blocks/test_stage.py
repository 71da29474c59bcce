"""A chain of stages computes what the whole model computes, for every family and every way to cut it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import BatchingRoute, RowSpan, Stage, StageView
from blockswarm.peer.engine.cache.row import RowKV
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.errors import OutOfMemory, UsageError
from blockswarm.proto.model.checkpoint import Checkpoint, open_checkpoint
from blockswarm.proto.model.ends import ends_class
from blockswarm.proto.model.family import load_model
from blockswarm.proto.model.tiny import random_model
from blockswarm.routing.swarm import BlockRange
from support.tiny_models import PADDED_MODELS, SERVED_MODELS, tiny_model_config, write_tiny_checkpoint
from torch import nn
from transformers import PreTrainedModel

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
            hidden = view.forward(hidden, [RowSpan(row, row.length, hidden.shape[0])])
        return hidden[None]


@pytest.mark.long
@pytest.mark.parametrize("name", SERVED_MODELS)
def test_three_chained_stages_equal_the_full_model(name: str, tmp_path: Path) -> None:
    """From a sharded checkpoint: a prompt, a second chunk behind it, and cached decoding."""
    folder = write_tiny_checkpoint(name, tmp_path)
    checkpoint = open_checkpoint(folder)
    route = BatchingRoute.PADDED if name in PADDED_MODELS else BatchingRoute.PACKED
    chain = Chain([load_stage(checkpoint, blocks, route=route) for blocks in CUTS])
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


@pytest.fixture(scope="module", params=BatchingRoute, ids=lambda route: route.value)
def mixed_windows(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, Checkpoint, Stage]:
    """A model with two types of blocks, its checkpoint, and one stage of all its blocks."""
    folder = write_tiny_checkpoint("gemma3", tmp_path_factory.mktemp("gemma3"))
    checkpoint = open_checkpoint(folder)
    stage = load_stage(checkpoint, BlockRange(0, 6), route=request.param)
    return random_model(tiny_model_config("gemma3")), checkpoint, stage


def random_hidden(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(seed))


def feed(view: StageView, row: RowKV, hidden: torch.Tensor) -> torch.Tensor:
    """One more step of a single row."""
    return view.forward(hidden, [RowSpan(row, row.length, hidden.shape[0])])


@pytest.mark.long
@pytest.mark.parametrize("cuts", [(0, 1, 6), (0, 3, 4, 6), (0, 1, 2, 3, 4, 5, 6)])
def test_views_of_any_part_chain_to_the_whole_stage(
    mixed_windows: tuple[PreTrainedModel, Checkpoint, Stage], cuts: tuple[int, ...]
) -> None:
    """A session may enter and leave a peer inside its range, and views do not disturb each other."""
    _, _, stage = mixed_windows
    whole, parts = stage.view(stage.blocks), [stage.view(BlockRange(a, b)) for a, b in itertools.pairwise(cuts)]
    row, rows = whole.new_row(64), [part.new_row(64) for part in parts]
    for count in (13, 1, 4):
        hidden = random_hidden(count, seed=count)
        expected = feed(whole, row, hidden)
        for part, part_row in zip(parts, rows, strict=True):
            hidden = feed(part, part_row, hidden)
        torch.testing.assert_close(hidden, expected, atol=TOLERANCE, rtol=0)


def test_a_step_of_several_rows_is_each_row_on_its_own(
    mixed_windows: tuple[PreTrainedModel, Checkpoint, Stage],
) -> None:
    _, _, stage = mixed_windows
    view = stage.view(BlockRange(1, 5))
    together, alone = ([view.new_row(64) for _ in range(3)] for _ in range(2))
    for counts in ((3, 11, 1), (1, 2, 9), (1, 1, 1)):
        hidden = random_hidden(sum(counts), seed=counts[0])
        slices = [RowSpan(row, row.length, count) for row, count in zip(together, counts, strict=True)]
        expected = [feed(view, row, part) for row, part in zip(alone, hidden.split(counts), strict=True)]
        torch.testing.assert_close(view.forward(hidden, slices), torch.cat(expected), atol=TOLERANCE, rtol=0)


def test_a_row_goes_back_before_it_continues(mixed_windows: tuple[PreTrainedModel, Checkpoint, Stage]) -> None:
    """Beyond the window of 8 too: what was computed after the point is as if it had never been."""
    _, _, stage = mixed_windows
    view = stage.view(stage.blocks)
    hidden = random_hidden(20)
    straight, returning = view.new_row(64), view.new_row(64)
    expected = feed(view, straight, hidden)
    feed(view, returning, torch.cat([hidden[:11], random_hidden(15, seed=9)]))
    redone = view.forward(hidden[11:], [RowSpan(returning, 11, 9)])
    torch.testing.assert_close(redone, expected[11:], atol=TOLERANCE, rtol=0)
    assert returning.length == 20


def test_a_row_moved_to_another_stage_continues_there(
    mixed_windows: tuple[PreTrainedModel, Checkpoint, Stage],
) -> None:
    _, checkpoint, stage = mixed_windows
    elsewhere = load_stage(checkpoint, BlockRange(2, 5), route=stage.route)
    here, there = stage.view(BlockRange(2, 4)), elsewhere.view(BlockRange(2, 4))
    row = here.new_row(64)
    feed(here, row, random_hidden(12))
    moved = RowKV.import_(row.blocks, 64, row.export())
    assert torch.equal(feed(there, moved, random_hidden(1, seed=1)), feed(here, row, random_hidden(1, seed=1)))


def test_a_step_that_does_not_fit_changes_nothing(mixed_windows: tuple[PreTrainedModel, Checkpoint, Stage]) -> None:
    _, _, stage = mixed_windows
    view = stage.view(stage.blocks)
    row = view.new_row(max_tokens=10)
    feed(view, row, random_hidden(8))
    with pytest.raises(OutOfMemory):
        feed(view, row, random_hidden(3))
    with pytest.raises(ValueError, match="truncate"):
        view.forward(random_hidden(1), [RowSpan(row, 9, 1)])
    with pytest.raises(ValueError, match="cache for some"):
        feed(view, stage.view(BlockRange(1, 6)).new_row(10), random_hidden(1))
    with pytest.raises(ValueError, match="rows"):
        view.forward(random_hidden(2), [RowSpan(row, 8, 1)])
    assert row.length == 8
    feed(view, row, random_hidden(2))


def test_blocks_that_are_not_there_are_a_usage_error(
    mixed_windows: tuple[PreTrainedModel, Checkpoint, Stage],
) -> None:
    _, checkpoint, _stage = mixed_windows
    with pytest.raises(UsageError, match="0:6"):
        load_stage(checkpoint, BlockRange(4, 7))
    with pytest.raises(UsageError, match="hosted"):
        load_stage(checkpoint, BlockRange(2, 4)).view(BlockRange(3, 5))


def test_sizes_are_those_of_the_real_tensors(mixed_windows: tuple[PreTrainedModel, Checkpoint, Stage]) -> None:
    model, checkpoint, stage = mixed_windows
    one_block = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    assert stage.block_bytes == one_block == checkpoint.block_bytes(0)
    # 2 KV heads of 16, keys and values, 4 bytes each.
    assert stage.kv_bytes_per_token == 2 * 2 * 16 * 4
    assert load_stage(checkpoint, BlockRange(0, 1), dtype=torch.bfloat16).block_bytes == one_block // 2


def test_only_the_wanted_tensors_are_read(mixed_windows: tuple[PreTrainedModel, Checkpoint, Stage]) -> None:
    _, checkpoint, _ = mixed_windows
    seen: list[tuple[int, int]] = []
    load_stage(checkpoint, BlockRange(2, 4), progress=lambda done, total: seen.append((done, total)))
    total = checkpoint.block_bytes(2) + checkpoint.block_bytes(3)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_layer_that_scales_by_its_index_keeps_its_own(tmp_path: Path) -> None:
    """Blocks are numbered as in the full model: GPT-2 can divide attention by the number of the block."""
    changes = {"scale_attn_by_inverse_layer_idx": True}
    checkpoint = open_checkpoint(write_tiny_checkpoint("gpt2", tmp_path, **changes))
    model = random_model(tiny_model_config("gpt2", **changes))
    view = load_stage(checkpoint, BlockRange(3, 5)).view(BlockRange(4, 5))
    hidden = random_hidden(5)
    with torch.inference_mode():
        expected = model.transformer.h[4](hidden[None])[0]
    torch.testing.assert_close(feed(view, view.new_row(8), hidden), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_numbers_do_not_depend_on_the_default_dtype_of_the_process(name: str, tmp_path: Path) -> None:
    """transformers sets it while it builds a model, and a peer that moves loads blocks beside its sessions' steps."""
    route = BatchingRoute.PADDED if name in PADDED_MODELS else BatchingRoute.PACKED
    checkpoint = open_checkpoint(write_tiny_checkpoint(name, tmp_path))
    view = load_stage(checkpoint, BlockRange(1, 5), torch.bfloat16, route=route).view(BlockRange(1, 5))

    schedule = ((19, 1), (1, 7), (1, 1))
    inputs = [random_hidden(sum(counts), seed=step).bfloat16() for step, counts in enumerate(schedule)]

    def outputs() -> torch.Tensor:
        rows = [view.new_row(64) for _ in range(2)]
        found = []
        for hidden, counts in zip(inputs, schedule, strict=True):
            spans = [RowSpan(row, row.length, count) for row, count in zip(rows, counts, strict=True)]
            found.append(view.forward(hidden, spans))
        return torch.cat(found)

    expected = outputs()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = outputs()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
