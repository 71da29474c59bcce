"""The step contract: what a plan may say, what it makes of a row table, and how a long one is cut."""

from __future__ import annotations

from typing import Any

import pytest
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.steps import (
    MAX_POSITIONS,
    MAX_ROWS,
    RowSlice,
    RowTable,
    StepPlan,
    split_plan,
    validate_plan,
)
from hypothesis import given
from hypothesis import strategies as st


def plan(*rows: tuple[int, int, int, int], **fields: Any) -> StepPlan:
    """(row, start, count, answers) each."""
    return StepPlan(tuple(RowSlice(*row) for row in rows), **fields)


@pytest.mark.parametrize(
    "wrong",
    [
        plan(),
        plan((1, 0, 1, 1), (0, 0, 1, 1)),
        plan((0, 0, 1, 1), (0, 1, 1, 1)),
        plan(*((row, 0, 1, 0) for row in range(MAX_ROWS + 1))),
        plan((-1, 0, 1, 1)),
        plan((0, -1, 1, 1)),
        plan((0, 0, -1, 0), (1, 0, 2, 0)),
        plan((0, MAX_POSITIONS, 1, 1)),
        plan((0, 0, 1, 2)),
        plan((0, 0, 1, -1)),
        plan((0, 3, 0, 0)),
        plan((0, 0, 1, 1), source_rows=(0,) * (MAX_ROWS + 1)),
        plan((0, 0, 1, 1), adopted=(0,) * (MAX_ROWS + 1)),
        plan((0, 0, 1, 1), adopted=(-1,)),
        plan((0, 0, 1, 1), adopted=(MAX_POSITIONS + 1,)),
        plan((0, 0, 1, 1), guessed=2),
        plan((0, 0, 3, 1), (1, 0, 1, 1), guessed=2),
        plan((0, 0, 1, 1), guessed=-1),
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: StepPlan) -> None:
    with pytest.raises(RemoteProtocolError):
        validate_plan(wrong)


def test_a_plan_that_rebuilds_may_be_empty_and_computes_every_token() -> None:
    validate_plan(plan(), rebuilds=True)
    validate_plan(plan((0, 3, 0, 0)), rebuilds=True)
    for wrong in (plan((0, 0, 1, 0), adopted=(1,)), plan((0, 0, 1, 0), (0, 1, 1, 0)), plan((0, MAX_POSITIONS, 1, 0))):
        with pytest.raises(RemoteProtocolError):
            validate_plan(wrong, rebuilds=True)


def test_the_largest_plan_is_accepted() -> None:
    rows = ((row, 0, 1, 1) for row in range(MAX_ROWS - 1))
    validate_plan(plan(*rows, (MAX_ROWS - 1, MAX_POSITIONS - 1, 1, 0), source_rows=(0,) * MAX_ROWS))


def test_rows_are_permuted_then_truncated_then_extended() -> None:
    table = RowTable((5, 7, 9))
    after = table.after(plan((0, 4, 2, 0), (2, 0, 1, 1), source_rows=(2, 2)))
    assert after == RowTable((6, 9, 1)), "row 0 is cropped to 4 and grows by 2, row 1 stays, row 2 is new"
    assert table == RowTable((5, 7, 9))
    assert after.tokens == 16


def test_only_the_first_step_begins_with_held_rows() -> None:
    assert RowTable().after(plan((0, 64, 3, 1), adopted=(64, 128))) == RowTable((67, 128))
    with pytest.raises(RemoteProtocolError, match="first step"):
        RowTable((1,)).after(plan((0, 1, 1, 1), adopted=(64,)))


@pytest.mark.parametrize(
    "wrong",
    [
        plan((0, 0, 1, 1), source_rows=(2,)),
        plan((0, 0, 1, 1), source_rows=(-1,)),
        plan((3, 0, 1, 1)),
        plan((0, 6, 1, 1)),
        plan((2, 1, 1, 1)),
    ],
    ids=["no such source", "a negative source", "a row is left out", "a hole in a row", "a new row with a hole"],
)
def test_a_step_that_does_not_fit_its_table_is_refused(wrong: StepPlan) -> None:
    with pytest.raises(RemoteProtocolError):
        RowTable((5, 7)).after(wrong)


@st.composite
def tables_and_plans(draw: st.DrawFn) -> tuple[RowTable, StepPlan]:
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    source = draw(st.none() | st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=5))
    held = [lengths[row] for row in source] if source is not None else lengths
    pieces = []
    for row in sorted(draw(st.sets(st.integers(0, len(held) - 1), min_size=1))):
        count = draw(st.integers(0, 40))
        pieces.append(RowSlice(row, draw(st.integers(0, held[row])), count, draw(st.integers(0, count))))
    guessed = draw(st.integers(0, pieces[-1].count))
    whole = StepPlan(tuple(pieces), tuple(source) if source is not None else None, guessed=guessed)
    return RowTable(tuple(lengths)), whole


def positions(plan: StepPlan, wanted: bool) -> list[tuple[int, int]]:
    """(row, position) of the tokens, or only of the wanted ones, in packed order."""
    return [
        (piece.row, position)
        for piece in plan.rows
        for position in range(piece.stop - piece.answers if wanted else piece.start, piece.stop)
    ]


def guesses(plan: StepPlan) -> list[tuple[int, int]]:
    """(row, position) of the tokens that are only guessed."""
    all_of_them = positions(plan, wanted=False)
    return all_of_them[len(all_of_them) - plan.guessed :]


@pytest.mark.long
@given(tables_and_plans(), st.integers(1, 50))
def test_the_parts_of_a_plan_are_the_plan(given: tuple[RowTable, StepPlan], max_tokens: int) -> None:
    """The same tokens in the same order, the same answers, and the same table in the end."""
    table, whole = given
    parts = split_plan(whole, max_tokens)
    assert all(part.tokens <= max_tokens for part in parts)
    for wanted in (False, True):
        assert [at for part in parts for at in positions(part, wanted)] == positions(whole, wanted)
    assert [at for part in parts for at in guesses(part)] == guesses(whole)
    after = table
    for number, part in enumerate(parts):
        if number:
            assert part.source_rows is None
            assert all(after.lengths[piece.row] == piece.start for piece in part.rows), "only the first one truncates"
        after = after.after(part)
    assert after == table.after(whole)
