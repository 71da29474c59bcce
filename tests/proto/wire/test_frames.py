"""Steps survive the wire exactly, and nothing else gets through it."""

from __future__ import annotations

import pytest
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.frames import (
    CHUNK_BYTES,
    MAX_STEP_TOKENS,
    HopTiming,
    Rebuild,
    StepReader,
    WireStep,
    encode_step,
    replay_steps,
)
from blockswarm.proto.wire.replay import ReplayBuffer
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import PeerId
from hypothesis import given
from hypothesis import strategies as st

TOKEN_BYTES = 1000


def read(reader: StepReader, head: pb.Step, chunks: list[pb.Chunk]) -> WireStep | None:
    step = reader.step(pb.Step.FromString(head.SerializeToString()))
    for chunk in chunks:
        assert step is None
        step = reader.chunk(pb.Chunk.FromString(chunk.SerializeToString()))
    return step


@st.composite
def steps(draw: st.DrawFn) -> WireStep:
    rows, row = [], -1
    for _ in range(draw(st.integers(1, 4))):
        row += draw(st.integers(1, 3))
        count = draw(st.integers(0, 900))
        rows.append(RowSlice(row, draw(st.integers(0, 5000)), count, draw(st.integers(0, count))))
    rows.append(RowSlice(row + 1, 0, 1, 1))
    source = draw(st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=5).map(tuple)))
    adopted = draw(st.one_of(st.just(()), st.lists(st.integers(0, 5000), min_size=1, max_size=5).map(tuple)))
    plan = StepPlan(tuple(rows), source, adopted)
    rebuild = (
        None
        if adopted
        else draw(st.one_of(st.none(), st.builds(Rebuild, st.just(PeerId("p")), st.integers(1, 99), st.booleans())))
    )
    timings = draw(st.lists(st.builds(HopTiming, st.just(PeerId("p")), *[st.floats(0, 2e9)] * 3), max_size=3))
    data = bytes(draw(st.integers(0, 255)) for _ in range(3)) * (plan.tokens * TOKEN_BYTES // 3 + 1)
    return WireStep(
        draw(st.integers(0, 99)), draw(st.integers(1, 99)), plan, data[: plan.tokens * TOKEN_BYTES],
        draw(st.integers(0, 99)), draw(st.floats(0.001, 3600)), tuple(timings), rebuild,
    )  # fmt: skip


@pytest.mark.long
@given(steps())
def test_a_step_arrives_as_it_was_sent(step: WireStep) -> None:
    head, chunks = encode_step(step)
    assert all(len(chunk.data) <= CHUNK_BYTES for chunk in chunks)
    assert head.ByteSize() < CHUNK_BYTES + 4096
    assert read(StepReader(TOKEN_BYTES), head, chunks) == step


def one_step(**changes: object) -> pb.Step:
    head, _ = encode_step(WireStep(1, 1, StepPlan((RowSlice(0, 0, 2, 1),)), bytes(2 * TOKEN_BYTES), 0, 1.0))
    for name, value in changes.items():
        setattr(head, name, value)
    return head


@pytest.mark.parametrize(
    "changes",
    [
        {"total_bytes": 2 * TOKEN_BYTES - 1},
        {"total_bytes": 1 << 60},
        {"timeout_seconds": 0.0},
        {"timeout_seconds": float("nan")},
        {"timeout_seconds": 1e9},
    ],
)
def test_impossible_steps_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        StepReader(TOKEN_BYTES).step(one_step(**changes))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [(0, 0, 1, 1), (0, 0, 1, 1)],
        [(1, 0, 1, 1), (0, 0, 1, 1)],
        [(0, 0, 1, 2)],
        [(0, 1 << 31, 1, 1)],
        [(0, 0, 0, 0)],
        [(0, 0, MAX_STEP_TOKENS + 1, 0)],
    ],
)
def test_impossible_rows_are_refused(rows: list[tuple[int, int, int, int]]) -> None:
    head = one_step(total_bytes=sum(count for _, _, count, _ in rows) * TOKEN_BYTES)
    del head.rows[:]
    head.rows.extend(pb.RowSlice(row=r, start=s, count=c, answers=a) for r, s, c, a in rows)
    with pytest.raises(RemoteProtocolError):
        StepReader(TOKEN_BYTES).step(head)


def begun(adopted: list[int]) -> pb.Step:
    head = one_step()
    head.adopted_tokens.extend(adopted)
    return head


@pytest.mark.parametrize("adopted", [[1] * 1025, [1 << 31]])
def test_impossible_beginnings_are_refused(adopted: list[int]) -> None:
    with pytest.raises(RemoteProtocolError, match="begins"):
        StepReader(TOKEN_BYTES).step(begun(adopted))


def test_a_rebuild_adopts_nothing() -> None:
    head = begun([5])
    head.rebuild.next_seq = 1
    with pytest.raises(RemoteProtocolError, match="every token"):
        StepReader(TOKEN_BYTES).step(head)


def test_chunks_belong_to_one_step_and_end_with_it() -> None:
    half = one_step(data=bytes(TOKEN_BYTES))
    reader = StepReader(TOKEN_BYTES)
    with pytest.raises(RemoteProtocolError, match="belongs to no step"):
        reader.chunk(pb.Chunk(data=b"x"))
    assert reader.step(half) is None
    with pytest.raises(RemoteProtocolError, match="inside another"):
        reader.step(half)
    with pytest.raises(RemoteProtocolError, match="more bytes"):
        reader.chunk(pb.Chunk(data=bytes(TOKEN_BYTES + 1)))


def test_an_answer_has_the_bytes_of_what_was_asked_for() -> None:
    reader = StepReader(TOKEN_BYTES, answers=True)
    answer = reader.step(one_step(total_bytes=TOKEN_BYTES, data=bytes(TOKEN_BYTES)))
    assert answer is not None
    assert len(answer.data) == TOKEN_BYTES


@given(st.lists(st.integers(0, 700), max_size=4))
def test_a_replay_is_marked_at_both_ends_and_has_every_token(lengths: list[int]) -> None:
    buffer = ReplayBuffer(1)
    if lengths:
        plan = StepPlan(tuple(RowSlice(row, 0, length, 0) for row, length in enumerate(lengths)))
        buffer.apply(plan, bytes(sum(lengths)))
    sent = list(replay_steps(buffer, 3, lengths, Rebuild(PeerId("p"), 7, False), 5.0))
    marks = [(step.rebuild.first, step.rebuild.last) for step in sent if step.rebuild]
    assert len(marks) == len(sent) >= 1
    assert [first for first, _ in marks] == [True] + [False] * (len(sent) - 1)
    assert [last for _, last in marks] == [False] * (len(sent) - 1) + [True]
    assert sum(step.plan.tokens for step in sent) == sum(lengths)
