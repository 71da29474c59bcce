"""Steps on the wire: a `WireStep` is cut into frames, and reassembled on the other side.

A tensor travels in the first message's `data` and, if it is larger than `CHUNK_BYTES`, in `Chunk` messages that follow
on the same stream; 16 MB in one message would cost twice the CPU and exceed gRPC's 4 MB limit, which stays on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ...routing.swarm import PeerId
from ..errors import RemoteProtocolError
from .replay import REBUILD_STEP_TOKENS, ReplayBuffer, rebuild_plans
from .steps import StepPlan

CHUNK_BYTES = 512 * 1024
SMALLEST_PART_BYTES = 16 * 1024
"""A tensor has at most about as many parts as if all had this size: each part costs memory besides its bytes."""
CACHE_PART_BYTES = 8 * 1024 * 1024
"""Most bytes of a part of an attention cache, or one page of a row if that is more: it is copied between two steps."""
MAX_STEP_TOKENS = 8192
MAX_HOPS = 256
CREDITS = 8
"""Number of steps of a session that may be in flight; every peer grants at least this many."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Marks a step that rebuilds a replacement's cache and asks for no answer."""

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
    """When a hop received, started and finished a step: Unix seconds on that hop's own clock."""

    peer: PeerId
    received_at: float
    started_at: float
    finished_at: float
    crowded: bool = False
    """Whether the texts of other sessions need the hop's time, so that it wants no guesses."""


@dataclass(frozen=True, slots=True)
class WireStep:
    """One step as it travels: the plan, its packed tokens, and the timings of the previous hops."""

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


@dataclass(frozen=True, slots=True)
class StepFrame:
    """The first frame of a step."""

    step: WireStep
    """A step whose `data` is only the first part of the tensor."""
    total_bytes: int
    """The size of the tensor, over this frame and the chunks that follow."""


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """The next part of a tensor."""

    data: bytes


def cut_step(step: WireStep) -> Iterator[StepFrame | ChunkFrame]:
    """The frames of a step: its head with the first part of the tensor, and the chunks that follow it."""
    yield StepFrame(replace(step, data=step.data[:CHUNK_BYTES]), len(step.data))
    yield from chunks_after_first(step.data)


def chunks_after_first(data: bytes) -> Iterator[ChunkFrame]:
    """The chunks that follow the first `CHUNK_BYTES` of a tensor."""
    for offset in range(CHUNK_BYTES, len(data), CHUNK_BYTES):
        yield ChunkFrame(data[offset : offset + CHUNK_BYTES])


def replay_steps(
    buffer: ReplayBuffer, epoch: int, lengths: Sequence[int], mark: Rebuild, timeout_seconds: float
) -> Iterator[WireStep]:
    """The steps that bring an empty session to `lengths` with the tokens of `buffer`; always at least one.

    Raises ValueError if the buffer does not have the tokens.
    """
    plans = list(rebuild_plans(lengths, REBUILD_STEP_TOKENS)) or [StepPlan(())]
    for index, plan in enumerate(plans):
        marks = replace(mark, first=index == 0, last=index == len(plans) - 1)
        yield WireStep(epoch, index, plan, buffer.read(plan.rows), 0, timeout_seconds, rebuild=marks)


class Assembly:
    """Joins the parts of a tensor. Refuses a tensor that is longer than announced, or split into too many parts."""

    def __init__(self, total_bytes: int) -> None:
        self._missing = total_bytes
        self._most_parts = 2 + total_bytes // SMALLEST_PART_BYTES
        self._parts: list[bytes] = []

    def take(self, part: bytes) -> bytes | None:
        """Add the next part; returns the tensor if that was the last part. Raises RemoteProtocolError."""
        self._missing -= len(part)
        self._parts.append(part)
        if self._missing < 0:
            raise RemoteProtocolError("a tensor has more bytes than announced")
        if len(self._parts) > self._most_parts:
            raise RemoteProtocolError("a tensor comes in parts that are too small")
        if self._missing > 0:
            return None
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


class StepReader:
    """Reassembles the steps of one stream. Refuses a tensor of the wrong size before holding any of it."""

    def __init__(self, token_bytes: int, answers: bool = False) -> None:
        """`answers`: the tensors are answers of `plan.answers` tokens, not inputs of `plan.tokens`."""
        self.token_bytes = token_bytes
        """Bytes of a token in the steps that begin from now on."""
        self._answers = answers
        self._begun: tuple[WireStep, Assembly] | None = None

    def step(self, head: StepFrame) -> WireStep | None:
        """Add the head of a step; returns the step if it is complete. Raises RemoteProtocolError."""
        step = head.step
        if self._begun is not None:
            raise RemoteProtocolError("a step begins inside another one")
        tokens = step.plan.answers if self._answers and step.rebuild is None else step.plan.tokens
        if head.total_bytes != tokens * self.token_bytes:
            raise RemoteProtocolError(f"a step of {tokens} tokens has {head.total_bytes} bytes")
        self._begun = step, Assembly(head.total_bytes)
        return self._take(step.data)

    def chunk(self, chunk: ChunkFrame) -> WireStep | None:
        """Add the next chunk; returns the step if it is complete. Raises RemoteProtocolError."""
        return self._take(chunk.data)

    def _take(self, part: bytes) -> WireStep | None:
        if self._begun is None:
            raise RemoteProtocolError("a chunk belongs to no step")
        step, assembly = self._begun
        data = assembly.take(part)
        if data is None:
            return None
        self._begun = None
        return step if data is step.data else replace(step, data=data)
