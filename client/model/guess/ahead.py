"""Tracks guessed tokens that the peers hold, and what they save of the next step.  Pure: no tensors, no network.

A step may carry guessed tokens after the confirmed ones, and further steps may carry guessed tokens only.  If the
tokens that follow are the guessed ones (a hit), their answers are here already or under way.  If not (a miss), the next
step starts where the confirmed text ends, which drops the guessed tokens at every peer: a miss costs no extra step.

    confirmed   the tokens that were really fed; the length of the row as the caller knows it
    ahead       the guessed tokens that the peers hold after them

So the peers' row is never shorter than the confirmed one, and any step can start from it.  A hit is decided by the
bytes that are fed to the first block, not by token ids, because these bytes are exactly what the peers computed.
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
    """The guessed tokens that the peers hold after the confirmed ones of one row."""

    row: int = 0
    start: int = 0
    """Position of the first guessed token."""
    fed: tuple[bytes, ...] = ()
    """For each guessed token, the input of the first block."""
    answers: tuple[A, ...] = ()

    @property
    def stop(self) -> int:
        """Position after the last guessed token."""
        return self.start + len(self.fed)

    def extended(self, fed: Sequence[bytes], answers: Sequence[A]) -> Ahead[A]:
        """Return it with further guessed tokens appended."""
        return replace(self, fed=(*self.fed, *fed), answers=(*self.answers, *answers))

    def remainder_of(
        self, plan: StepPlan, fed: Callable[[], Sequence[bytes]], most_hits: int | None = None
    ) -> Remainder[A]:
        """Return the part of a step that must be sent; `fed` returns its inputs by token. O(tokens of the step).

        `most_hits`: the number of guesses that can be used; the others count as misses.
        """
        piece = plan.rows[0]
        begins_here = len(plan.rows) == 1 and (piece.row, piece.start) == (self.row, self.start)
        if not self.fed or not begins_here or plan.source_rows is not None or plan.adopted:
            return Remainder(plan)
        hits = 0
        for token, guessed in zip(fed(), self.fed[:most_hits], strict=False):
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
    """The part of a step that must be sent, and the answers to the part that was guessed."""

    plan: StepPlan | None
    """None: everything was guessed, so nothing is sent."""
    hits: int = 0
    """The number of leading tokens of the step that were guessed."""
    held: tuple[A, ...] = ()
    """The answers to the hits that the step wants; they come before those of `plan`."""
    ahead: Ahead[A] = Ahead()  # a value
    """The guessed tokens that are left if nothing is sent; a step that is sent drops them."""


def guesses_only(ahead: Ahead[A], count: int) -> StepPlan:
    """Return a step of `count` further guessed tokens that answers all of them."""
    return StepPlan((RowSlice(ahead.row, ahead.stop, count, count),), guessed=count)


def with_guesses(plan: StepPlan, count: int) -> StepPlan:
    """Return the step of one row with `count` guessed tokens appended, which are all answered."""
    (piece,) = plan.rows
    more = replace(piece, count=piece.count + count, answers=piece.answers + count)
    return replace(plan, rows=(more,), guessed=count)
