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
from .outlet import ClientOutlet
from .transfer import KvImport, LargestImport, TakeTurn, receive_kv
from .work.worker import SessionWorker


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
        take_turn: TakeTurn,
        largest_import: LargestImport,
    ) -> None:
        self._worker = worker
        self._outlet = outlet
        self._reader = reader
        self._reroute = reroute
        self._take_turn = take_turn
        self._largest_import = largest_import
        self._superseded = asyncio.Event()

    def supersede(self) -> None:
        """Note that the client has opened the session again, so that this stream is dead, or will be."""
        self._superseded.set()

    async def until_superseded(self) -> None:
        """Raises SessionLost when the client has opened the session again."""
        await self._superseded.wait()
        raise SessionLost("the client has opened the session anew")

    async def run(self, stream: Stream[ClientFrame, PeerFrame]) -> None:
        """Read frames until the client closes. Raises SwarmError."""
        frame = await stream.read()
        while frame is not None and not isinstance(frame, CloseFrame):
            if isinstance(frame, RememberFrame):
                await self._remember(frame)
                return
            if isinstance(frame, KvStateFrame):
                frame = await self._import(frame, stream)
            else:
                await self._take(frame)
                frame = await stream.read()

    async def _import(self, head: KvStateFrame, stream: Stream[ClientFrame, PeerFrame]) -> ClientFrame | None:
        """Take a part of an attention cache; return the frame that comes after it."""
        async with self._take_turn(head.timeout_seconds) as turn:
            turn.begins()
            received = await receive_kv(head, stream.read, self._largest_import, turn.moved)
            if not isinstance(received, KvImport):
                return received
            await self._worker.put_import(received)
        return await stream.read()

    async def _remember(self, request: RememberFrame) -> None:
        """Keep prefixes, as the last request of a session: a second one would only keep the peer busy."""
        grant = self._worker.grant
        check_prefixes(request.prefixes, grant.kv_tokens, grant.max_rows)
        await self._worker.put_remember(unpack_digests(request.prefixes))

    async def _take(self, frame: ClientFrame) -> None:
        worker = self._worker
        match frame:
            case RerouteFrame():
                await self._reroute(frame)
            case ReplayFrame():
                await worker.put_replay(frame)
            case KvExportFrame():
                await worker.put_export(frame)
            case ProbeFrame():
                status = StatusFrame(frame.nonce, worker.epoch, worker.received_seq, worker.applied_seq)
                await self._outlet.write(status)
            case _:
                step = take_step(self._reader, frame)
                if step is not None:
                    await worker.put_step(step)
