"""The transfer of attention caches in parts: one part at a time, of its announced size, within its time limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ...proto.errors import DeadlineExceeded, RemoteProtocolError
from ...proto.wire.frames import Assembly, ChunkFrame
from ...proto.wire.messages.session import KvStateFrame
from ...proto.wire.messages.streams import ClientFrame
from ...routing.swarm import PeerId
from ..engine.cache.part import CachePart

LargestImport = Callable[[tuple[int, ...], tuple[int, ...]], int]
"""The most bytes that a part with rows of these starts and lengths may have."""


@dataclass(frozen=True, slots=True)
class KvImport:
    """A part of a cache that arrived; the engine checks its content."""

    applied_seq: int
    part: CachePart


class Turn:
    """The turn of one part."""

    def __init__(self, now_seconds: float) -> None:
        """`now_seconds` is of the loop's clock."""
        self.moves_from = now_seconds
        """When the part began to move."""

    def moves(self) -> None:
        """Note that the part begins to move only now: until now it waited for the engine, and used no link."""
        self.moves_from = asyncio.get_running_loop().time()


class Transfers:
    """Parts of caches move to and from this peer one at a time; clients take turns, however many sessions each has."""

    def __init__(self, hold_seconds: float, link_share: float) -> None:
        """A part may move for at most `hold_seconds`; parts move for at most `link_share` of the time."""
        self._hold_seconds = hold_seconds
        self._rest = 1 / link_share - 1
        """The pause after a part, as a multiple of the time that it moved for."""
        self._busy = False
        self._waiting: dict[PeerId, deque[asyncio.Future[None]]] = {}
        """By client; the first one is next."""

    @asynccontextmanager
    async def turn(self, client: PeerId, timeout_seconds: float) -> AsyncIterator[Turn]:
        """Wait for the turn and hold it, for at most `timeout_seconds` together. Raises DeadlineExceeded."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds) as limit:
                await self._take(client)
                turn = Turn(loop.time())
                try:
                    held_until = turn.moves_from + self._hold_seconds
                    limit.reschedule(min(held_until, limit.when() or held_until))
                    yield turn
                finally:
                    self._pass_on_after(self._rest * (loop.time() - turn.moves_from))
        except TimeoutError:
            raise DeadlineExceeded("an attention cache did not move in time") from None

    async def _take(self, client: PeerId) -> None:
        if not self._busy:
            self._busy = True
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._leave(client, mine)
            else:  # the turn had come at the same moment
                self._pass_on()
            raise

    def _pass_on_after(self, seconds: float) -> None:
        if seconds > 0:
            asyncio.get_running_loop().call_later(seconds, self._pass_on)
        else:
            self._pass_on()

    def _pass_on(self) -> None:
        """Give the turn to the first session of the next client, and move that client to the end."""
        while self._waiting:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            first = queue.popleft()
            if queue:
                self._waiting[client] = queue
            if not first.done():
                first.set_result(None)
                return
        self._busy = False

    def _leave(self, client: PeerId, mine: asyncio.Future[None]) -> None:
        queue = self._waiting.get(client, deque())
        if mine in queue:
            queue.remove(mine)
        if not queue:
            self._waiting.pop(client, None)


async def receive_kv(
    head: KvStateFrame, read: Callable[[], Awaitable[ClientFrame | None]], largest: LargestImport
) -> KvImport | ClientFrame | None:
    """Read the part that begins with `head`; return the first frame that is no part of it if the client gave it up.

    Raises RemoteProtocolError.
    """
    if head.total_bytes > largest(head.starts, head.lengths):
        raise RemoteProtocolError(f"an attention cache of {head.total_bytes} bytes is too large for its rows")
    assembly = Assembly(head.total_bytes)
    data = assembly.take(head.data)
    while data is None:
        frame = await read()
        if not isinstance(frame, ChunkFrame):
            return frame
        data = assembly.take(frame.data)
    return KvImport(head.applied_seq, CachePart(head.starts, head.lengths, data))
