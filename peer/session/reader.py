"""One client's session stream on a peer: frames in, checked and given to the worker; what the worker says, out."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ...proto import swarm_pb2 as pb
from ...proto.errors import RemoteProtocolError, SessionLost, SwarmError, to_wire
from ...proto.wire.frames import (
    CHUNK_BYTES,
    StepReader,
    WireStep,
    chunks_after_first,
    decode_rebuild,
    encode_step,
)
from ...proto.wire.prefixes import decode_prefixes
from ...proto.wire.steps import MAX_POSITIONS, MAX_ROWS
from ...proto.wire.timing import MAX_STEP_SECONDS
from .transfer import KvImport, one_transfer, receive_kv, transfer_seconds
from .worker import SessionWorker

logger = logging.getLogger(__name__)

UNUSED_SECONDS = 60.0
"""A session that has done nothing with its room for so long ends. A client holds the room of some peers at most half as
long while it waits for that of others."""
IDLE_SECONDS = 1800.0
FRAME_SECONDS = 0.5


async def read_frame(context: grpc.aio.ServicerContext[Any, Any]) -> object:
    """The next frame, or grpc's end mark. Raises RemoteProtocolError for what is not a frame."""
    try:
        return await context.read()  # type: ignore[attr-defined]
    except DecodeError:
        raise RemoteProtocolError("a frame is not readable") from None


def take_step(reader: StepReader, frame: pb.ClientFrame | pb.PushFrame) -> WireStep | None:
    if frame.HasField("step"):
        return reader.step(frame.step)
    if frame.HasField("chunk"):
        return reader.chunk(frame.chunk)
    raise RemoteProtocolError("a push has only steps and chunks after its first frame")


class SessionReader:
    """Reads one client's frames after the open."""

    def __init__(
        self,
        worker: SessionWorker,
        outlet: ClientOutlet,
        reader: StepReader,
        reroute: Callable[[pb.Reroute], Awaitable[None]],
        transfers: asyncio.Semaphore,
        largest_import: Callable[[tuple[int, ...]], int],
    ) -> None:
        self._worker = worker
        self._outlet = outlet
        self._reader = reader
        self._reroute = reroute
        self._transfers = transfers
        self._largest_import = largest_import
        self._used = False
        self._silent_at = asyncio.get_running_loop().time() + UNUSED_SECONDS
        self._reading: asyncio.Timeout | None = None

    def touch(self) -> None:
        """The session is used, also where its client says nothing: steps may come from the predecessor alone."""
        self._used = True
        self._silent_at = asyncio.get_running_loop().time() + IDLE_SECONDS
        if self._reading is not None:
            self._reading.reschedule(self._silent_at)

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Until the client closes or is silent for too long. Raises SwarmError."""
        frame = await self._next(context)
        while isinstance(frame, pb.ClientFrame) and not frame.HasField("close"):
            if frame.HasField("remember"):
                await self._remember(frame.remember)
                return
            if frame.HasField("kv_import"):
                frame = await self._import(frame.kv_import, context)
            else:
                await self._take(frame)
                frame = await self._next(context)

    async def _next(self, context: grpc.aio.ServicerContext[Any, Any]) -> object:
        try:
            async with asyncio.timeout_at(self._silent_at) as self._reading:
                return await read_frame(context)
        except TimeoutError:
            if not self._used:
                raise SessionLost(f"the session made no use of its room for {UNUSED_SECONDS:.0f} s") from None
            raise SessionLost(f"the session was silent for {IDLE_SECONDS:.0f} s") from None
        finally:
            self._reading = None

    async def _import(self, head: pb.KvState, context: grpc.aio.ServicerContext[Any, Any]) -> object:
        """Take an attention cache; the frame that comes after it."""
        self.touch()
        async with one_transfer(self._transfers, transfer_seconds(head.timeout_seconds)):
            received = await receive_kv(head, lambda: read_frame(context), self._largest_import)
            if not isinstance(received, KvImport):
                return received
            await self._worker.put_import(received)
        return await self._next(context)

    async def _remember(self, message: pb.Remember) -> None:
        """The last wish of a session: a second one would only keep the peer busy."""
        grant = self._worker.grant
        await self._worker.put_remember(decode_prefixes(message.prefixes, grant.kv_tokens, grant.max_rows))

    async def _take(self, frame: pb.ClientFrame) -> None:
        worker = self._worker
        kind = frame.WhichOneof("kind")
        if kind != "probe":
            self.touch()
        if kind in ("step", "chunk"):
            step = take_step(self._reader, frame)
            if step is not None:
                await worker.put_step(step)
        elif kind == "reroute":
            await self._reroute(frame.reroute)
        elif kind == "replay":
            message = frame.replay
            lengths = tuple(message.lengths)
            if len(lengths) > MAX_ROWS or max(lengths, default=0) > MAX_POSITIONS:
                raise RemoteProtocolError("a replay names impossible rows")
            if not 0 < message.timeout_seconds <= MAX_STEP_SECONDS:
                raise RemoteProtocolError("a replay has an impossible deadline")
            await worker.put_replay(message.epoch, lengths, decode_rebuild(message.rebuild), message.timeout_seconds)
        elif kind == "kv_export":
            await worker.put_export(transfer_seconds(frame.kv_export.timeout_seconds))
        elif kind == "probe":
            status = pb.Status(
                nonce=frame.probe.nonce,
                epoch=worker.epoch,
                received_seq=worker.received_seq,
                applied_seq=worker.applied_seq,
            )
            await self._outlet.write(pb.PeerFrame(status=status))
        else:
            raise RemoteProtocolError(f"a session has no frame of kind {kind} after its first")


class ClientOutlet:
    """Writes frames to a client; the chunks of one tensor stay together."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def between_frames(self) -> AsyncIterator[None]:
        """Nothing is being written, unless the client takes nothing: a place to cancel who writes.

        After a write that was cancelled on its way grpc can neither send the reason nor end the stream.
        """
        try:
            async with asyncio.timeout(FRAME_SECONDS):
                await self._lock.acquire()
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            self._lock.release()

    async def write(self, *frames: pb.PeerFrame) -> None:
        await self._write_all(frames)

    async def _write_all(self, frames: Iterable[pb.PeerFrame]) -> None:
        async with self._lock:
            for frame in frames:
                await self._context.write(frame)

    async def step(self, step: WireStep) -> None:
        head, chunks = encode_step(step)
        await self.write(pb.PeerFrame(step=head), *(pb.PeerFrame(chunk=chunk) for chunk in chunks))

    async def queued(self, place: int, estimate_seconds: float) -> None:
        await self.write(pb.PeerFrame(queued=pb.Queued(place=place, estimate_seconds=estimate_seconds)))

    async def rerouted(self, epoch: int, applied_seq: int, buffer_complete: bool) -> None:
        message = pb.Rerouted(epoch=epoch, applied_seq=applied_seq, buffer_complete=buffer_complete)
        await self.write(pb.PeerFrame(rerouted=message))

    async def rebuilt(self, epoch: int, tokens: int) -> None:
        await self.write(pb.PeerFrame(rebuilt=pb.Rebuilt(epoch=epoch, tokens=tokens)))

    async def kv_state(self, applied_seq: int, lengths: tuple[int, ...], data: bytes) -> None:
        head = pb.KvState(applied_seq=applied_seq, lengths=lengths, total_bytes=len(data), data=data[:CHUNK_BYTES])
        chunks = (pb.PeerFrame(chunk=chunk) for chunk in chunks_after_first(data))
        await self._write_all(itertools.chain([pb.PeerFrame(kv_state=head)], chunks))

    async def failure(self, error: SwarmError, epoch: int, seq: int) -> None:
        code, text = to_wire(error)
        await self.write(pb.PeerFrame(failure=pb.Failure(code=code, message=text, epoch=epoch, seq=seq)))

    def failure_soon(self, error: SwarmError, epoch: int) -> None:
        """Tell the client from a place that cannot wait."""
        task = asyncio.create_task(self.failure(error, epoch, 0))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("the client is gone: %s", task.exception())
