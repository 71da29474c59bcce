"""The replay buffer against a model that is too simple to be wrong: a list of token numbers per row."""

from __future__ import annotations

import pytest
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.replay import ReplayBuffer, rebuild_plans
from blockswarm.proto.wire.steps import RowSlice, RowTable, StepPlan, split_plan
from hypothesis import given
from hypothesis import strategies as st

TOKEN_BYTES = 4


def pack(tokens: list[int]) -> bytes:
    return b"".join(token.to_bytes(TOKEN_BYTES, "little") for token in tokens)


def read_row(buffer: ReplayBuffer, row: int) -> bytes:
    return buffer.read([RowSlice(row, 0, buffer.lengths[row], answers=0)])


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[StepPlan, list[int]]]:
    """Random valid steps: permute, fork, drop, truncate, append, new rows."""
    rows: list[int] = []
    steps = []
    next_token = 0
    for _ in range(draw(st.integers(1, 8))):
        source_rows = None
        if rows and draw(st.booleans()):
            source_rows = tuple(draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4)))
            rows = [rows[source] for source in source_rows]
        if not rows or draw(st.integers(0, 4)) == 0:
            rows = [*rows, 0]
        named = sorted(
            draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)) | ({len(rows) - 1} if rows[-1] == 0 else set())
        )
        pieces = []
        for row in named:
            start = draw(st.integers(0, rows[row]))
            pieces.append(RowSlice(row, start, draw(st.integers(1, 5)), answers=0))
            rows[row] = pieces[-1].stop
        plan = StepPlan(tuple(pieces), source_rows)
        steps.append((plan, list(range(next_token, next_token + plan.tokens))))
        next_token += plan.tokens
    return steps


def apply_to_lists(rows: list[list[int]], plan: StepPlan, tokens: list[int]) -> list[list[int]]:
    if plan.source_rows is not None:
        rows = [list(rows[source]) for source in plan.source_rows]
    fresh = iter(tokens)
    for piece in plan.rows:
        if piece.row == len(rows):
            rows.append([])
        rows[piece.row] = rows[piece.row][: piece.start] + [next(fresh) for _ in range(piece.count)]
    return rows


@pytest.mark.long
@given(histories())
def test_holds_exactly_the_tokens_of_every_row(history: list[tuple[StepPlan, list[int]]]) -> None:
    buffer, rows = ReplayBuffer(TOKEN_BYTES), []
    for plan, tokens in history:
        buffer.apply(plan, pack(tokens))
        rows = apply_to_lists(rows, plan, tokens)
        assert buffer.lengths == tuple(len(row) for row in rows)
        assert [read_row(buffer, index) for index in range(len(rows))] == [pack(row) for row in rows]


@pytest.mark.long
@given(histories(), st.integers(1, 7))
def test_a_replay_brings_an_empty_buffer_to_the_same_state(
    history: list[tuple[StepPlan, list[int]]], size: int
) -> None:
    buffer = ReplayBuffer(TOKEN_BYTES)
    for plan, tokens in history:
        buffer.apply(plan, pack(tokens))
    copy = ReplayBuffer(TOKEN_BYTES)
    for plan in rebuild_plans(buffer.lengths, size):
        assert plan.tokens <= size
        copy.apply(plan, buffer.read(plan.rows))
    assert copy.lengths == buffer.lengths
    assert all(read_row(copy, row) == read_row(buffer, row) for row in range(len(copy.lengths)))


@pytest.mark.long
@given(histories(), st.integers(1, 7))
def test_a_split_step_does_what_the_whole_step_does(history: list[tuple[StepPlan, list[int]]], size: int) -> None:
    whole, parts = RowTable(), RowTable()
    for plan, _ in history:
        answered = StepPlan(
            tuple(RowSlice(p.row, p.start, p.count, min(2, p.count)) for p in plan.rows), plan.source_rows
        )
        steps = split_plan(answered, size)
        assert sum(step.tokens for step in steps) == plan.tokens
        assert sum(step.answers for step in steps) == answered.answers
        assert all(step.tokens <= size for step in steps)
        whole = whole.after(plan)
        for step in steps:
            parts = parts.after(step)
        assert parts == whole


def test_only_an_empty_table_begins_with_held_prefixes() -> None:
    plan = StepPlan((RowSlice(0, 63, 1, 1), RowSlice(1, 0, 5, 1)), adopted=(64,))
    assert RowTable().after(plan) == RowTable((64, 5))
    with pytest.raises(RemoteProtocolError, match="first step"):
        RowTable((64,)).after(plan)


def test_only_the_first_part_of_a_step_begins_with_held_prefixes() -> None:
    plan = StepPlan((RowSlice(0, 64, 10, 1), RowSlice(1, 128, 3, 1)), adopted=(64, 128))
    steps = split_plan(plan, 4)
    assert [step.adopted for step in steps] == [(64, 128), (), (), ()]
    table = RowTable()
    for step in steps:
        table = table.after(step)
    assert table == RowTable().after(plan)


def test_forked_rows_share_their_memory() -> None:
    buffer = ReplayBuffer(TOKEN_BYTES)
    buffer.apply(StepPlan((RowSlice(0, 0, 100, 0),)), bytes(400))
    buffer.apply(StepPlan((RowSlice(0, 100, 1, 0), RowSlice(1, 100, 1, 0)), (0, 0)), bytes(8))
    assert buffer.lengths == (101, 101)
    assert buffer.nbytes == 408


def test_refuses_a_step_that_does_not_fit_and_stays_unchanged() -> None:
    buffer = ReplayBuffer(TOKEN_BYTES)
    buffer.apply(StepPlan((RowSlice(0, 0, 3, 0),)), bytes(12))
    with pytest.raises(RemoteProtocolError):
        buffer.apply(StepPlan((RowSlice(0, 4, 1, 0),)), bytes(4))
    with pytest.raises(RemoteProtocolError):
        buffer.apply(StepPlan((RowSlice(0, 0, 1, 0),), (1,)), bytes(4))
    with pytest.raises(ValueError, match="4 bytes"):
        buffer.apply(StepPlan((RowSlice(0, 3, 2, 0),)), bytes(4))
    assert buffer.lengths == (3,)


def test_tokens_that_were_not_computed_are_kept_as_zeros():
    """Their outputs are NaN, which a peer that is rebuilt could not compute with."""
    buffer = ReplayBuffer(TOKEN_BYTES)
    buffer.apply(StepPlan((RowSlice(0, 0, 3, 0),)), pack([7, 8, 9]), lost=2)
    assert (read_row(buffer, 0), buffer.lengths) == (pack([7, 0, 0]), (3,))
