"""Steps survive the wire exactly, and nothing else gets through it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.frames import (
    CHUNK_BYTES,
    SMALLEST_PART_BYTES,
    Assembly,
    ChunkFrame,
    HopTiming,
    Rebuild,
    StepFrame,
    StepReader,
    WireStep,
    cut_step,
    replay_steps,
)
from blockswarm.proto.wire.replay import ReplayBuffer
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import PeerId
from hypothesis import given
from hypothesis import strategies as st

TOKEN_BYTES = 1000


def read(reader: StepReader, frames: Iterable[StepFrame | ChunkFrame]) -> WireStep | None:
    step = None
    for frame in frames:
        assert step is None
        step = reader.step(frame) if isinstance(frame, StepFrame) else reader.chunk(frame)
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
    frames = list(cut_step(step))
    assert all(len(frame.step.data if isinstance(frame, StepFrame) else frame.data) <= CHUNK_BYTES for frame in frames)
    assert read(StepReader(TOKEN_BYTES), frames) == step


STEP = WireStep(1, 1, StepPlan((RowSlice(0, 0, 2, 1),)), bytes(2 * TOKEN_BYTES), 0, 1.0)


@pytest.mark.parametrize("total_bytes", [2 * TOKEN_BYTES - 1, 1 << 60])
def test_a_tensor_of_the_wrong_size_is_refused_before_it_comes(total_bytes: int) -> None:
    with pytest.raises(RemoteProtocolError, match="a step of 2 tokens"):
        StepReader(TOKEN_BYTES).step(StepFrame(replace(STEP, data=b""), total_bytes))


def test_chunks_belong_to_one_step_and_end_with_it() -> None:
    half = StepFrame(replace(STEP, data=bytes(TOKEN_BYTES)), 2 * TOKEN_BYTES)
    reader = StepReader(TOKEN_BYTES)
    with pytest.raises(RemoteProtocolError, match="belongs to no step"):
        reader.chunk(ChunkFrame(b"x"))
    assert reader.step(half) is None
    with pytest.raises(RemoteProtocolError, match="inside another"):
        reader.step(half)
    with pytest.raises(RemoteProtocolError, match="more bytes"):
        reader.chunk(ChunkFrame(bytes(TOKEN_BYTES + 1)))


def test_a_tensor_in_crumbs_is_refused() -> None:
    """Each part costs memory beside its bytes: a step of 128 MB in single bytes would take gigabytes."""
    total_bytes = 10 * SMALLEST_PART_BYTES
    assembly = Assembly(total_bytes)
    for _ in range(12):
        assert assembly.take(b"x") is None
    with pytest.raises(RemoteProtocolError, match="too small"):
        assembly.take(b"x")
    assembly = Assembly(total_bytes)
    parts = [bytes([number]) * SMALLEST_PART_BYTES for number in range(10)]
    assert [assembly.take(part) for part in parts] == [None] * 9 + [b"".join(parts)]


def test_an_answer_has_the_bytes_of_what_was_asked_for() -> None:
    answer = StepReader(TOKEN_BYTES, answers=True).step(StepFrame(replace(STEP, data=bytes(TOKEN_BYTES)), TOKEN_BYTES))
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
