"""The frames that a peer writes to one client's session stream, one after the other."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from ...proto import swarm_pb2 as pb
from ...proto.errors import SwarmError, to_wire
from ...proto.wire.frames import CHUNK_BYTES, WireStep, chunks_after_first, encode_step
from ..tasks import cancel_all

logger = logging.getLogger(__name__)


class ClientOutlet:
    """Writes frames to a client; the chunks of one tensor stay together."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], frame_seconds: float) -> None:
        """`frame_seconds`: the wait of `between_frames` for a frame that is being written."""
        self._context = context
        self._frame_seconds = frame_seconds
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def between_frames(self) -> AsyncIterator[None]:
        """Nothing is being written, unless the client takes nothing: a place to cancel who writes.

        After a write that was cancelled on its way grpc can neither send the reason nor end the stream.
        """
        try:
            async with asyncio.timeout(self._frame_seconds):
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

    async def close(self) -> None:
        """Say nothing any more that was to be said soon."""
        if self._tasks:
            async with self.between_frames():
                await cancel_all(self._tasks)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("the client is gone: %s", task.exception())
