"""The blocks that a peer hosts: a contiguous run of a model's blocks, ready to compute.

A `Stage` is a value: it never changes.  A peer that moves makes a new one (`Stage.joined`) from the module objects that
it keeps and those that it loaded, so that nothing is held twice, and sessions of both stages batch together on the
blocks that they share.  Sessions run views (`Stage.view`), which hold only their own blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ....proto.errors import UsageError
from ....proto.wire.tensors import dtype_name
from ....routing.swarm import BlockRange
from ..weights.quantize import held_bytes
from .rows import RowOutOfMemory, RowSpan
from .view import EXPANDED_TOKENS, BatchingRoute, Shell, StageView, attention_of

__all__ = ["BatchingRoute", "HostedBlock", "RowOutOfMemory", "RowSpan", "Stage", "StageView", "attention_of"]


@dataclass(frozen=True, slots=True, eq=False)
class HostedBlock:
    """A block in memory."""

    module: nn.Module
    weight_bytes: int
    """Bytes of the weights as they are held, packed or not."""
    kv_bytes_per_token: int
    """Bytes of attention cache per token."""


class Stage:
    """The hosted `blocks` of a model."""

    def __init__(self, shell: Shell, hosted: Mapping[int, HostedBlock]) -> None:
        """`hosted`: block -> the block in memory. Raises ValueError if the blocks have gaps."""
        self.blocks = BlockRange(min(hosted), max(hosted) + 1)
        if len(self.blocks) != len(hosted):
            raise ValueError(f"blocks {sorted(hosted)} are no contiguous run")
        self.hosted = hosted
        self.shell = shell
        self._views: dict[BlockRange, StageView] = {}

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        blocks: BlockRange,
        route: BatchingRoute,
        expanded_tokens: int = EXPANDED_TOKENS,
    ) -> Stage:
        """Make the stage of all blocks of `model`, which was loaded with the route's attention (`attention_of`)."""
        return cls.around(*Shell.split(model, route, expanded_tokens), blocks)

    @classmethod
    def around(cls, shell: Shell, modules: Sequence[nn.Module], blocks: BlockRange) -> Stage:
        """Make the stage of the modules of `blocks`. Runs one token, to see how much they cache."""
        kv_bytes = _kv_bytes_per_token(StageView(shell, blocks, modules))
        hosted = {
            block: HostedBlock(module, held_bytes(module), nbytes)
            for block, module, nbytes in zip(blocks, modules, kv_bytes, strict=True)
        }
        return cls(shell, hosted)

    @classmethod
    def joined(cls, blocks: BlockRange, parts: Sequence[Stage]) -> Stage:
        """Make the stage of `blocks` from the module objects of `parts`, of the first part that has a block.

        Computes nothing, so the parts may be in use. Raises ValueError if no part has a block, or if the parts differ
        in dtype, device or route.
        """
        hosted: dict[int, HostedBlock] = {}
        for part in reversed(parts):
            hosted |= part.hosted
        missing = sorted(set(blocks) - hosted.keys())
        if missing:
            raise ValueError(f"none of the parts has the blocks {missing}")
        if len({(part.dtype, part.device, part.route) for part in parts}) != 1:
            raise ValueError("stages of different dtypes, devices or routes cannot be joined")
        return cls(parts[0].shell, {block: hosted[block] for block in blocks})

    def part(self, blocks: BlockRange) -> Stage:
        """Make the stage of some of the blocks, with the same modules. Raises UsageError if not all are hosted here."""
        if not self.blocks.covers(blocks):
            raise UsageError(f"blocks {blocks} are not among the hosted blocks {self.blocks}")
        return Stage(self.shell, {block: self.hosted[block] for block in blocks})

    @property
    def route(self) -> BatchingRoute:
        return self.shell.route

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of the full model."""
        return self.shell.config

    @property
    def position_limit(self) -> int | None:
        """The most tokens that a row may have; None: any number."""
        return self.shell.position_limit

    @property
    def block_bytes(self) -> int:
        """Weights of the largest hosted block, bytes."""
        return max(block.weight_bytes for block in self.hosted.values())

    @property
    def weight_bytes(self) -> int:
        """Weights of all hosted blocks, bytes."""
        return sum(block.weight_bytes for block in self.hosted.values())

    @property
    def kv_bytes_per_token(self) -> int:
        """Attention cache of one token in the block that needs most, bytes."""
        return max(block.kv_bytes_per_token for block in self.hosted.values())

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self._parameter.dtype

    @property
    def stream_format(self) -> str:
        """The name of that dtype on the wire."""
        return dtype_name(self.dtype)

    @cached_property
    def device(self) -> torch.device:
        """Where the weights and the rows' caches are, and where `StageView.forward` takes and gives tensors."""
        return self._parameter.device

    @property
    def hidden_size(self) -> int:
        size: int = self.config.hidden_size
        return size

    def view(self, blocks: BlockRange) -> StageView:
        """Return the view of `blocks`, a part of this stage. Raises UsageError if they are not all hosted here."""
        if not self.blocks.covers(blocks):
            raise UsageError(f"blocks {blocks} are not among the hosted blocks {self.blocks}")
        if blocks not in self._views:
            hosted = [self.hosted[block] for block in blocks]
            kv_bytes = max(block.kv_bytes_per_token for block in hosted)
            self._views[blocks] = StageView(self.shell, blocks, [block.module for block in hosted], kv_bytes)
        return self._views[blocks]

    @property
    def _parameter(self) -> nn.Parameter:
        return next(self.hosted[self.blocks.start].module.parameters())


def _kv_bytes_per_token(view: StageView) -> list[int]:
    """Run one token through all blocks; return the bytes that each block cached."""
    row = view.new_row(max_tokens=1)
    view.forward(torch.zeros(1, view.hidden_size, dtype=view.dtype, device=view.device), [RowSpan(row, 0, 1)])
    return [block.keys.nbytes + block.values.nbytes for block in row.export()]
