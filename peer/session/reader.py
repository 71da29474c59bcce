"""One client's session stream on a peer: its frames, given to the session's worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ...proto.errors import RemoteProtocolError, SessionLost
from ...proto.network.streams import Stream
from ...proto.wire.frames import ChunkFrame, StepFrame, StepReader, WireStep
from ...proto.wire.messages.session import (
    CloseFrame,
    KvExportFrame,
    KvStateFrame,
    ProbeFrame,
    RememberFrame,
    RerouteFrame,
    StatusFrame,
)
from ...proto.wire.messages.steps import ReplayFrame
from ...proto.wire.messages.streams import ClientFrame, PeerFrame
from ...proto.wire.prefixes import check_prefixes, unpack_digests
from ..timing import PeerTiming
from .outlet import ClientOutlet
from .transfer import KvImport, one_transfer, receive_kv
from .worker import SessionWorker


def take_step(reader: StepReader, frame: object) -> WireStep | None:
    """The step that is complete with `frame`, if any. Raises RemoteProtocolError for a frame that is no part of one."""
    match frame:
        case StepFrame():
            return reader.step(frame)
        case ChunkFrame():
            return reader.chunk(frame)
    raise RemoteProtocolError(f"a frame of kind {type(frame).__name__} comes only at the beginning")


class SessionReader:
    """Reads one client's frames after the open."""

    def __init__(
        self,
        worker: SessionWorker,
        outlet: ClientOutlet,
        reader: StepReader,
        reroute: Callable[[RerouteFrame], Awaitable[None]],
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
        self._superseded = asyncio.Event()

    def supersede(self) -> None:
        """The client has opened the session anew, so this stream is dead, or will be."""
        self._superseded.set()

    async def until_superseded(self) -> None:
        """Raises SessionLost when the client has opened the session anew."""
        await self._superseded.wait()
        raise SessionLost("the client has opened the session anew")

    def touch(self) -> None:
        """The session is used, also where its client says nothing: steps may come from the predecessor alone."""
        self._used = True
        self._silent_at = asyncio.get_running_loop().time() + self._timing.idle_seconds
        if self._reading is not None:
            self._reading.reschedule(self._silent_at)

    async def run(self, stream: Stream[ClientFrame, PeerFrame]) -> None:
        """Until the client closes or is silent for too long. Raises SwarmError."""
        frame = await self._next(stream)
        while frame is not None and not isinstance(frame, CloseFrame):
            if isinstance(frame, RememberFrame):
                await self._remember(frame)
                return
            if isinstance(frame, KvStateFrame):
                frame = await self._import(frame, stream)
            else:
                await self._take(frame)
                frame = await self._next(stream)

    async def _next(self, stream: Stream[ClientFrame, PeerFrame]) -> ClientFrame | None:
        try:
            async with asyncio.timeout_at(self._silent_at) as self._reading:
                return await stream.read()
        except TimeoutError:
            if not self._used:
                raise SessionLost(
                    f"the session made no use of its room for {self._timing.unused_room_seconds:.0f} s"
                ) from None
            raise SessionLost(f"the session was silent for {self._timing.idle_seconds:.0f} s") from None
        finally:
            self._reading = None

    async def _import(self, head: KvStateFrame, stream: Stream[ClientFrame, PeerFrame]) -> ClientFrame | None:
        """Take an attention cache; the frame that comes after it."""
        self.touch()
        async with one_transfer(self._transfers, head.timeout_seconds):
            received = await receive_kv(head, stream.read, self._largest_import)
            if not isinstance(received, KvImport):
                return received
            await self._worker.put_import(received)
        return await self._next(stream)

    async def _remember(self, wish: RememberFrame) -> None:
        """The last wish of a session: a second one would only keep the peer busy."""
        grant = self._worker.grant
        check_prefixes(wish.prefixes, grant.kv_tokens, grant.max_rows)
        await self._worker.put_remember(unpack_digests(wish.prefixes))

    async def _take(self, frame: ClientFrame) -> None:
        worker = self._worker
        if not isinstance(frame, ProbeFrame):
            self.touch()
        match frame:
            case RerouteFrame():
                await self._reroute(frame)
            case ReplayFrame():
                await worker.put_replay(frame)
            case KvExportFrame():
                await worker.put_export(frame.timeout_seconds)
            case ProbeFrame():
                status = StatusFrame(frame.nonce, worker.epoch, worker.received_seq, worker.applied_seq)
                await self._outlet.write(status)
            case _:
                step = take_step(self._reader, frame)
                if step is not None:
                    await worker.put_step(step)
