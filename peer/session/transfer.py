"""The transfer of attention caches in parts: one part at a time, of its announced size, within its time limit.

A part keeps its turn only while it moves: a client that sends nothing, or takes nothing, delays nobody but itself.
Before it can move, it may have to wait for this peer's engine; that, too, only for as long as a turn may last, because
a client can lengthen the wait by the steps that it sends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from ...proto.errors import DeadlineExceeded, RemoteProtocolError
from ...proto.wire.frames import SMALLEST_PART_BYTES, Assembly, ChunkFrame
from ...proto.wire.messages.session import KvStateFrame
from ...proto.wire.messages.streams import ClientFrame
from ...routing.admit.shares import next_in_turn
from ...routing.swarm import PeerId
from ..engine.cache.part import CachePart

LargestImport = Callable[[tuple[int, ...], tuple[int, ...]], int]
"""The most bytes that a part with rows of these starts and lengths may have."""


@dataclass(frozen=True, slots=True)
class KvImport:
    """A part of a cache that arrived; the engine checks its content."""

    applied_seq: int
    part: CachePart


@dataclass(frozen=True, slots=True)
class TurnTaker:
    """The client for which a part moves, and the network that its stream comes from: identities cost nothing."""

    network: str
    client: PeerId


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """The limits of one part's turn."""

    silence_seconds: float
    """The turn passes on when the part has begun to move and then has not moved for this long..."""
    hold_seconds: float
    """...or when the part has had it for this long, its wait for the engine included."""


class Turn:
    """The turn of one part, until it is over or the part is too slow for it."""

    def __init__(self, limits: TurnLimits, pass_on: Callable[[float], None]) -> None:
        """`pass_on` is called once, with the time that the part has moved for."""
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._pass_on = pass_on
        self._from = self._until = self._loop.time()
        """When the part began to move, and when it moved last."""
        self._ends_at = self._from + limits.hold_seconds
        self._new_bytes = 0
        self._timer = self._loop.call_at(self._ends_at, self._lose)
        self._over = False

    def begins(self) -> None:
        """Note that the part can move from now on: until now it waited for the engine, and used no link."""
        self._from = self._until = self._loop.time()
        self._renew()

    def moved(self, nbytes: int) -> None:
        """Note that a piece has moved now; pieces smaller than `SMALLEST_PART_BYTES` count once they add up to that."""
        self._new_bytes += nbytes
        if self._new_bytes >= SMALLEST_PART_BYTES:
            self._new_bytes = 0
            self._until = self._loop.time()
            self._renew()

    def end(self) -> None:
        """Note that the whole part has moved."""
        self._until = self._loop.time()
        self._lose()

    def _renew(self) -> None:
        self._timer.cancel()
        if not self._over:
            silent_at = self._loop.time() + self._limits.silence_seconds
            self._timer = self._loop.call_at(min(silent_at, self._ends_at), self._lose)

    def _lose(self) -> None:
        if self._over:
            return
        self._over = True
        self._timer.cancel()
        self._pass_on(self._until - self._from)


class Transfers:
    """Lets one part of a cache move to or from this peer at a time. Networks take turns, within each its clients.

    A part that stops, or takes long, loses its turn and goes on beside the next ones: it may be an honest one on a slow
    link, and then it delays nobody.
    """

    def __init__(self, limits: TurnLimits, link_share: float) -> None:
        """Parts move for at most `link_share` of the time."""
        self._limits = limits
        self._rest = 1 / link_share - 1
        """The pause after a part, as a multiple of the time that it moved for."""
        self._busy = False
        self._line = _Line()

    @asynccontextmanager
    async def turn(self, taker: TurnTaker, timeout_seconds: float) -> AsyncIterator[Turn]:
        """Wait for the turn, and move a part within the block, both for at most `timeout_seconds`.

        Raises DeadlineExceeded.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._take(taker)
                turn = Turn(self._limits, self._pass_on_after)
                try:
                    yield turn
                finally:
                    turn.end()
        except TimeoutError:
            raise DeadlineExceeded("an attention cache did not move in time") from None

    async def _take(self, taker: TurnTaker) -> None:
        if not self._busy:
            self._busy = True
            self._line.last_network = taker.network
            return
        mine = self._line.join(taker)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._line.leave(taker, mine)
            else:  # the turn had come at the same moment
                self._pass_on()
            raise

    def _pass_on_after(self, moved_seconds: float) -> None:
        pause_seconds = self._rest * moved_seconds
        if pause_seconds > 0:
            asyncio.get_running_loop().call_later(pause_seconds, self._pass_on)
        else:
            self._pass_on()

    def _pass_on(self) -> None:
        while (first := self._line.next()) is not None:
            if not first.done():
                first.set_result(None)
                return
        self._busy = False


class _Line:
    """The parts that wait for the turn: the first client of the first network is next, and both move to the end.

    No network is next twice in a row while another one waits.
    """

    def __init__(self) -> None:
        self.last_network = ""
        """The network that had the turn last."""
        self._networks: dict[str, dict[PeerId, deque[asyncio.Future[None]]]] = {}

    def join(self, taker: TurnTaker) -> asyncio.Future[None]:
        """Take a place; its future is done when the turn has come."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._networks.setdefault(taker.network, {}).setdefault(taker.client, deque()).append(mine)
        return mine

    def leave(self, taker: TurnTaker, mine: asyncio.Future[None]) -> None:
        """Give a place up, if it is still there."""
        clients = self._networks.get(taker.network, {})
        if mine in clients.get(taker.client, ()):
            clients[taker.client].remove(mine)
            if not clients[taker.client]:
                del clients[taker.client]
            if not clients:
                del self._networks[taker.network]

    def next(self) -> asyncio.Future[None] | None:
        """Remove and return the next place; None if nobody waits."""
        network = next_in_turn(self._networks, self.last_network)
        if network is None:
            return None
        self.last_network = network
        clients = self._networks.pop(network)
        client = next(iter(clients))
        places = clients.pop(client)
        first = places.popleft()
        if places:
            clients[client] = places
        if clients:
            self._networks[network] = clients
        return first


TakeTurn = Callable[[float], AbstractAsyncContextManager[Turn]]
"""`Transfers.turn` for one session: takes the time for it in seconds."""


async def receive_kv(
    head: KvStateFrame,
    read: Callable[[], Awaitable[ClientFrame | None]],
    largest: LargestImport,
    moved: Callable[[int], None],
) -> KvImport | ClientFrame | None:
    """Read the part that begins with `head`; return the first frame that is no part of it if the client gave it up.

    `moved` is told the size of every piece. Raises RemoteProtocolError.
    """
    if head.total_bytes > largest(head.starts, head.lengths):
        raise RemoteProtocolError(f"an attention cache of {head.total_bytes} bytes is too large for its rows")
    assembly = Assembly(head.total_bytes)
    data = assembly.take(head.data)
    while data is None:
        frame = await read()
        if not isinstance(frame, ChunkFrame):
            return frame
        moved(len(frame.data))
        data = assembly.take(frame.data)
    return KvImport(head.applied_seq, CachePart(head.starts, head.lengths, data))
