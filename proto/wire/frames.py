"""Steps on the wire: protobuf messages become a validated `WireStep` once, here at the edge, and back.

A tensor travels as the first message's `data` and, where it is larger than `CHUNK_BYTES`, in `Chunk` messages that
follow on the same stream; 16 MB in one message would cost twice the CPU and break gRPC's 4 MB limit, which stays on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ...routing.swarm import PeerId
from .. import swarm_pb2 as pb
from ..errors import RemoteProtocolError
from .replay import REBUILD_STEP_TOKENS, ReplayBuffer, rebuild_plans
from .steps import RowSlice, StepPlan, validate_plan
from .timing import MAX_STEP_SECONDS

CHUNK_BYTES = 512 * 1024
MAX_STEP_TOKENS = 8192
MAX_HOPS = 256
CREDITS = 8
"""Steps of a session that may be in flight; every peer grants at least these."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Marks a step that rebuilds a replacement's cache instead of asking for an answer."""

    last_peer: PeerId
    """The step goes no further than this peer."""
    next_seq: int
    """When done, the peer is in the state before this step..."""
    permuted: bool
    """...or after its permutation, but before its tokens."""
    first: bool = False
    last: bool = False


@dataclass(frozen=True, slots=True)
class HopTiming:
    """When a hop had received, started and finished a step: Unix seconds on that hop's own clock."""

    peer: PeerId
    received_at: float
    started_at: float
    finished_at: float


@dataclass(frozen=True, slots=True)
class WireStep:
    """One step as it travels: the plan, its packed tokens, and what the hops before have noted."""

    epoch: int
    seq: int
    plan: StepPlan
    data: bytes
    """Packed tokens in wire format; in an answer, the packed answers."""
    acked_seq: int
    """The client has the answers of every step up to here."""
    timeout_seconds: float
    """Time left for the whole step when it was sent."""
    timings: tuple[HopTiming, ...] = ()
    rebuild: Rebuild | None = None


def encode_step(step: WireStep) -> tuple[pb.Step, list[pb.Chunk]]:
    """The messages of a step: its head with the first chunk, and the chunks that follow it."""
    plan = step.plan
    head = pb.Step(
        epoch=step.epoch,
        seq=step.seq,
        rows=[pb.RowSlice(row=p.row, start=p.start, count=p.count, answers=p.answers) for p in plan.rows],
        permutes=plan.source_rows is not None,
        source_rows=plan.source_rows or (),
        acked_seq=step.acked_seq,
        timeout_seconds=step.timeout_seconds,
        total_bytes=len(step.data),
        data=step.data[:CHUNK_BYTES],
        timings=[
            pb.HopTiming(peer_id=t.peer, received_at=t.received_at, started_at=t.started_at, finished_at=t.finished_at)
            for t in step.timings
        ],
        adopted_tokens=plan.adopted,
    )
    if step.rebuild is not None:
        head.rebuild.CopyFrom(encode_rebuild(step.rebuild))
    return head, list(chunks_after_first(step.data))


def chunks_after_first(data: bytes) -> Iterator[pb.Chunk]:
    """The chunks that follow the first `CHUNK_BYTES` of a tensor."""
    for offset in range(CHUNK_BYTES, len(data), CHUNK_BYTES):
        yield pb.Chunk(data=data[offset : offset + CHUNK_BYTES])


def encode_rebuild(rebuild: Rebuild) -> pb.Rebuild:
    return pb.Rebuild(
        last_peer=rebuild.last_peer,
        next_seq=rebuild.next_seq,
        permuted=rebuild.permuted,
        first=rebuild.first,
        last=rebuild.last,
    )


def decode_rebuild(message: pb.Rebuild) -> Rebuild:
    """The mark of a rebuild step. Raises RemoteProtocolError."""
    if message.next_seq < 1:
        raise RemoteProtocolError("steps are numbered from 1")
    return Rebuild(PeerId(message.last_peer), message.next_seq, message.permuted, message.first, message.last)


def replay_steps(
    buffer: ReplayBuffer, epoch: int, lengths: Sequence[int], mark: Rebuild, timeout_seconds: float
) -> Iterator[WireStep]:
    """The steps that bring an empty session to `lengths` with the tokens of `buffer`; at least one, also for nothing.

    Raises ValueError where the buffer does not have the tokens.
    """
    plans = list(rebuild_plans(lengths, REBUILD_STEP_TOKENS)) or [StepPlan(())]
    for index, plan in enumerate(plans):
        marks = replace(mark, first=index == 0, last=index == len(plans) - 1)
        yield WireStep(epoch, index, plan, buffer.read(plan.rows), 0, timeout_seconds, rebuild=marks)


class StepReader:
    """Puts the steps of one stream together again. Refuses a tensor of the wrong size before holding any of it."""

    def __init__(self, token_bytes: int, answers: bool = False) -> None:
        """`answers`: the tensors are answers of `plan.answers` tokens, not inputs of `plan.tokens`."""
        self._token_bytes = token_bytes
        self._answers = answers
        self._head: pb.Step | None = None
        self._parts: list[bytes] = []
        self._missing = 0

    def step(self, head: pb.Step) -> WireStep | None:
        """Take the head of a step; the step, if it is complete. Raises RemoteProtocolError."""
        if self._head is not None:
            raise RemoteProtocolError("a step begins inside another one")
        plan = _decode_plan(head)
        tokens = plan.answers if self._answers and not head.HasField("rebuild") else plan.tokens
        if head.total_bytes != tokens * self._token_bytes:
            raise RemoteProtocolError(f"a step of {tokens} tokens has {head.total_bytes} bytes")
        if not (math.isfinite(head.timeout_seconds) and 0 < head.timeout_seconds <= MAX_STEP_SECONDS):
            raise RemoteProtocolError("a step has an impossible deadline")
        if len(head.timings) > MAX_HOPS:
            raise RemoteProtocolError(f"a chain has at most {MAX_HOPS} hops")
        self._missing = head.total_bytes - len(head.data)
        self._parts = [head.data]
        self._head = head
        return self._finish(plan)

    def chunk(self, chunk: pb.Chunk) -> WireStep | None:
        """Take the next chunk; the step, if it is complete. Raises RemoteProtocolError."""
        if self._head is None:
            raise RemoteProtocolError("a chunk belongs to no step")
        self._missing -= len(chunk.data)
        self._parts.append(chunk.data)
        if not chunk.data:
            raise RemoteProtocolError("a chunk is empty")
        return self._finish(_decode_plan(self._head) if self._missing == 0 else None)

    def _finish(self, plan: StepPlan | None) -> WireStep | None:
        if self._missing > 0:
            return None
        head = self._head
        assert head is not None
        if self._missing < 0 or plan is None:
            raise RemoteProtocolError("a step has more bytes than it announced")
        self._head = None
        return WireStep(
            epoch=head.epoch,
            seq=head.seq,
            plan=plan,
            data=self._parts[0] if len(self._parts) == 1 else b"".join(self._parts),
            acked_seq=head.acked_seq,
            timeout_seconds=head.timeout_seconds,
            timings=tuple(
                HopTiming(PeerId(t.peer_id), t.received_at, t.started_at, t.finished_at) for t in head.timings
            ),
            rebuild=decode_rebuild(head.rebuild) if head.HasField("rebuild") else None,
        )


def _decode_plan(head: pb.Step) -> StepPlan:
    plan = StepPlan(
        rows=tuple(RowSlice(p.row, p.start, p.count, p.answers) for p in head.rows),
        source_rows=tuple(head.source_rows) if head.permutes else None,
        adopted=tuple(head.adopted_tokens),
    )
    if head.HasField("rebuild"):
        if plan.adopted:
            raise RemoteProtocolError("a rebuild computes every token")
        if sum(piece.count for piece in plan.rows) > MAX_STEP_TOKENS:
            raise RemoteProtocolError(f"a step has at most {MAX_STEP_TOKENS} tokens")
        return plan
    validate_plan(plan)
    if plan.tokens > MAX_STEP_TOKENS:
        raise RemoteProtocolError(f"a step has at most {MAX_STEP_TOKENS} tokens")
    return plan
