"""Runs blocks with the family's own code; it does not know where the blocks came from.

A `StageView` holds the modules of its own blocks only.  Sessions hold views, so the weights of a block live exactly as
long as a stage hosts it or a session uses it.  The modules that a family has around its blocks (`Shell`) are shared by
all views of a model.
"""

from __future__ import annotations

import copy
import enum
import functools
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from ....proto.errors import UsageError
from ....proto.model.ends import position_limit
from ....proto.model.family import BlockEdge, BlockList, Passage
from ....proto.model.per_block import slice_config
from ....routing.swarm import BlockRange
from ..cache.row import RowKV
from .attention import PACKED_ATTENTION, PackedRows
from .padded import PaddedRows, batches_of_similar_length
from .rows import RowSpan, check_rows

EXPANDED_TOKENS = 4096
"""Most tokens of a pack if blocks cache a latent (MLA): they expand the whole pack to tens of times its size."""


class BatchingRoute(enum.Enum):
    """The ways to batch the rows of a step, the fastest first; `selfcheck` finds out which one works for a family."""

    PACKED = "packed"
    """All rows as one sequence, see `attention.py`."""
    PADDED = "padded"
    """Rows with one new token as a batch, see `padded.py`, the others one after the other."""
    SINGLE = "single"
    """One row after the other."""


def attention_of(route: BatchingRoute) -> str | None:
    """Return the attention with which a model is loaded for a route; None: the family's default."""
    return PACKED_ATTENTION if route is BatchingRoute.PACKED else None


class Shell:
    """The module around the blocks of a model (tables of rotary positions, masks) and how its rows are batched."""

    def __init__(
        self,
        owner: Any,
        empty: nn.ModuleList,
        config: PreTrainedConfig,
        route: BatchingRoute,
        expanded_tokens: int = EXPANDED_TOKENS,
    ) -> None:
        """`owner` is the family's module whose list of blocks is `empty`; `config` is that of the full model."""
        self.config = config
        self.route = route
        self.expanded_tokens = expanded_tokens
        self.direct_blocks: set[int] = set()
        """See `PackedRows`."""
        self._owner = owner
        self._empty = empty

    @classmethod
    def split(
        cls, model: PreTrainedModel, route: BatchingRoute, expanded_tokens: int = EXPANDED_TOKENS
    ) -> tuple[Shell, tuple[nn.Module, ...]]:
        """Take a model apart into its shell and its blocks. It must have been loaded with the route's attention."""
        found = BlockList.at(model, model.blocks_path)
        modules = tuple(found.blocks)
        empty = nn.ModuleList()
        setattr(found.owner, found.name, empty)
        return cls(found.owner, empty, model.config, route, expanded_tokens), modules

    def around(self, run: nn.ModuleList, blocks: BlockRange) -> Any:
        """Return a copy of the owner around other blocks; it shares all but the configuration, which names them."""
        memo: dict[int, Any] = {id(child): child for child in self._owner.children()}
        memo[id(self._empty)] = run
        memo[id(self._owner.config)] = slice_config(self.config, blocks.start, blocks.stop)
        return copy.deepcopy(self._owner, memo)

    @functools.cached_property
    def position_limit(self) -> int | None:
        """See `proto/model/ends.py`; takes a few milliseconds the first time."""
        return position_limit(self.config)

    def to(self, device: torch.device) -> None:
        """Move the shell, before there are views."""
        self._owner.to(device)


class _Run(nn.ModuleList):
    """A list of blocks. Families iterate over `blocks[:num_hidden_layers]`, for which torch would build a new list."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self
        return super().__getitem__(index)


class StageView:
    """Runs `blocks` in order, always with the modules that it was made with. One thread at a time."""

    def __init__(
        self,
        shell: Shell,
        blocks: BlockRange,
        modules: Sequence[nn.Module],
        kv_bytes_per_token: int = 0,
    ) -> None:
        """`kv_bytes_per_token`: attention cache of one token in the block that needs most, bytes."""
        self.blocks = blocks
        self.kv_bytes_per_token = kv_bytes_per_token
        self.modules: Mapping[int, nn.Module] = MappingProxyType(dict(zip(blocks, modules, strict=True)))
        """Block -> its module; views that have the same module for a block compute it together."""
        self._shell = shell
        self._passage = Passage()
        run: list[nn.Module] = list(modules)
        for edge in {0, len(run) - 1}:
            run[edge] = BlockEdge(run[edge], self._passage, first=edge == 0, last=edge == len(run) - 1)
        self._owner = shell.around(_Run(run), blocks)
        self._parts: dict[BlockRange, StageView] = {}

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self._parameter.dtype

    @cached_property
    def device(self) -> torch.device:
        """Where the weights and the rows' caches are, and where `forward` takes and gives tensors."""
        return self._parameter.device

    @cached_property
    def hidden_size(self) -> int:
        size: int = self._shell.config.hidden_size
        return size

    @property
    def position_limit(self) -> int | None:
        """The most tokens that a row may have; None: any number."""
        return self._shell.position_limit

    def part(self, blocks: BlockRange) -> StageView:
        """Return the view of some of these blocks. Raises UsageError if they are not all here."""
        if blocks == self.blocks:
            return self
        if not self.blocks.covers(blocks):
            raise UsageError(f"blocks {blocks} are not among the blocks {self.blocks}")
        if blocks not in self._parts:
            modules = [self.modules[block] for block in blocks]
            self._parts[blocks] = StageView(self._shell, blocks, modules, self.kv_bytes_per_token)
        return self._parts[blocks]

    def new_row(self, max_tokens: int) -> RowKV:
        """Return an empty cache for a row of at most `max_tokens` tokens in these blocks."""
        return RowKV(self.blocks, max_tokens)

    @torch.inference_mode()
    def forward(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        """Compute a step of several rows: (T, H) -> (T, H) on the stage's device, the tokens of all rows concatenated.

        The rows may be of different sessions and have any number of new tokens.  Each is first truncated to its
        `start`.  Raises as `check_rows` does before anything is changed: ValueError for rows that do not fit the step,
        RowOutOfMemory with the index of the first row that exceeds its reservation.  After any other error, e.g. for
        want of memory, every row is left at its `start`.
        """
        check_rows(rows, self.blocks, hidden.shape[0])
        for row in rows:
            row.kv.truncate(row.start, may_free=not row.under_way)
        match self._shell.route:
            case BatchingRoute.PACKED:
                output = self._forward_packed(hidden, rows)
            case BatchingRoute.PADDED:
                output = self._forward_padded(hidden, rows)
            case BatchingRoute.SINGLE:
                output = self._forward_one_by_one(hidden, rows)
        for row in rows:
            row.kv.advance(row.count)
        return output

    def _forward_packed(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        if self._shell.direct_blocks.issuperset(self.blocks):
            return self._forward_pack(hidden, rows)
        packs = packs_of_bounded_length(rows, self._shell.expanded_tokens)
        parts = hidden.split([sum(row.count for row in pack) for pack in packs])
        return torch.cat([self._forward_pack(part, pack) for part, pack in zip(parts, packs, strict=True)])

    def _forward_pack(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        """(T, H) -> (T, H) in one forward."""
        packed = PackedRows(rows, self._shell.direct_blocks)
        # A mask of ones: without it, transformers looks for borders of sequences in the positions.
        everything = torch.ones(1, len(hidden), dtype=torch.long, device=hidden.device)
        return self._run(hidden[None], _positions(rows, hidden.device)[None], everything, packed, past_rows=packed)[0]

    def _forward_padded(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        """Compute rows with one token in batches, and the others one by one."""
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
        """Run the family's forward: (B, T, H) at positions (B, T) -> (B, T, H)."""
        self._passage.entering = hidden
        try:
            self._owner(
                inputs_embeds=hidden.clone(),  # some families scale it in place; the first block gets `hidden` itself
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

    @property
    def _parameter(self) -> nn.Parameter:
        return next(self.modules[self.blocks.start].parameters())


def packs_of_bounded_length(rows: Sequence[RowSpan], max_tokens: int) -> list[list[RowSpan]]:
    """Cut the rows, in order, into packs of at most `max_tokens` tokens in all; a longer row is a pack of its own."""
    packs: list[list[RowSpan]] = []
    for row in rows:
        if not packs or sum(other.stop for other in packs[-1]) + row.stop > max_tokens:
            packs.append([])
        packs[-1].append(row)
    return packs


def _positions(rows: Sequence[RowSpan], device: torch.device) -> torch.Tensor:
    """Return the positions of the rows' new tokens, (T,)."""
    return torch.tensor([position for row in rows for position in range(row.start, row.stop)], device=device)
