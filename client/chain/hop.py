"""The stream to one peer of a chain: frames out, in order and without waiting for them; what comes back as events.

No decisions here.  What is posted goes out one after the other in a task of its own, so that a peer that takes no data
holds nobody else up; the machine finds out by its lateness.
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
from .machine import events as ev

BACKLOG_FRAMES = 8
"""A cache that passes through here waits while this many frames wait to be sent on."""


@dataclass
class _KvPassage:
    """A part of the attention cache of a hop on its way to another one."""

    target: HopStream
    round: int
    deadline: float
    """In the loop's time."""
    slack_seconds: float


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
        """`reader` puts the peer's steps together, `take` converts one or refuses it (SwarmError).

        `tell` takes the events.
        """
        self.id = hop
        self.choice = choice
        self._reader = reader
        self._tell = tell
        self._take = take
        self._outbox: asyncio.Queue[Iterable[ClientFrame]] = asyncio.Queue()
        self._passage: _KvPassage | None = None
        self._kv_missing_bytes = 0
        """Bytes still to come of the cache that the peer sends just now."""
        self._room = asyncio.Event()
        self._writes = True
        """Frames that are posted go out; they do not any more when the stream has ended."""
        self._task: asyncio.Task[None] | None = None

    def open(self, stub: PeerStub, opening: OpenFrame) -> None:
        """Open the session; frames may be posted at once."""
        self.post(opening)
        self._task = asyncio.create_task(self._run(stub), name=f"hop {self.choice.peer}")

    def post(self, *frames: ClientFrame) -> None:
        """Send frames after all that was posted before."""
        self.post_lazily(frames)

    def post_lazily(self, frames: Iterable[ClientFrame]) -> None:
        """The same for frames that are made one by one as they go out."""
        self._outbox.put_nowait(frames)

    def pass_cache_on(self, target: HopStream, export: ev.Export, slack_seconds: float) -> None:
        """Have a part of the peer's attention cache sent to `target`, frame by frame.

        The peers may take `slack_seconds` longer than the client waits.
        """
        deadline = asyncio.get_running_loop().time() + export.timeout_seconds
        self._passage = _KvPassage(target, export.round, deadline, slack_seconds)
        timeout_seconds = export.timeout_seconds + slack_seconds
        self.post(KvExportFrame(timeout_seconds, export.round, export.starts, export.max_tokens))

    def stop_passing(self) -> None:
        """Pass nothing on any more; the target drops what it has of a part with the next frame that it gets."""
        self._passage = None

    async def ended(self) -> None:
        """Return when the peer has ended the session."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """End the session on the peer; its memory is free at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, stub: PeerStub) -> None:
        """Read and write until the stream ends; tells why, unless it was closed here."""
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
        """Send what is posted; the reader hears why a stream broke, the writer only that it did."""
        try:
            while True:
                for frame in await self._outbox.get():
                    await stream.write(frame)
                    self._room.set()
        except SwarmError:
            return
        except Exception as error:  # a frame that cannot be made is a defect of ours, and what follows it is lost
            self._tell(ev.Lost(self.id, LocalProtocolError(f"{self.choice.address}: cannot send: {error!r}")))
            raise
        finally:
            self._writes = False
            self._room.set()

    async def _event_in(self, frame: PeerFrame) -> ev.Event | None:
        """The event that a frame brings; None if there is more to come. Raises SwarmError."""
        match frame:
            case KvStateFrame():
                return await self._begin_passing(frame)
            case ChunkFrame() if self._kv_missing_bytes > 0:
                self._kv_missing_bytes -= len(frame.data)
                if self._passage is not None:
                    await self._passage.target._post_with_room(frame)
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
        if state.round != passage.round:  # one that was given up
            self._passage = None
            return None
        left = max(0.001, passage.deadline - asyncio.get_running_loop().time())
        await passage.target._post_with_room(replace(state, timeout_seconds=left + passage.slack_seconds))
        return ev.Exported(self.id, state.round, state.applied_seq, state.starts, state.lengths)

    async def _post_with_room(self, frame: ClientFrame) -> None:
        """Send a frame when few others wait to be sent; drop it where nothing is sent any more."""
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
