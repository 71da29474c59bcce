"""Blocks of the model as functions of hidden states, computed by the peers.

    middle = model.blocks[3:7](hidden)        # (rows, tokens, hidden size): input of block 3 -> output of block 6

Nothing is kept between calls: every call opens a session over these blocks, computes whole texts from their first token
on, and closes the session.  There are no gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...proto.errors import UsageError
from ...proto.wire.steps import RowSlice, StepPlan
from ...routing.swarm import BlockRange
from .refusals import refuse_long_texts

if TYPE_CHECKING:
    from .model import SwarmModel


class BlockSlices:
    """The blocks of a model at its swarm; supports `len(...)`, `[index]` and `[start:stop]`."""

    def __init__(self, model: SwarmModel, num_blocks: int) -> None:
        self._model = model
        self._num_blocks = num_blocks

    def __len__(self) -> int:
        return self._num_blocks

    def __getitem__(self, index: int | slice) -> BlockSlice:
        """Select blocks. Raises IndexError for an unknown block, UsageError for a slice that is empty or has a step."""
        if isinstance(index, slice):
            chosen = range(self._num_blocks)[index]
            if not chosen or chosen.step != 1:
                raise UsageError(
                    f"{index} is no run of blocks of a model of {self._num_blocks}", hint="Use blocks[START:STOP]."
                )
            return BlockSlice(self._model, BlockRange(chosen.start, chosen.stop))
        block = range(self._num_blocks)[index]
        return BlockSlice(self._model, BlockRange(block, block + 1))

    def __repr__(self) -> str:
        return f"<{self._num_blocks} blocks at the peers of a swarm>"


class BlockSlice:
    """A run of consecutive blocks as a function of hidden states."""

    def __init__(self, model: SwarmModel, blocks: BlockRange) -> None:
        self._model = model
        self.blocks = blocks

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute the blocks for B texts without padding: (B, T, H) -> (B, T, H).

        The result has the device and dtype of `hidden`. Raises UsageError for another shape and for inputs that need
        gradients, SwarmError as `generate` does.
        """
        model, size = self._model, self._model.config.hidden_size
        if hidden.dim() != 3 or hidden.shape[2] != size or not hidden.numel():
            raise UsageError(f"hidden states have the shape (rows, tokens, {size}), not {tuple(hidden.shape)}")
        if hidden.requires_grad and torch.is_grad_enabled():
            raise UsageError("gradients do not pass through the swarm", hint="Call the blocks under torch.no_grad().")
        rows, tokens, _ = hidden.shape
        refuse_long_texts(tokens, model.position_limit)
        plan = StepPlan(tuple(RowSlice(row, 0, tokens, tokens) for row in range(rows)))
        session = model.connected().open_session(rows * tokens, rows, blocks=self.blocks)
        try:
            output = session.run(plan, hidden.detach().reshape(rows * tokens, size).cpu())
        finally:
            session.close(())
        return output.to(hidden.device, hidden.dtype).reshape(hidden.shape)

    def __repr__(self) -> str:
        return f"<blocks {self.blocks} at the peers of a swarm>"
