"""A part of a session's attention cache, as one peer gives it to another; wire.py defines its bytes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CachePart:
    """Tokens of every row from its start on; the peer that takes the part has the tokens before."""

    starts: tuple[int, ...]
    """Per row."""
    lengths: tuple[int, ...]
    """Per row, where the part ends; there are no other rows."""
    data: bytes

    @property
    def counts(self) -> tuple[int, ...]:
        """Per row, the number of its tokens in `data`."""
        return tuple(map(operator.sub, self.lengths, self.starts))


def part_of_rows(lengths: Sequence[int], starts: Sequence[int], max_tokens: int) -> tuple[list[int], list[int]]:
    """Starts and ends of the next part of rows of `lengths` tokens: at most `max_tokens` in all, the first rows first.

    `starts` may be out of date: a row that has become shorter starts at its end, and a new one at 0.
    """
    begins, ends = [], []
    for row, length in enumerate(lengths):
        start = min(length, starts[row]) if row < len(starts) else 0
        count = min(length - start, max_tokens)
        max_tokens -= count
        begins.append(start)
        ends.append(start + count)
    return begins, ends
