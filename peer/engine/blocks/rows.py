"""A row's part of a step, and the check before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....proto.errors import OutOfMemory
from ....routing.swarm import BlockRange
from ..cache.row import RowKV


@dataclass(frozen=True, slots=True)
class RowSpan:
    """`count` new tokens of one row in a step; they continue the row at position `start`."""

    kv: RowKV
    start: int
    count: int
    under_way: bool = False
    """Whether earlier blocks have computed the tokens: what they wrote to the row's cache must stay."""

    @property
    def stop(self) -> int:
        """Tokens of the row after the step."""
        return self.start + self.count


class RowOutOfMemory(OutOfMemory):
    """A row would outgrow its reservation; the other rows of the step can be computed without it."""

    def __init__(self, row_index: int, row: RowSpan) -> None:
        super().__init__(f"the session reserved {row.kv.max_tokens} tokens, this step needs {row.stop}")
        self.row_index = row_index
        """Its index among the step's rows."""


def check_rows(rows: Sequence[RowSpan], blocks: BlockRange, tokens: int) -> None:
    """Check that a step of these rows with `tokens` tokens can be computed over `blocks`; changes nothing.

    Raises ValueError if a row is shorter than its `start`, has no tokens in the step or is in it twice, has no cache
    for some of the blocks, or if the counts do not add up; RowOutOfMemory for the first row that does not fit.
    """
    counts = [row.count for row in rows]
    if not rows or min(counts) < 1 or sum(counts) != tokens:
        raise ValueError(f"rows of {counts} tokens do not make {tokens}")
    if len({id(row.kv) for row in rows}) != len(rows):
        raise ValueError("a row is twice in a step")
    for row in rows:
        if not row.kv.blocks.covers(blocks):
            raise ValueError(f"a row has no cache for some of the blocks {blocks}")
        if not 0 <= row.start <= row.kv.length:
            raise ValueError(f"cannot truncate a row of {row.kv.length} tokens to {row.start}")
    for index, row in enumerate(rows):
        if row.stop > row.kv.max_tokens:
            raise RowOutOfMemory(index, row)
