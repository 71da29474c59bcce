"""The frames of steps: their heads, the chunks that follow them, and the replay that rebuilds a peer."""

from __future__ import annotations

from dataclasses import dataclass

from ....routing.swarm import PeerId
from ... import swarm_pb2 as pb
from ...errors import RemoteProtocolError
from ..frames import MAX_STEP_TOKENS, ChunkFrame, HopTiming, Rebuild, StepFrame, WireStep
from ..steps import RowSlice, StepPlan, validate_plan
from .codec import Codec, by_name


@dataclass(frozen=True, slots=True)
class ReplayFrame:
    """A request to send the replay buffer to the successor, up to these lengths of the rows."""

    epoch: int
    lengths: tuple[int, ...]
    rebuild: Rebuild
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class RebuiltFrame:
    """The attention cache has been rebuilt as requested."""

    epoch: int
    tokens: int


def _unpack_chunk(message: pb.Chunk) -> ChunkFrame:
    if not message.data:
        raise RemoteProtocolError("a chunk is empty")
    return ChunkFrame(message.data)


def _unpack_rebuild(message: pb.Rebuild) -> Rebuild:
    if message.next_seq < 1:
        raise RemoteProtocolError("steps are numbered from 1")
    return Rebuild(PeerId(message.last_peer), message.next_seq, message.permuted, message.first, message.last)


def _pack_timing(timing: HopTiming) -> pb.HopTiming:
    return pb.HopTiming(
        peer_id=timing.peer,
        received_at=timing.received_at,
        started_at=timing.started_at,
        finished_at=timing.finished_at,
        crowded=timing.crowded,
    )


def _unpack_timing(message: pb.HopTiming) -> HopTiming:
    peer = PeerId(message.peer_id)
    return HopTiming(peer, message.received_at, message.started_at, message.finished_at, message.crowded)


def _pack_head(head: StepFrame) -> pb.Step:
    step, plan = head.step, head.step.plan
    return pb.Step(
        epoch=step.epoch,
        seq=step.seq,
        rows=[pb.RowSlice(row=p.row, start=p.start, count=p.count, answers=p.answers) for p in plan.rows],
        permutes=plan.source_rows is not None,
        source_rows=plan.source_rows or (),
        acked_seq=step.acked_seq,
        timeout_seconds=step.timeout_seconds,
        total_bytes=head.total_bytes,
        data=step.data,
        timings=map(_pack_timing, step.timings),
        rebuild=REBUILD.pack(step.rebuild) if step.rebuild is not None else None,
        adopted_tokens=plan.adopted,
        guessed_tokens=plan.guessed,
    )


def _unpack_head(message: pb.Step) -> StepFrame:
    rebuild = REBUILD.unpack(message.rebuild) if message.HasField("rebuild") else None
    plan = StepPlan(
        rows=tuple(RowSlice(p.row, p.start, p.count, p.answers) for p in message.rows),
        source_rows=tuple(message.source_rows) if message.permutes else None,
        adopted=tuple(message.adopted_tokens),
        guessed=message.guessed_tokens,
    )
    validate_plan(plan, rebuilds=rebuild is not None)
    if plan.tokens > MAX_STEP_TOKENS:
        raise RemoteProtocolError(f"a step has at most {MAX_STEP_TOKENS} tokens")
    step = WireStep(
        epoch=message.epoch,
        seq=message.seq,
        plan=plan,
        data=message.data,
        acked_seq=message.acked_seq,
        timeout_seconds=message.timeout_seconds,
        timings=tuple(map(_unpack_timing, message.timings)),
        rebuild=rebuild,
    )
    return StepFrame(step, message.total_bytes)


CHUNK = Codec(pb.Chunk, lambda chunk: pb.Chunk(data=chunk.data), _unpack_chunk)
REBUILD = Codec(pb.Rebuild, by_name(pb.Rebuild, Rebuild).pack, _unpack_rebuild)
STEP = Codec(pb.Step, _pack_head, _unpack_head)
REPLAY = by_name(pb.Replay, ReplayFrame, rebuild=REBUILD)
REBUILT = by_name(pb.Rebuilt, RebuiltFrame)
