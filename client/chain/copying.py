"""Tracks how far a hop's attention cache is copied to its replacement while the session runs.

The cache is copied in parts, each a piece of the state between two steps.  A later step may roll rows back, permute,
fork or drop them, and so invalidates copied tokens of these rows.  Pure bookkeeping: no I/O here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...proto.wire.steps import StepPlan
from .machine.events import Exported
from .operation import Operation

FIRST_PART_TOKENS = 8
"""The size of the first part; later sizes adapt to the time that parts take."""
MAX_PART_TOKENS = 4096
LITTLE_SHARE = 0.125
"""A part of at most this share of the usual size takes hardly longer than a round trip."""


@dataclass(slots=True)
class CacheCopy:
    """The part of a hop's cache that its replacement already has, and the part under way."""

    part_tokens: int = FIRST_PART_TOKENS
    round: int = 0
    """The number of the part that was requested last."""
    under_way: bool = False
    head: Exported | None = None
    """The description of the part under way; None until the old hop has begun to send it..."""
    head_at: float = 0.0
    """...at this time."""
    grows: bool = True
    """Whether the last part was fast enough for the next ones to be larger."""
    seq: int = 0
    """The step after which the latest arrived part was taken."""
    _held: tuple[int, ...] = ()
    """Per row, how many leading tokens the replacement has in their state after step `seq`."""
    _ends: tuple[int, ...] = ()
    """The lengths of the replacement's rows."""
    _since: list[tuple[int, StepPlan]] = field(default_factory=list)
    """The first steps of the operations after `seq`."""

    @property
    def little_tokens(self) -> int:
        """The most tokens of a part that takes hardly longer than a round trip."""
        return max(1, int(self.part_tokens * LITTLE_SHARE))

    def note(self, operation: Operation) -> None:
        """Take in an operation that begins: its first step permutes and truncates, the others only append."""
        self._since.append((operation.first_seq, operation.steps[0]))

    def held_after(self, seq: int) -> tuple[int, ...]:
        """Return per row how many leading tokens the replacement has that are still valid after step `seq`."""
        held = self._held
        for first_seq, plan in self._since:
            if first_seq <= seq:
                held = _left_by(plan, held)
        return held

    def missing_after(self, seq: int, lengths: Sequence[int]) -> int:
        """Return how many tokens remain to be copied if the rows have `lengths` tokens after step `seq`."""
        held = self.held_after(seq)
        return sum(max(0, length - _at(held, row)) for row, length in enumerate(lengths))

    def is_complete(self, seq: int, lengths: tuple[int, ...]) -> bool:
        """Return whether the replacement has exactly the state after step `seq`, with rows of `lengths` tokens."""
        return not self.under_way and self.round > 0 and (self.seq, self._held, self._ends) == (seq, lengths, lengths)

    def ask(self) -> None:
        """Record that the next part is requested."""
        self.round += 1
        self.under_way, self.head = True, None

    def arrived(self) -> int:
        """Record that the part under way has arrived; return its number of tokens."""
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
        """Adapt the part size towards `wanted_seconds` per part, given one of `tokens` tokens that took `seconds`."""
        if 2 * tokens < self.part_tokens:
            return  # a small last part says little
        factor = min(2.0, max(0.5, wanted_seconds / max(seconds, 1e-6)))
        self.grows = factor == 2.0
        self.part_tokens = min(MAX_PART_TOKENS, max(1, round(self.part_tokens * factor)))


def _left_by(plan: StepPlan, held: tuple[int, ...]) -> tuple[int, ...]:
    """Return the held tokens that a step keeps: in rows that stay in place, those before the step's start."""
    if plan.source_rows is not None:
        held = tuple(_at(held, row) if source == row else 0 for row, source in enumerate(plan.source_rows))
    starts = {piece.row: piece.start for piece in plan.rows}
    return tuple(min(tokens, starts.get(row, tokens)) for row, tokens in enumerate(held))


def _at(held: Sequence[int], row: int) -> int:
    return held[row] if row < len(held) else 0
