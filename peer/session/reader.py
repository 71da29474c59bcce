"""One client's session stream on a peer: its frames, checked and given to the session's worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ...proto import swarm_pb2 as pb
from ...proto.errors import RemoteProtocolError, SessionLost
from ...proto.wire.frames import StepReader, WireStep, decode_rebuild
from ...proto.wire.prefixes import decode_prefixes
from ...proto.wire.steps import MAX_POSITIONS, MAX_ROWS
from ...proto.wire.timing import MAX_STEP_SECONDS
from ..timing import PeerTiming
from .outlet import ClientOutlet
from .transfer import KvImport, one_transfer, receive_kv, transfer_seconds
from .worker import SessionWorker


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
        timing: PeerTiming,
    ) -> None:
        self._timing = timing
        self._worker = worker
        self._outlet = outlet
        self._reader = reader
        self._reroute = reroute
        self._transfers = transfers
        self._largest_import = largest_import
        self._used = False
        self._silent_at = asyncio.get_running_loop().time() + self._timing.unused_room_seconds
        self._reading: asyncio.Timeout | None = None

    def touch(self) -> None:
        """The session is used, also where its client says nothing: steps may come from the predecessor alone."""
        self._used = True
        self._silent_at = asyncio.get_running_loop().time() + self._timing.idle_seconds
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
                raise SessionLost(
                    f"the session made no use of its room for {self._timing.unused_room_seconds:.0f} s"
                ) from None
            raise SessionLost(f"the session was silent for {self._timing.idle_seconds:.0f} s") from None
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
