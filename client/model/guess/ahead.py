"""Answers to tokens that were computed on a guess, and what they spare of the next step.  Pure: no tensors, no network.

A step may carry guessed tokens behind the real ones, and further steps guessed tokens only.  When the real tokens that
follow are the guessed ones their answers are here already, or on their way: a hit.  When they are not, the next step
begins where the real text ends, and by that drops the guessed tokens at every peer: a miss costs nothing.

    confirmed   the tokens that were really fed, the length of the row as the caller knows it
    ahead       the guessed tokens that the peers hold behind them

So the peers' row is never shorter than the confirmed one, and whatever step follows finds there what it begins from.  A
hit is decided by the bytes that are fed to the first block, not by token ids: the peers computed exactly these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from ....proto.wire.steps import RowSlice, StepPlan

A = TypeVar("A")
"""The answer to one token."""


@dataclass(frozen=True, slots=True)
class Ahead(Generic[A]):
    """The guessed tokens that the peers hold behind the confirmed ones of one row."""

    row: int = 0
    start: int = 0
    """Position of the first of them."""
    fed: tuple[bytes, ...] = ()
    """For each of them what was fed to the first block."""
    answers: tuple[A, ...] = ()

    @property
    def stop(self) -> int:
        """Position behind the last of them."""
        return self.start + len(self.fed)

    def extended(self, fed: Sequence[bytes], answers: Sequence[A]) -> Ahead[A]:
        """With further guessed tokens behind."""
        return replace(self, fed=(*self.fed, *fed), answers=(*self.answers, *answers))

    def remainder_of(self, plan: StepPlan, fed: Callable[[], Sequence[bytes]]) -> Remainder[A]:
        """The part of a step that is left to be sent; `fed` gives what it feeds, by token. O(tokens of the step)."""
        piece = plan.rows[0]
        begins_here = len(plan.rows) == 1 and (piece.row, piece.start) == (self.row, self.start)
        if not self.fed or not begins_here or plan.source_rows is not None or plan.adopted:
            return Remainder(plan)
        hits = 0
        for token, guessed in zip(fed(), self.fed, strict=False):
            if token != guessed:
                break
            hits += 1
        if hits == 0:
            return Remainder(plan)
        held = self.answers[piece.count - piece.answers : hits]
        if hits == piece.count:
            rest = replace(self, start=piece.stop, fed=self.fed[hits:], answers=self.answers[hits:])
            return Remainder(None, hits, held, rest)
        left = piece.count - hits
        rest_plan = StepPlan((RowSlice(piece.row, piece.start + hits, left, min(piece.answers, left)),))
        return Remainder(rest_plan, hits, held)


@dataclass(frozen=True, slots=True)
class Remainder(Generic[A]):
    """The part of a step that has to be sent, and the answers to the part that was guessed."""

    plan: StepPlan | None
    """None: everything was guessed, and nothing is sent."""
    hits: int = 0
    """Leading tokens of the step that were guessed."""
    held: tuple[A, ...] = ()
    """The answers of these, as far as the step wants them; they come before the others."""
    ahead: Ahead[A] = Ahead()  # a value
    """The guessed tokens that are left, if nothing is sent; a step that is sent drops them."""


def guesses_only(ahead: Ahead[A], count: int) -> StepPlan:
    """A step of `count` further guessed tokens, whose answers all come back."""
    return StepPlan((RowSlice(ahead.row, ahead.stop, count, count),), guessed=count)


def with_guesses(plan: StepPlan, count: int) -> StepPlan:
    """The step of one row with `count` guessed tokens behind its own; the answers of all of them come back."""
    (piece,) = plan.rows
    more = replace(piece, count=piece.count + count, answers=piece.answers + count)
    return replace(plan, rows=(more,), guessed=count)
