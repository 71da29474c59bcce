"""A run of transformer blocks on this peer, computed by the family's own code.

A `Stage` owns the weights of the hosted blocks.  A `StageView` runs some or all of them in order: sessions may enter
and leave a peer inside its range.  Views share the blocks and differ only in the shell around them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...proto.checkpoint import Checkpoint
from ...proto.errors import UsageError
from ...proto.family import BlockEdge, BlockList, Passage, load_model, slice_config, stage_class
from ...routing.swarm import BlockRange
from .kv import RowKV


@dataclass(frozen=True, slots=True)
class RowSlice:
    """`count` tokens of one row in a step, which continue the row at position `start`."""

    kv: RowKV
    start: int
    count: int


class Stage:
    """The hosted `blocks` of a model, ready to compute."""

    def __init__(self, model: PreTrainedModel, blocks: BlockRange) -> None:
        self.blocks = blocks
        self.config = model.config
        self._found = BlockList.at(model, model.blocks_path)
        self._views: dict[BlockRange, StageView] = {}
        self.block_bytes = max(_tensor_bytes(block) for block in self._found.blocks)
        """Weights of the largest hosted block, bytes."""
        self.kv_bytes_per_token = _measure_kv_bytes_per_token(self)
        """Attention cache of one token in the block that needs most, bytes."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        return next(self._found.blocks.parameters()).dtype

    @property
    def hidden_size(self) -> int:
        size: int = self.config.hidden_size
        return size

    def view(self, blocks: BlockRange) -> StageView:
        """What runs `blocks`, a part of this stage. Raises UsageError if they are not all hosted here."""
        if not self.blocks.covers(blocks):
            raise UsageError(f"blocks {blocks} are not among the hosted blocks {self.blocks}")
        if blocks not in self._views:
            first = blocks.start - self.blocks.start
            self._views[blocks] = StageView(self._found, first, blocks)
        return self._views[blocks]


class StageView:
    """Runs a contiguous part of a stage's blocks. One thread at a time."""

    def __init__(self, found: BlockList, first: int, blocks: BlockRange) -> None:
        self.blocks = blocks
        self._passage = Passage()
        run: list[nn.Module] = list(found.blocks[first : first + len(blocks)])
        for edge in {0, len(run) - 1}:
            run[edge] = BlockEdge(run[edge], self._passage, first=edge == 0, last=edge == len(run) - 1)
        self._owner = _shell_copy(found, nn.ModuleList(run), first)

    def new_row(self, max_tokens: int) -> RowKV:
        """An empty cache for a row of at most `max_tokens` tokens in these blocks."""
        return RowKV(self.blocks, max_tokens)

    @torch.inference_mode()
    def forward(self, hidden: torch.Tensor, rows: Sequence[RowSlice]) -> torch.Tensor:
        """Compute a step of several rows: (T, H) -> (T, H), the rows' tokens one after the other.

        Each row is first truncated to its `start`. Raises ValueError if a row is shorter than that, has no cache for
        some of the blocks, or if the counts do not add up to T; OutOfMemory if a row would grow beyond its
        reservation. Rows before it are then complete.
        """
        if not all(row.kv.blocks.covers(self.blocks) for row in rows):
            raise ValueError(f"a row has no cache for some of the blocks {self.blocks}")
        counts = [row.count for row in rows]
        if sum(counts) != hidden.shape[0]:
            raise ValueError(f"rows of {counts} tokens do not make {hidden.shape[0]}")
        if len(rows) == 1:
            return self._forward_row(hidden, rows[0].kv, rows[0].start)
        parts = zip(hidden.split(counts), rows, strict=True)
        return torch.cat([self._forward_row(part, row.kv, row.start) for part, row in parts])

    def _forward_row(self, hidden: torch.Tensor, kv: RowKV, start: int) -> torch.Tensor:
        """(T, H) -> (T, H): the tokens at positions start..start+T of one row."""
        count = hidden.shape[0]
        kv.truncate(start)
        entering = hidden[None]
        self._passage.entering = entering
        try:
            self._owner(
                inputs_embeds=entering,
                position_ids=torch.arange(start, start + count)[None],
                attention_mask=None,
                past_key_values=kv,
                use_cache=True,
            )
            leaving = self._passage.leaving
        finally:
            self._passage.entering = self._passage.leaving = None
        assert leaving is not None
        kv.advance(count)
        return leaving[0]


def load_stage(
    checkpoint: Checkpoint,
    blocks: BlockRange,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> Stage:
    """Load `blocks` of a checkpoint, reading (and from a hub: fetching) only their tensors.

    `progress` is called with bytes done and bytes in all. Raises UsageError for blocks that the model does not have,
    UnsupportedModel, ModelMismatch for a checkpoint that lacks weights.
    """
    if blocks.stop > checkpoint.num_blocks:
        raise UsageError(
            f"the model has blocks 0:{checkpoint.num_blocks}, not {blocks}",
            hint=f"Choose a range inside 0:{checkpoint.num_blocks}.",
        )
    model_class = stage_class(checkpoint.config, blocks)
    model = load_model(model_class, checkpoint.config, checkpoint.block_state(blocks, progress), dtype)
    return Stage(model, blocks)


def _shell_copy(found: BlockList, run: nn.ModuleList, first: int) -> Any:
    """A copy of the owner around other blocks; everything else in it is shared, only its configuration is its own."""
    owner = found.owner
    memo: dict[int, Any] = {id(child): child for child in owner.children()}
    memo[id(found.blocks)] = run
    memo[id(owner.config)] = slice_config(owner.config, first, first + len(run))
    return copy.deepcopy(owner, memo)


def _tensor_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _measure_kv_bytes_per_token(stage: Stage) -> int:
    """Run one token through all blocks and look at what they cached."""
    view = stage.view(stage.blocks)
    row = view.new_row(max_tokens=1)
    view.forward(torch.zeros(1, stage.hidden_size, dtype=stage.dtype), [RowSlice(row, 0, 1)])
    return max(block.keys.nbytes + block.values.nbytes for block in row.export())
