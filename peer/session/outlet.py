"""The frames that a peer writes to one client's session stream, one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

from ...proto.errors import SessionLost, SwarmError
from ...proto.network.streams import Stream
from ...proto.wire.frames import CHUNK_BYTES, ChunkFrame, WireStep, cut_step
from ...proto.wire.messages.opening import QueuedFrame
from ...proto.wire.messages.session import FailureFrame, KvStateFrame, ReroutedFrame
from ...proto.wire.messages.steps import RebuiltFrame
from ...proto.wire.messages.streams import ClientFrame, PeerFrame
from ..engine.cache.part import CachePart
from ..tasks import cancel_all
from ..timing import PeerTiming

logger = logging.getLogger(__name__)


class ClientOutlet:
    """Writes frames to a client; the chunks of one tensor stay together."""

    def __init__(self, stream: Stream[ClientFrame, PeerFrame], timing: PeerTiming) -> None:
        self._stream = stream
        self._timing = timing
        self._stuck = False
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def between_frames(self) -> AsyncIterator[None]:
        """Run the block while no frame is being written, or after `frame_seconds`: a safe place to cancel writers.

        After a write that was cancelled half-way, grpc can neither send the reason nor end the stream.
        """
        try:
            async with asyncio.timeout(self._timing.frame_seconds):
                await self._lock.acquire()
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            self._lock.release()

    async def write(self, frame: PeerFrame) -> None:
        """Send a frame that stands alone. Raises SessionLost if the client takes no frames."""
        await self._write_all([frame])

    async def _write_all(self, frames: Iterable[PeerFrame]) -> None:
        async with self._lock:
            for frame in frames:
                await self._write_in_time(frame)

    async def _write_in_time(self, frame: PeerFrame) -> None:
        """Write one frame. Raises SessionLost if the client does not take it in time, and at every later call."""
        if not self._stuck:
            try:
                async with asyncio.timeout(self._timing.write_seconds):
                    await self._stream.write(frame)
                return
            except TimeoutError:
                self._stuck = True
        raise SessionLost("the client takes no frames")

    async def step(self, step: WireStep) -> None:
        await self._write_all(cut_step(step))

    async def queued(self, place: int, estimate_seconds: float) -> None:
        await self.write(QueuedFrame(place, estimate_seconds))

    async def rerouted(self, epoch: int, applied_seq: int, buffer_complete: bool) -> None:
        await self.write(ReroutedFrame(epoch, applied_seq, buffer_complete))

    async def rebuilt(self, epoch: int, tokens: int) -> None:
        await self.write(RebuiltFrame(epoch, tokens))

    async def kv_state(self, round_: int, applied_seq: int, part: CachePart, moved: Callable[[int], None]) -> None:
        """Send the head before the data, so that the client can time the part from the head's arrival.

        `moved` is told the size of every piece that was sent.
        """
        data = part.data
        head = KvStateFrame(round_, applied_seq, part.starts, part.lengths, len(data), b"")

        def frames() -> Iterator[PeerFrame]:
            yield head
            for at in range(0, len(data), CHUNK_BYTES):
                chunk = data[at : at + CHUNK_BYTES]
                yield ChunkFrame(chunk)
                moved(len(chunk))  # the next frame is asked for when this one was written

        await self._write_all(frames())

    async def failure(self, error: SwarmError, epoch: int, seq: int) -> None:
        await self.write(FailureFrame.of(error, epoch, seq))

    def failure_soon(self, error: SwarmError, epoch: int) -> None:
        """Tell the client of an error, from code that cannot wait."""
        task = asyncio.create_task(self.failure(error, epoch, 0))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def close(self) -> None:
        """Cancel the failures that were to be told soon."""
        if self._tasks:
            async with self.between_frames():
                await cancel_all(self._tasks)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("the client is gone: %s", task.exception())
