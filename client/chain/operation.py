"""An operation: the steps that one call asks of the chain, with the state of the rows that they start from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ...proto.wire.steps import RowTable, StepPlan, split_plan

STEP_TOKENS = 128
"""Tokens per step of a long prompt: its steps follow each other down the chain, so that peers work in parallel."""
OPERATION_TOKENS = 2048
"""Longer prompts become several operations, which bounds the outputs that peers keep for repeated steps."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Steps `first_seq`, `first_seq + 1`, ... of a session.

    Only the first step permutes and truncates, so a peer that has applied any of them has the rows that the others
    append to. Each operation starts from the rows that the previous one leaves.
    """

    first_seq: int
    steps: tuple[StepPlan, ...]
    data: tuple[bytes, ...]
    """The packed tokens of each step, in the client's own format."""
    before: tuple[int, ...]
    """Row lengths before the permutation of the first step..."""
    permuted: tuple[int, ...]
    """...and after its permutation and truncation, before its tokens are appended."""

    @classmethod
    def of(cls, plan: StepPlan, data: bytes, table: RowTable, first_seq: int, token_bytes: int) -> Operation:
        """Cut `plan` and its packed tokens into steps; `table` has the rows before it. Raises RemoteProtocolError."""
        steps = split_plan(plan, STEP_TOKENS)
        permuted = table.begun(plan.adopted).permuted(plan.source_rows).truncated(plan.rows)
        parts = tuple(split_bytes(data, [step.tokens * token_bytes for step in steps]))
        return cls(first_seq, steps, parts, table.lengths, permuted.lengths)

    @property
    def stop_seq(self) -> int:
        """The first seq of the next operation."""
        return self.first_seq + len(self.steps)

    @property
    def kept(self) -> tuple[int, ...]:
        """Row lengths before the permutation of the first step, without the tokens that this step drops anyway.

        Nothing of them is needed, and a peer may be unable to compute them: some were only guessed.
        """
        return self.before if self.steps[0].source_rows is not None else self.permuted[: len(self.before)]

    @property
    def after(self) -> tuple[int, ...]:
        """Row lengths after all its steps."""
        table = RowTable(self.permuted)
        for step in self.steps:
            table = table.extended(step.rows)
        return table.lengths

    @property
    def is_first(self) -> bool:
        return self.first_seq == 1

    @property
    def starts_empty(self) -> bool:
        """Whether the operation starts from empty rows, as a newly opened peer has them."""
        return self.is_first and not any(self.permuted)

    def leaves(self, lengths: Sequence[int]) -> bool:
        """Return whether this operation keeps the first `lengths` tokens of every row."""
        return leaves(self.steps[0], lengths)


def leaves(plan: StepPlan, lengths: Sequence[int]) -> bool:
    """Return whether a step keeps the first `lengths` tokens of every row, so that they are the same after it."""
    return plan.source_rows is None and all(
        piece.row >= len(lengths) or piece.start >= lengths[piece.row] for piece in plan.rows
    )


def split_bytes(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Cut `data` into consecutive parts of the given sizes; a single part is not copied."""
    if len(sizes) == 1:
        return [data]
    ends = itertools.accumulate(sizes)
    return [data[start:end] for start, end in itertools.pairwise([0, *ends])]


def join_bytes(parts: Sequence[bytes]) -> bytes:
    """Concatenate the parts; a single part is not copied."""
    return parts[0] if len(parts) == 1 else b"".join(parts)
