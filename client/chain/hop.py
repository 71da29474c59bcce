"""The stream to one peer of a chain: sends frames in order, without blocking the caller, and turns replies into events.

No decisions here.  Each stream has a task that sends its frames, so a peer that reads nothing blocks no other one; the
machine notices it by its late answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ...proto.errors import LocalProtocolError, PushFailed, SessionLost, SwarmError
from ...proto.network.streams import DialedStream
from ...proto.network.stub import PeerStub
from ...proto.wire.frames import CREDITS, ChunkFrame, StepFrame, StepReader, WireStep
from ...proto.wire.messages.opening import OpenedFrame, OpenFrame, QueuedFrame
from ...proto.wire.messages.session import FailureFrame, KvExportFrame, KvStateFrame, ReroutedFrame, StatusFrame
from ...proto.wire.messages.steps import RebuiltFrame
from ...proto.wire.messages.streams import ClientFrame, PeerFrame
from ..peer_errors import blamed_on
from ..timing import ChainTiming
from .machine import events as ev

BACKLOG_FRAMES = 8
"""Back-pressure: a cache that is passed on pauses while this many frames wait to be sent to the target."""


@dataclass
class _KvPassage:
    """A part of a hop's attention cache on its way to another hop."""

    target: HopStream
    round: int
    deadline: float
    """In the loop's time."""
    slack_seconds: float
    patience_seconds: float
    """How much longer the passage may wait for the target; the source's answers are not read meanwhile."""


class HopStream:
    """The session on one peer, from `open` to `close`."""

    def __init__(
        self,
        hop: ev.HopId,
        choice: ev.HopChoice,
        reader: StepReader,
        tell: Callable[[ev.Event], None],
        take: Callable[[WireStep], WireStep],
    ) -> None:
        """`reader` assembles the peer's steps, `take` converts or refuses them (SwarmError), `tell` gets the events."""
        self.id = hop
        self.choice = choice
        self._reader = reader
        self._tell = tell
        self._take = take
        self._outbox: asyncio.Queue[Iterable[ClientFrame]] = asyncio.Queue()
        self._passage: _KvPassage | None = None
        self._kv_missing_bytes = 0
        """Bytes still to come of the cache part that the peer is sending."""
        self._room = asyncio.Event()
        self._writes = True
        """Whether posted frames are sent; false once the stream has ended."""
        self._task: asyncio.Task[None] | None = None

    def open(self, stub: PeerStub, opening: OpenFrame) -> None:
        """Start opening the session; frames may be posted at once."""
        self.post(opening)
        self._task = asyncio.create_task(self._run(stub), name=f"hop {self.choice.peer}")

    def post(self, *frames: ClientFrame) -> None:
        """Queue frames for sending, after all those posted before. Does not wait."""
        self.post_lazily(frames)

    def post_lazily(self, frames: Iterable[ClientFrame]) -> None:
        """Queue frames that are made one by one as they are sent."""
        self._outbox.put_nowait(frames)

    def pass_cache_on(self, target: HopStream, export: ev.Export, timing: ChainTiming) -> None:
        """Ask the peer for a part of its attention cache and pass it on to `target`, frame by frame."""
        slack_seconds = timing.transfer_slack_seconds
        deadline = asyncio.get_running_loop().time() + export.timeout_seconds
        self._passage = _KvPassage(target, export.round, deadline, slack_seconds, timing.passing_seconds)
        timeout_seconds = export.timeout_seconds + slack_seconds
        self.post(KvExportFrame(timeout_seconds, export.round, export.starts, export.max_tokens))

    def stop_passing(self) -> None:
        """Stop passing on; the target drops an incomplete part when it gets its next frame."""
        self._passage = None

    async def ended(self) -> None:
        """Wait until the peer has ended the session."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """End the session on the peer, which frees its memory at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, stub: PeerStub) -> None:
        """Read and write until the stream ends; emit `Lost` with the reason, unless it was closed here."""
        stream = stub.session()
        writing = asyncio.create_task(self._write(stream), name=f"to {self.choice.peer}")
        try:
            while True:
                with blamed_on(self.choice.address):
                    frame = await stream.read()
                    if frame is None:
                        break
                    event = await self._event_in(frame)
                if event is not None:
                    self._tell(event)
            self._tell(ev.Lost(self.id, SessionLost(f"{self.choice.address}: the peer closed the session")))
        except SwarmError as error:
            self._tell(ev.Lost(self.id, error))
        finally:
            stream.cancel()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, stream: DialedStream[PeerFrame, ClientFrame]) -> None:
        """Send the posted frames. When the stream breaks, only the reader learns the reason, so this just returns."""
        try:
            while True:
                for frame in await self._outbox.get():
                    await stream.write(frame)
                    self._room.set()
        except SwarmError:
            return
        except Exception as error:  # a frame that cannot be made is a bug of ours, and the frames after it are lost
            self._tell(ev.Lost(self.id, LocalProtocolError(f"{self.choice.address}: cannot send: {error!r}")))
            raise
        finally:
            self._writes = False
            self._room.set()

    async def _event_in(self, frame: PeerFrame) -> ev.Event | None:
        """Return the event that a frame completes; None if more frames must follow. Raises SwarmError."""
        match frame:
            case KvStateFrame():
                return await self._begin_passing(frame)
            case ChunkFrame() if self._kv_missing_bytes > 0:
                self._kv_missing_bytes -= len(frame.data)
                if self._passage is not None:
                    await self._pass_on(self._passage, frame)
            case StepFrame():
                return self._answered(self._reader.step(frame))
            case ChunkFrame():
                return self._answered(self._reader.chunk(frame))
            case FailureFrame():
                return self._failed(frame)
            case OpenedFrame():
                return ev.Opened(self.id, max(1, min(CREDITS, frame.credits)), frame.held_tokens)
            case QueuedFrame():
                return ev.Queued(self.id, max(1, frame.place), frame.estimate_seconds)
            case ReroutedFrame():
                return ev.Rerouted(self.id, frame.epoch, frame.applied_seq, frame.buffer_complete)
            case RebuiltFrame():
                return ev.Rebuilt(self.id, frame.epoch)
            case StatusFrame():
                return ev.Probed(self.id, frame.nonce, frame.received_seq, frame.applied_seq)
        return None

    def _answered(self, step: WireStep | None) -> ev.Event | None:
        if step is None:
            return None
        return ev.Answered(self.id, self._take(step))

    async def _begin_passing(self, state: KvStateFrame) -> ev.Event | None:
        passage = self._passage
        self._kv_missing_bytes = state.total_bytes - len(state.data)
        if passage is None:
            return None
        if state.round != passage.round:  # a part that was given up
            self._passage = None
            return None
        left = max(0.001, passage.deadline - asyncio.get_running_loop().time())
        await self._pass_on(passage, replace(state, timeout_seconds=left + passage.slack_seconds))
        return ev.Exported(self.id, state.round, state.applied_seq, state.starts, state.lengths)

    async def _pass_on(self, passage: _KvPassage, frame: ClientFrame) -> None:
        """Pass a frame on; drop the part if its target takes nothing: the peer that sends it must be heard."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(passage.patience_seconds):
                await passage.target._post_with_room(frame)
        except TimeoutError:
            if self._passage is passage:
                self.stop_passing()
                self._tell(ev.PartDropped(self.id))
        passage.patience_seconds -= asyncio.get_running_loop().time() - began

    async def _post_with_room(self, frame: ClientFrame) -> None:
        """Queue a frame once fewer than `BACKLOG_FRAMES` wait to be sent; drop it if the stream has ended."""
        while self._writes and self._outbox.qsize() >= BACKLOG_FRAMES:
            self._room.clear()
            await self._room.wait()
        if self._writes:
            self.post(frame)

    def _failed(self, failure: FailureFrame) -> ev.Event:
        error = failure.error
        if isinstance(error, PushFailed):
            return ev.PushBroken(self.id, failure.epoch)
        error.args = (f"{self.choice.address}: {error}",)
        return ev.Lost(self.id, error)
