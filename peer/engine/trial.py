"""Steps without a session, to be timed: the stage's own forward on rows whose cached tokens are made up."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...routing.swarm import BlockRange
from .blocks.rows import RowSpan
from .blocks.stage import Stage
from .cache.row import BlockKV, RowKV


class StepTrial:
    """Runs steps through the first `num_blocks` hosted blocks, in the engine's thread."""

    def __init__(self, stage: Stage, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._stage = stage
        self._view = stage.view(BlockRange(stage.blocks.start, stage.blocks.start + num_blocks))
        self._token: tuple[BlockKV, ...] = ()

    def decode(self, rows: int, context: int) -> Callable[[], None]:
        """Make a step of one new token for each of `rows` rows that hold `context` tokens each; may be run again."""
        slices = [RowSpan(self._row(context), context, 1) for _ in range(rows)]
        return self._step(slices)

    def prefill(self, tokens: int) -> Callable[[], None]:
        """Make a step of `tokens` tokens of one new row; may be run again."""
        return self._step([RowSpan(self._view.new_row(max_tokens=tokens), 0, tokens)])

    def _row(self, context: int) -> RowKV:
        if not self._token:
            row = self._view.new_row(max_tokens=1)
            self._step([RowSpan(row, 0, 1)])()
            self._token = row.export()
        content = [
            BlockKV(block.keys.repeat(1, context, 1), block.values.repeat(1, context, 1)) for block in self._token
        ]
        return RowKV.import_(self._view.blocks, context + 1, content)

    def _step(self, rows: list[RowSpan]) -> Callable[[], None]:
        """Make a step that begins and ends on the CPU, as those of sessions do: a GPU is done when it returns."""
        tokens = sum(row.count for row in rows)
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(tokens, self._stage.hidden_size, generator=generator).to(self._stage.dtype)

        def run() -> None:
            self._view.forward(hidden.to(self._stage.device), rows).cpu()

        return run
