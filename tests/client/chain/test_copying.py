"""The part of a cache that a replacement has while the session goes on."""

from __future__ import annotations

import pytest
from blockswarm.client.chain.copying import CacheCopy
from blockswarm.client.chain.machine.events import Exported, HopId
from blockswarm.client.chain.operation import Operation
from blockswarm.proto.wire.steps import RowSlice, RowTable, StepPlan


def copied(*lengths: int, seq: int = 1) -> CacheCopy:
    """Rows of these lengths, complete after step `seq`."""
    copy = CacheCopy()
    take(copy, seq, (0,) * len(lengths), lengths)
    return copy


def take(copy: CacheCopy, seq: int, starts: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    copy.ask()
    copy.head = Exported(HopId(1), copy.round, seq, starts, lengths)
    assert copy.arrived() == sum(lengths) - sum(starts)


def begin(copy: CacheCopy, seq: int, table: tuple[int, ...], plan: StepPlan) -> tuple[int, ...]:
    """An operation of one step; the row lengths after it."""
    operation = Operation.of(plan, bytes(plan.tokens), RowTable(table), seq, 1)
    copy.note(operation)
    return operation.after


@pytest.mark.parametrize(("plan", "held"), [
    (StepPlan((RowSlice(0, 10, 1, 1),)), (10, 6)),
    (StepPlan((RowSlice(0, 7, 1, 1),)), (7, 6)),  # a rollback
    (StepPlan((RowSlice(1, 0, 2, 1),)), (10, 0)),  # a new beginning
    (StepPlan((RowSlice(0, 6, 1, 1),), (1, 0)), (0, 0)),  # rows exchanged
    (StepPlan((RowSlice(0, 10, 1, 1),), (0, 0)), (10, 0)),  # a fork
    (StepPlan((RowSlice(0, 10, 1, 1),), (0,)), (10,)),  # a row dropped
    (StepPlan((RowSlice(2, 0, 5, 1),)), (10, 6)),  # a new row
], ids=["append", "rollback", "new beginning", "exchange", "fork", "drop", "new row"])  # fmt: skip
def test_what_a_step_drops_is_copied_again(plan: StepPlan, held: tuple[int, ...]) -> None:
    copy = copied(10, 6)
    lengths = begin(copy, 2, (10, 6), plan)
    assert copy.held_after(1) == (10, 6), "as it was before the step"
    assert copy.held_after(2) == held
    missing = sum(length - (held[row] if row < len(held) else 0) for row, length in enumerate(lengths))
    assert copy.missing_after(2, lengths) == missing
    assert not copy.is_complete(2, lengths)


def test_a_part_may_be_of_the_state_before_or_after_a_step_that_has_begun() -> None:
    for applied_seq, held in ((1, (4,)), (2, (8,))):
        copy = copied(5)
        begin(copy, 2, (8,), StepPlan((RowSlice(0, 4, 4, 1),)))
        take(copy, applied_seq, (4,), (8,))
        assert copy.held_after(2) == held


def test_what_lies_behind_a_gap_does_not_count() -> None:
    """The row was cut to 3 before it was exported from 5 on."""
    copy = copied(5)
    begin(copy, 2, (5,), StepPlan((RowSlice(0, 3, 6, 1),)))
    take(copy, 2, (5,), (9,))
    assert copy.held_after(2) == (3,)
    take(copy, 2, (3,), (9,))
    assert copy.is_complete(2, (9,))


def test_rows_that_are_too_many_or_too_long_are_not_complete() -> None:
    copy = copied(5, 2)
    assert copy.is_complete(1, (5, 2))
    assert not copy.is_complete(1, (5,))
    assert not copy.is_complete(1, (4, 2))
    assert not copy.is_complete(2, (5, 2))
    assert not CacheCopy().is_complete(0, ())


@pytest.mark.parametrize(("seconds", "tokens"), [(0.0, 16), (0.05, 8), (0.1, 4), (10.0, 4)])
def test_parts_take_about_the_time_that_they_should(seconds: float, tokens: int) -> None:
    copy = CacheCopy()
    copy.fit_parts(copy.part_tokens, seconds, 0.05)
    assert copy.part_tokens == tokens
    assert copy.grows == (tokens == 16)
    copy.fit_parts(1, 1.0, 0.05)
    assert copy.part_tokens == tokens, "the end of a cache says little about the way"
