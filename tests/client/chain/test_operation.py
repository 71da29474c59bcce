"""Whether an operation keeps the beginnings of rows: if so, it does not matter which peers have applied it."""

from __future__ import annotations

import pytest
from blockswarm.client.chain.operation import Operation, leaves
from blockswarm.proto.wire.steps import RowSlice, RowTable, StepPlan


@pytest.mark.parametrize(
    ("plan", "kept"),
    [
        (StepPlan((RowSlice(0, 10, 1, 1),)), True),
        (StepPlan((RowSlice(0, 12, 3, 3),), guessed=3), True),
        (StepPlan((RowSlice(1, 6, 1, 1),)), True),
        (StepPlan((RowSlice(2, 0, 4, 1),)), True),  # a row that begins
        (StepPlan((RowSlice(0, 9, 2, 1),)), False),
        (StepPlan((RowSlice(0, 10, 1, 1), RowSlice(1, 3, 1, 1))), False),
        (StepPlan((RowSlice(0, 10, 1, 1),), source_rows=(1, 0)), False),
        (StepPlan((RowSlice(0, 10, 1, 1),), source_rows=(0, 1)), False),
    ],
)
def test_an_operation_that_rewrites_or_permutes_rows_does_not_leave_them(plan: StepPlan, kept: bool) -> None:
    assert leaves(plan, (10, 5)) is kept
    if plan.source_rows != (1, 0):  # else row 0 is too short to go on at 10
        assert Operation.of(plan, bytes(plan.tokens), RowTable((12, 6)), 1, 1).leaves((10, 5)) is kept


@pytest.mark.parametrize(
    ("plan", "kept"),
    [
        (StepPlan((RowSlice(0, 9, 2, 1),)), (9, 6)),
        (StepPlan((RowSlice(0, 0, 1, 1), RowSlice(1, 6, 1, 1), RowSlice(2, 0, 4, 1))), (0, 6)),
        (StepPlan((RowSlice(0, 5, 1, 1),), source_rows=(1, 0)), (12, 6)),
    ],
)
def test_a_peer_needs_no_tokens_that_the_first_step_drops(plan: StepPlan, kept: tuple[int, ...]) -> None:
    operation = Operation.of(plan, bytes(plan.tokens), RowTable((12, 6)), 7, 1)
    assert operation.kept == kept
    assert RowTable(kept).after(plan) == RowTable(operation.after)
