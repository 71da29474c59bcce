"""The peers' streams without sockets, and the faults that a network has: broken, silent, slow, repeated.

`MemoryNet.stub` stands in for `Dialer.stub`; the peers' real handlers serve the other end.  What is on the way is
bytes, as on a real stream, so every frame goes through its codec.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from blockswarm.proto.errors import PeerUnavailable, SwarmError
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.transport import Handlers
from blockswarm.proto.wire.frames import StepFrame
from blockswarm.proto.wire.messages.calls import PingReply, PingRequest
from blockswarm.proto.wire.messages.codec import Codec
from blockswarm.proto.wire.messages.streams import CLIENT_FRAME, PEER_FRAME, PUSH_FRAME, PUSH_REPLY
from blockswarm.routing.swarm import PeerId

CLIENT = PeerId("client")
HOST = "10.0.0.1"
"""Where all clients are seen."""
CODECS: dict[str, tuple[Codec[Any], Codec[Any]]] = {
    "session": (CLIENT_FRAME, PEER_FRAME), "push": (PUSH_FRAME, PUSH_REPLY),
}  # fmt: skip


@dataclass
class LinkFaults:
    """The faults on the way from one node to another, both directions of its streams."""

    delay_seconds: float = 0.0
    swallow: int = 0
    """This many of the next steps never arrive."""
    repeat: int = 0
    """This many of the next steps arrive twice."""
    held_until: float = 0.0
    """Nothing arrives before that moment of the loop's clock: the network is away, and TCP keeps what is sent."""
    alter: Callable[[Any], bytes] | None = None
    """The bytes that arrive at the caller instead of a frame: the other end says what it likes."""
    cut: bool = False
    """No stream can be opened, those that are open break."""


class _Pipe:
    """One direction of a stream, in order."""

    def __init__(self, faults: LinkFaults, codec: Codec[Any], *, is_reply: bool) -> None:
        self._faults = faults
        self._codec = codec
        self._is_reply = is_reply
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._on_the_way: deque[Any] = deque()
        self._last_at = 0.0
        self.deaf = False
        """Half-open: whatever is sent is lost, and nobody is told."""

    def put(self, frame: Any) -> None:
        """Send a frame; None: the end of the stream."""
        is_step = isinstance(frame, StepFrame)
        copies = 1
        if is_step and self._faults.swallow:
            self._faults.swallow -= 1
            copies = 0
        elif is_step and self._faults.repeat:
            self._faults.repeat -= 1
            copies = 2
        if self.deaf:
            return
        encode = self._faults.alter if self._faults.alter is not None and self._is_reply else self._codec.encode
        data = None if frame is None else encode(frame)
        loop = asyncio.get_running_loop()
        self._last_at = max(self._last_at, loop.time() + self._faults.delay_seconds, self._faults.held_until)
        for _ in range(copies):
            # Timers of equal times fire in any order, so they do not carry the frames themselves.
            self._on_the_way.append(data)
            loop.call_at(self._last_at, lambda: self._queue.put_nowait(self._on_the_way.popleft()))

    async def get(self) -> Any:
        data = await self._queue.get()
        return None if data is None else self._codec.decode(data)


@dataclass(eq=False)
class MemoryCall:
    """A stream; the caller's side. The server's side is `context`."""

    peer: PeerId
    faults: LinkFaults
    codecs: tuple[Codec[Any], Codec[Any]]
    """For the frames that the caller says, and those that it hears."""
    error: SwarmError | None = None
    task: asyncio.Task[None] | None = None
    _up: _Pipe = field(init=False)
    _down: _Pipe = field(init=False)
    _broken: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        up, down = self.codecs
        self._up, self._down = _Pipe(self.faults, up, is_reply=False), _Pipe(self.faults, down, is_reply=True)

    async def write(self, frame: Any) -> None:
        if self.error is not None:
            raise self.error
        self._up.put(frame)
        await asyncio.sleep(0)

    async def read(self) -> Any:
        frame = await self._get(self._down)
        if self.error is not None:
            raise self.error
        return frame

    async def _get(self, pipe: _Pipe) -> Any:
        """The next frame, or None when the stream breaks first."""
        getting, breaking = asyncio.ensure_future(pipe.get()), asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait([getting, breaking], return_when=asyncio.FIRST_COMPLETED)
            return getting.result() if getting.done() else None
        finally:
            getting.cancel()
            breaking.cancel()

    def cancel(self) -> None:
        self.break_with("cancelled")

    def break_with(self, details: str) -> None:
        if self.error is None:
            self.error = PeerUnavailable(f"{self.peer}: {details}")
            self._broken.set()
            if self.task is not None:
                self.task.cancel()

    def deafen(self) -> None:
        self._up.deaf = self._down.deaf = True

    def finish(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]
        self._down.put(None)


class _Context:
    """The server's side of a stream."""

    def __init__(self, call: MemoryCall) -> None:
        self._call = call

    async def read(self) -> Any:
        return await self._call._get(self._call._up)

    async def write(self, frame: Any) -> None:
        if self._call.error is None:
            self._call._down.put(frame)
        await asyncio.sleep(0)


@dataclass(frozen=True)
class _Stub:
    session: Callable[[], MemoryCall]
    push: Callable[[], MemoryCall]
    ping: Callable[[PingRequest, float], Awaitable[PingReply]]


class MemoryNet:
    """All nodes of a test, and the faults between them."""

    def __init__(self) -> None:
        self.faults: dict[tuple[PeerId, PeerId], LinkFaults] = {}
        self._handlers: dict[PeerId, Handlers] = {}
        self._calls: list[tuple[PeerId, MemoryCall]] = []

    def add(self, peer: PeerId, handlers: Handlers) -> None:
        self._handlers[peer] = handlers

    def link(self, source: PeerId, peer: PeerId) -> LinkFaults:
        return self.faults.setdefault((source, peer), LinkFaults())

    def kill(self, peer: PeerId) -> None:
        """The peer's process dies: every stream to and from it breaks."""
        del self._handlers[peer]
        for source, call in self._calls:
            if peer in (source, call.peer):
                call.break_with("connection reset")

    def deafen(self, source: PeerId, peer: PeerId) -> None:
        """The streams that are open between the two become half-open; new ones work."""
        for origin, call in self._calls:
            if (origin, call.peer) == (source, peer):
                call.deafen()

    def hold(self, node: PeerId, seconds: float) -> None:
        """The network of one node is away for some seconds: what is sent arrives when it is back."""
        until = asyncio.get_running_loop().time() + seconds
        for other in (CLIENT, *self._handlers):
            self.link(node, other).held_until = until
            self.link(other, node).held_until = until

    def vanish(self, source: PeerId) -> None:
        """A client's process dies: all of its streams break, and nobody closes anything."""
        for origin, call in self._calls:
            if origin == source:
                call.break_with("the client is gone")

    def cut(self, source: PeerId, peer: PeerId) -> None:
        """The two cannot reach each other any more."""
        self.link(source, peer).cut = True
        for origin, call in self._calls:
            if (origin, call.peer) == (source, peer):
                call.break_with("connection reset")

    def dialer(self, source: PeerId) -> Any:
        """The dialer of node `source`."""
        net = self

        class Dialer:
            def stub(self, address: PeerAddress) -> _Stub:
                return _Stub(
                    session=lambda: net._call(source, address.peer, "session"),
                    push=lambda: net._call(source, address.peer, "push"),
                    ping=lambda request, _seconds: net._ping(source, address.peer, request),
                )

            @asynccontextmanager
            async def dialed_once(self, address: PeerAddress) -> AsyncIterator[_Stub]:
                yield self.stub(address)

        return Dialer()

    def _call(self, source: PeerId, peer: PeerId, method: str) -> MemoryCall:
        self._calls = [(origin, call) for origin, call in self._calls if call.error is None]
        call = MemoryCall(peer, self.link(source, peer), CODECS[method])
        if peer not in self._handlers or call.faults.cut:
            call.break_with("connection refused")
            return call
        self._calls.append((source, call))
        handler: Callable[..., Awaitable[None]] = getattr(self._handlers[peer], method)
        where = (HOST,) if method == "session" else ()
        call.task = asyncio.ensure_future(handler(_Context(call), *where))
        call.task.add_done_callback(call.finish)
        return call

    async def _ping(self, source: PeerId, peer: PeerId, request: PingRequest) -> PingReply:
        if peer not in self._handlers or self.link(source, peer).cut:
            raise PeerUnavailable(f"{peer}: connection refused")
        await asyncio.sleep(self.link(source, peer).delay_seconds)
        return await self._handlers[peer].ping(request)
