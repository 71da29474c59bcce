"""How far a hop's attention cache is copied to its replacement while the session runs.

The cache moves in parts, each of the state between two steps.  A step that comes later may roll rows back, exchange,
fork or drop them; then the copied tokens of these rows count no more from there on.  Pure bookkeeping: no I/O here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...proto.wire.steps import StepPlan
from .machine.events import Exported
from .operation import Operation

FIRST_PART_TOKENS = 8
"""The size of the first part; the next ones follow from the time that it takes."""
MAX_PART_TOKENS = 4096
LITTLE_SHARE = 0.125
"""A part of at most this share of the usual size takes hardly any time beside its way."""


@dataclass(slots=True)
class CacheCopy:
    """The tokens that a replacement has of the cache of the hop that it replaces, and the part under way."""

    part_tokens: int = FIRST_PART_TOKENS
    round: int = 0
    """The number of the part that was asked for last."""
    under_way: bool = False
    head: Exported | None = None
    """A description of the part under way, once it is on its way..."""
    head_at: float = 0.0
    """...and since when."""
    grows: bool = True
    """Whether the last part was so fast that the next ones will be larger."""
    seq: int = 0
    """The last step that the parts which arrived are of."""
    _held: tuple[int, ...] = ()
    """Per row, the first tokens that the replacement has as they were after step `seq`."""
    _ends: tuple[int, ...] = ()
    """The lengths of the replacement's rows."""
    _since: list[tuple[int, StepPlan]] = field(default_factory=list)
    """The first steps of the operations after `seq`."""

    @property
    def little_tokens(self) -> int:
        """The most tokens of a part that takes hardly any time beside its way."""
        return max(1, int(self.part_tokens * LITTLE_SHARE))

    def note(self, operation: Operation) -> None:
        """An operation begins: its first step permutes and truncates, the others append only."""
        self._since.append((operation.first_seq, operation.steps[0]))

    def held_after(self, seq: int) -> tuple[int, ...]:
        """Per row from row 0 on, the first tokens that the replacement has as they are after step `seq`."""
        held = self._held
        for first_seq, plan in self._since:
            if first_seq <= seq:
                held = _left_by(plan, held)
        return held

    def missing_after(self, seq: int, lengths: Sequence[int]) -> int:
        """The number of tokens that are still to be copied of rows that have `lengths` tokens after step `seq`."""
        held = self.held_after(seq)
        return sum(max(0, length - _at(held, row)) for row, length in enumerate(lengths))

    def is_complete(self, seq: int, lengths: tuple[int, ...]) -> bool:
        """Whether the replacement is in the state after step `seq`, in which rows have `lengths` tokens."""
        return not self.under_way and self.round > 0 and (self.seq, self._held, self._ends) == (seq, lengths, lengths)

    def ask(self) -> None:
        """The next part is asked for."""
        self.round += 1
        self.under_way, self.head = True, None

    def arrived(self) -> int:
        """The part is at the replacement; its tokens."""
        head = self.head
        assert head is not None
        held = self.held_after(head.applied_seq)
        self._held = tuple(
            length if _at(held, row) >= start else _at(held, row)
            for row, (start, length) in enumerate(zip(head.starts, head.lengths, strict=True))
        )
        self.seq, self._ends = head.applied_seq, head.lengths
        self._since = [(first_seq, plan) for first_seq, plan in self._since if first_seq > head.applied_seq]
        self.under_way, self.head = False, None
        return sum(head.lengths) - sum(head.starts)

    def fit_parts(self, tokens: int, seconds: float, wanted_seconds: float) -> None:
        """Have the next parts take about `wanted_seconds`, after one of `tokens` that took `seconds`."""
        if 2 * tokens < self.part_tokens:
            return  # the last one, which says little
        factor = min(2.0, max(0.5, wanted_seconds / max(seconds, 1e-6)))
        self.grows = factor == 2.0
        self.part_tokens = min(MAX_PART_TOKENS, max(1, round(self.part_tokens * factor)))


def _left_by(plan: StepPlan, held: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens held that a step leaves: of rows that stay in their place, those before its start."""
    if plan.source_rows is not None:
        held = tuple(_at(held, row) if source == row else 0 for row, source in enumerate(plan.source_rows))
    starts = {piece.row: piece.start for piece in plan.rows}
    return tuple(min(tokens, starts.get(row, tokens)) for row, tokens in enumerate(held))


def _at(held: Sequence[int], row: int) -> int:
    return held[row] if row < len(held) else 0
