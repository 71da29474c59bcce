"""A run of transformer blocks on this peer, computed by the family's own code.

A `Stage` owns the weights of the hosted blocks.  A `StageView` runs some or all of them in order: sessions may enter
and leave a peer inside its range.  Views share the blocks and differ only in the shell around them.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from ....proto.errors import UsageError
from ....proto.model.checkpoint import Checkpoint
from ....proto.model.family import BlockEdge, BlockList, Passage, load_model, slice_config, stage_class
from ....routing.swarm import BlockRange
from ..cache.row import RowKV
from ..weights.quantize import held_bytes
from .attention import PACKED_ATTENTION, PackedRows
from .padded import PaddedRows, batches_of_similar_length
from .rows import RowOutOfMemory, RowSpan, check_rows

__all__ = ["BatchingRoute", "RowOutOfMemory", "RowSpan", "Stage", "StageView", "load_stage"]


_EXPANDED_TOKENS = 4096
"""Blocks that keep a latent (MLA) expand what is cached of all rows of a pack at once, to tens of times its size."""


class BatchingRoute(enum.Enum):
    """How a stage computes the rows of a step, the fastest first; `selfcheck` finds out which one a family bears."""

    PACKED = "packed"
    """All rows in one sequence, see `attention.py`."""
    PADDED = "padded"
    """Rows with one new token as a batch, see `padded.py`, the others one after the other."""
    SINGLE = "single"
    """One row after the other."""


class Stage:
    """The hosted `blocks` of a model, ready to compute."""

    def __init__(self, model: PreTrainedModel, blocks: BlockRange, route: BatchingRoute) -> None:
        """`model` was loaded with the attention that the route needs, see `attention_of`."""
        self.blocks = blocks
        self.route = route
        self.config = model.config
        self._found = BlockList.at(model, model.blocks_path)
        self._direct_blocks: set[int] = set()
        self._views: dict[BlockRange, StageView] = {}
        self.block_bytes = max(held_bytes(block) for block in self._found.blocks)
        """Weights of the largest hosted block, bytes."""
        self.kv_bytes_per_token = _measure_kv_bytes_per_token(self)
        """Attention cache of one token in the block that needs most, bytes."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        return next(self._found.blocks.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights and the rows' caches are, and where `StageView.forward` takes and gives tensors."""
        return next(self._found.blocks.parameters()).device

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
            self._views[blocks] = StageView(self._found, first, blocks, self.route, self._direct_blocks)
        return self._views[blocks]


class StageView:
    """Runs a contiguous part of a stage's blocks. One thread at a time."""

    def __init__(
        self, found: BlockList, first: int, blocks: BlockRange, route: BatchingRoute, direct_blocks: set[int]
    ) -> None:
        self.blocks = blocks
        self._passage = Passage()
        run: list[nn.Module] = list(found.blocks[first : first + len(blocks)])
        for edge in {0, len(run) - 1}:
            run[edge] = BlockEdge(run[edge], self._passage, first=edge == 0, last=edge == len(run) - 1)
        self._owner = _shell_copy(found, nn.ModuleList(run), first)
        self._direct_blocks = direct_blocks
        self._compute = {
            BatchingRoute.PACKED: self._forward_packed,
            BatchingRoute.PADDED: self._forward_padded,
            BatchingRoute.SINGLE: self._forward_one_by_one,
        }[route]

    def new_row(self, max_tokens: int) -> RowKV:
        """An empty cache for a row of at most `max_tokens` tokens in these blocks."""
        return RowKV(self.blocks, max_tokens)

    @torch.inference_mode()
    def forward(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        """Compute a step of several rows: (T, H) -> (T, H) on the stage's device, the rows' tokens one after the
        other.

        The rows may be of different sessions and have any number of new tokens.  Each is first truncated to its
        `start`.  Raises what `check_rows` does, before anything is changed: ValueError for rows that do not fit the
        step, RowOutOfMemory, which says which row is in the way of the others.  If anything else goes wrong, memory
        on the way for example, every row is left at its `start`.
        """
        check_rows(rows, self.blocks, hidden.shape[0])
        for row in rows:
            row.kv.truncate(row.start)
        output = self._compute(hidden, rows)
        for row in rows:
            row.kv.advance(row.count)
        return output

    def _forward_packed(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        if self._direct_blocks.issuperset(self.blocks):
            return self._forward_pack(hidden, rows)
        packs = _packs_of_bounded_length(rows)
        parts = hidden.split([sum(row.count for row in pack) for pack in packs])
        return torch.cat([self._forward_pack(part, pack) for part, pack in zip(parts, packs, strict=True)])

    def _forward_pack(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        """(T, H) -> (T, H) in one forward."""
        packed = PackedRows(rows, self._direct_blocks)
        # A mask of ones: without one transformers looks for the borders of sequences in the positions.
        everything = torch.ones(1, len(hidden), dtype=torch.long, device=hidden.device)
        return self._run(hidden[None], _positions(rows, hidden.device)[None], everything, packed, past_rows=packed)[0]

    def _forward_padded(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        """Single tokens in batches, longer pieces one by one."""
        parts = list(hidden.split([row.count for row in rows]))
        single = [index for index, row in enumerate(rows) if row.count == 1]
        batches = batches_of_similar_length([rows[index] for index in single])
        batched = [[single[index] for index in batch] for batch in batches if len(batch) > 1]
        for batch in batched:
            outputs = self._forward_batch(
                torch.stack([parts[index] for index in batch]), [rows[index] for index in batch]
            )
            for index, output in zip(batch, outputs, strict=True):
                parts[index] = output
        for index in set(range(len(rows))).difference(*batched):
            parts[index] = self._forward_row(parts[index], rows[index])
        return torch.cat(parts)

    def _forward_batch(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        """(B, 1, H) -> (B, 1, H)."""
        cache = PaddedRows(rows)
        return self._run(hidden, _positions(rows, hidden.device)[:, None], cache.mask(hidden.device), cache)

    def _forward_one_by_one(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        parts = hidden.split([row.count for row in rows])
        return torch.cat([self._forward_row(part, row) for part, row in zip(parts, rows, strict=True)])

    def _forward_row(self, hidden: torch.Tensor, row: RowSpan) -> torch.Tensor:
        """(count, H) -> (count, H)."""
        return self._run(hidden[None], _positions([row], hidden.device)[None], None, row.kv)[0]

    def _run(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        **attention_arguments: Any,
    ) -> torch.Tensor:
        """The family's forward: (B, T, H) at positions (B, T) -> (B, T, H)."""
        self._passage.entering = hidden
        try:
            self._owner(
                inputs_embeds=hidden,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **attention_arguments,
            )
            leaving = self._passage.leaving
        finally:
            self._passage.entering = self._passage.leaving = None
        assert leaving is not None
        return leaving


def load_stage(
    checkpoint: Checkpoint,
    blocks: BlockRange,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
    route: BatchingRoute = BatchingRoute.SINGLE,
) -> Stage:
    """Load `blocks` of a checkpoint, reading (and from a hub: fetching) only their tensors.

    `route` is what `check_family` found for the model. `progress` is called with bytes done and bytes in all. Raises
    UsageError for blocks that the model does not have, UnsupportedModel, ModelMismatch for a checkpoint that lacks
    weights.
    """
    if blocks.stop > checkpoint.num_blocks:
        raise UsageError(
            f"the model has blocks 0:{checkpoint.num_blocks}, not {blocks}",
            hint=f"Choose a range inside 0:{checkpoint.num_blocks}.",
        )
    model_class = stage_class(checkpoint.config, blocks)
    state = checkpoint.block_state(blocks, progress)
    model = load_model(model_class, checkpoint.config, state, dtype, attention_of(route))
    return Stage(model, blocks, route)


def attention_of(route: BatchingRoute) -> str | None:
    """The attention with which a model is loaded for a route; None: whatever fits the family."""
    return PACKED_ATTENTION if route is BatchingRoute.PACKED else None


def _packs_of_bounded_length(rows: Sequence[RowSpan]) -> list[list[RowSpan]]:
    """The rows in their order; together they have at most _EXPANDED_TOKENS tokens, unless there is only one."""
    packs: list[list[RowSpan]] = []
    for row in rows:
        if not packs or sum(other.stop for other in packs[-1]) + row.stop > _EXPANDED_TOKENS:
            packs.append([])
        packs[-1].append(row)
    return packs


def _positions(rows: Sequence[RowSpan], device: torch.device) -> torch.Tensor:
    """(T,): of the rows' new tokens."""
    return torch.tensor([position for row in rows for position in range(row.start, row.stop)], device=device)


def _shell_copy(found: BlockList, run: nn.ModuleList, first: int) -> Any:
    """A copy of the owner around other blocks; everything else in it is shared, only its configuration is its own."""
    owner = found.owner
    memo: dict[int, Any] = {id(child): child for child in owner.children()}
    memo[id(found.blocks)] = run
    memo[id(owner.config)] = slice_config(owner.config, first, first + len(run))
    return copy.deepcopy(owner, memo)


def _measure_kv_bytes_per_token(stage: Stage) -> int:
    """Run one token through all blocks and look at what they cached."""
    view = stage.view(stage.blocks)
    row = view.new_row(max_tokens=1)
    view.forward(torch.zeros(1, stage.hidden_size, dtype=stage.dtype, device=stage.device), [RowSpan(row, 0, 1)])
    return max(block.keys.nbytes + block.values.nbytes for block in row.export())
