"""One peer of a session's chain: the stream to it, and what came back."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc

from ...proto import swarm_pb2 as pb
from ...proto.errors import (
    DeadlineExceeded,
    PushFailed,
    RemoteProtocolError,
    SessionLost,
    SwarmError,
    from_wire,
)
from ...proto.network.address import Reach
from ...proto.network.transport import PeerStub, translated_grpc_errors
from ...proto.wire.frames import CREDITS, Rebuild, StepReader, WireStep, encode_rebuild, encode_step
from ...proto.wire.prefixes import Digests, encode_prefixes
from ...routing.swarm import BlockRange, PeerId
from ..peer_errors import blamed_on

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HopChoice:
    """A peer that the router chose, and how to reach it."""

    address: Reach
    blocks: BlockRange
    record: bytes
    """Its signed record, from which its predecessor takes the address."""
    wait_seconds: float = 0.0
    """Time until it is expected to have room; 0: now."""
    numeric_format: str = ""
    """The numeric format that it announces to compute in."""


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Where a session waits for room on a peer."""

    place: int
    """1: the next one."""
    estimate_seconds: float


@dataclass(frozen=True, slots=True)
class HopState:
    """The state of a peer's session when it was last rerouted, as the peer says."""

    epoch: int
    applied_seq: int
    buffer_complete: bool


@dataclass(frozen=True, slots=True)
class HopStatus:
    """A peer's answer to a probe."""

    nonce: int
    """Of the probe."""
    received_seq: int
    """The last step that came in whole."""
    applied_seq: int
    """The last step that was computed."""


@dataclass
class _KvPassage:
    """The passage of a hop's attention cache, in a state that the client knows, to another hop."""

    target: HopStream
    applied_seq: int
    lengths: tuple[int, ...]
    deadline: float
    """In the loop's time."""
    slack_seconds: float


class HopStream:
    """The session on one peer. A hop that failed stays failed; `error` says why."""

    def __init__(
        self,
        choice: HopChoice,
        last: bool,
        token_bytes: int,
        on_step: Callable[[HopStream, WireStep], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        """`last`: what the peer sends are answers; what others send is for the next hop.

        `on_step` takes the steps that the peer sends back, `on_change` is told of everything else.
        """
        self.address = choice.address
        self.blocks = choice.blocks
        self.record = choice.record
        self.numeric_format = choice.numeric_format
        self.opened = False
        """Whether the peer has said that it has room."""
        self.queued: QueuePlace | None = None
        """Its last place in the peer's queue."""
        self.built = False
        """Whether its cache holds what the session has computed so far."""
        self.error: SwarmError | None = None
        self.push_failed_epoch = 0
        """The last epoch in which the peer could not push to its successor; 0: none."""
        self.credits = CREDITS
        self.held_tokens: tuple[int, ...] = ()
        """Per row that was named at the opening, the number of its first tokens that the peer says it holds."""
        self.state: HopState | None = None
        self.rebuilt_epoch = 0
        self.status: HopStatus | None = None
        self.last = last
        self._token_bytes = token_bytes
        self._on_step = on_step
        self._on_change = on_change
        self._call: grpc.aio.StreamStreamCall[pb.ClientFrame, pb.PeerFrame] | None = None
        self._kv_passage: _KvPassage | None = None
        self._kv_missing_bytes = 0
        """Bytes still to come of the cache that the peer is sending."""
        self._write_lock = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None

    @property
    def peer(self) -> PeerId:
        return self.address.peer

    async def open(self, stub: PeerStub, message: pb.Open) -> None:
        """Open the session; does not wait for the peer's answer, steps may follow at once."""
        self._call = stub.session()
        self._reader = asyncio.create_task(self._read(self._call), name=f"hop {self.peer}")
        await self._write(pb.ClientFrame(open=message))

    async def reroute(self, message: pb.Reroute) -> None:
        """Give the peer new neighbours; its answer ends up in `state`."""
        await self._write(pb.ClientFrame(reroute=message))

    async def send(self, step: WireStep) -> None:
        """Send a step to compute."""
        head, chunks = encode_step(step)
        await self._write(pb.ClientFrame(step=head), *(pb.ClientFrame(chunk=chunk) for chunk in chunks))

    async def replay(self, epoch: int, lengths: tuple[int, ...], rebuild: Rebuild, timeout_seconds: float) -> None:
        """Have the peer send its replay buffer on to its successor."""
        message = pb.Replay(
            epoch=epoch, lengths=lengths, rebuild=encode_rebuild(rebuild), timeout_seconds=timeout_seconds
        )
        await self._write(pb.ClientFrame(replay=message))

    async def probe(self, nonce: int) -> None:
        """Ask where the peer is; the answer ends up in `status`."""
        await self._write(pb.ClientFrame(probe=pb.Probe(nonce=nonce)))

    async def export_to(
        self,
        target: HopStream,
        applied_seq: int,
        lengths: tuple[int, ...],
        timeout_seconds: float,
        slack_seconds: float,
    ) -> None:
        """Have the peer's attention cache sent to `target`, which says in `rebuilt_epoch` when it has it.

        It is passed on as it comes in, so that it is never in memory here. A cache of another state fails this hop.
        The peers may take `slack_seconds` longer than the client waits.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        self._kv_passage = _KvPassage(target, applied_seq, lengths, deadline, slack_seconds)
        await self._write(pb.ClientFrame(kv_export=pb.KvExport(timeout_seconds=timeout_seconds + slack_seconds)))

    def stop_export(self) -> None:
        """Pass nothing on any more; `target` drops what it has of a cache with the next frame that it gets."""
        self._kv_passage = None

    def fail(self, error: SwarmError) -> None:
        """Give the hop up."""
        if self.error is None:
            self.error = error
            self._on_change()

    def fail_silent(self) -> None:
        """Give the hop up because its peer does not answer."""
        self.fail(DeadlineExceeded(f"{self.address} does not answer"))

    async def leave(self, prefixes: Sequence[Digests]) -> None:
        """Have the peer keep the beginnings of its rows, and then end the session; returns when it has."""
        await self._write(pb.ClientFrame(remember=pb.Remember(prefixes=encode_prefixes(prefixes))))
        if self._reader is not None:
            await asyncio.wait([self._reader])

    async def close(self) -> None:
        """End the session on the peer; its memory is free at once."""
        if self._call is not None:
            self._call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _write(self, *frames: pb.ClientFrame) -> None:
        """Errors are left in `error`: the reader sees the reason for a broken stream, the writer only that it broke."""
        assert self._call is not None
        async with self._write_lock:
            try:
                for frame in frames:
                    await self._call.write(frame)
            except asyncio.CancelledError:
                # A tensor may be half-written: nothing else can follow it on this stream.
                self.fail(DeadlineExceeded(f"{self.address} takes no data"))
                raise
            except grpc.aio.AioRpcError as error:
                self.fail(SessionLost(f"{self.address}: {error.details()}"))
            except (grpc.aio.UsageError, asyncio.InvalidStateError):
                self.fail(SessionLost(f"{self.address}: the stream is closed"))

    async def _read(self, call: grpc.aio.StreamStreamCall[pb.ClientFrame, pb.PeerFrame]) -> None:
        reader = StepReader(self._token_bytes, answers=self.last)
        try:
            with blamed_on(self.address), translated_grpc_errors(str(self.address)):
                while isinstance(frame := await call.read(), pb.PeerFrame):
                    await self._take(reader, frame)
            self.fail(SessionLost(f"{self.address}: the peer closed the session"))
        except SwarmError as error:
            self.fail(error)
        finally:
            call.cancel()

    async def _take(self, reader: StepReader, frame: pb.PeerFrame) -> None:
        kind = frame.WhichOneof("kind")
        if kind == "kv_state" or (kind == "chunk" and self._kv_missing_bytes > 0):
            await self._pass_kv_on(frame)
            return
        if kind in ("step", "chunk"):
            step = reader.step(frame.step) if kind == "step" else reader.chunk(frame.chunk)
            if step is not None:
                await self._on_step(self, step)
            return
        if kind == "opened":
            self.opened = True
            self.held_tokens = tuple(frame.opened.held_tokens)
            self.credits = max(1, min(CREDITS, frame.opened.credits))
        elif kind == "queued":
            self.queued = _queue_place(frame.queued)
        elif kind == "rerouted":
            done = frame.rerouted
            self.state = HopState(done.epoch, done.applied_seq, done.buffer_complete)
        elif kind == "rebuilt":
            self.rebuilt_epoch = frame.rebuilt.epoch
        elif kind == "status":
            self.status = HopStatus(frame.status.nonce, frame.status.received_seq, frame.status.applied_seq)
        elif kind == "failure":
            self._take_failure(frame.failure)
        self._on_change()

    async def _pass_kv_on(self, frame: pb.PeerFrame) -> None:
        passage = self._kv_passage
        if frame.HasField("kv_state"):
            state = frame.kv_state
            self._kv_missing_bytes = state.total_bytes - len(state.data)
            if passage is not None:
                if (state.applied_seq, tuple(state.lengths)) != (passage.applied_seq, passage.lengths):
                    raise RemoteProtocolError(f"{self.address}: the attention cache is of another state")
                left = max(0.001, passage.deadline - asyncio.get_running_loop().time())
                state.timeout_seconds = left + passage.slack_seconds
                await passage.target._write(pb.ClientFrame(kv_import=state))
        else:
            self._kv_missing_bytes -= len(frame.chunk.data)
            if passage is not None:
                await passage.target._write(pb.ClientFrame(chunk=frame.chunk))

    def _take_failure(self, failure: pb.Failure) -> None:
        error = from_wire(failure.code, failure.message)
        if isinstance(error, PushFailed):
            logger.info("%s: %s", self.address, error)
            self.push_failed_epoch = failure.epoch
        else:
            error.args = (f"{self.address}: {error}",)
            self.fail(error)


def _queue_place(message: pb.Queued) -> QueuePlace:
    estimate = message.estimate_seconds if math.isfinite(message.estimate_seconds) else 0.0
    return QueuePlace(max(1, message.place), max(0.0, estimate))
