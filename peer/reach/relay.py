"""The relay that a public peer offers: pairs nodes that want to reach a peer with that peer, and moves their bytes.

A peer holds a `Reserve` stream.  A node that wants to reach it opens `Connect`; the peer is told a token and answers
with `Accept`.  From then on frames are forwarded as they come, one at a time, so that a side that reads slowly slows
the other one down (back-pressure).  The relay dials nobody, and cannot read the data: TLS runs between the two ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ...proto.errors import (
    AuthenticationError,
    DeadlineExceeded,
    PeerBusy,
    PeerUnavailable,
    RemoteProtocolError,
    SwarmError,
)
from ...proto.network.address import network_of_host
from ...proto.network.streams import Stream
from ...proto.network.transport import RelayHandlers
from ...proto.wire.handshake import HelloChecker
from ...proto.wire.messages.relay import (
    TOKEN_BYTES,
    AcceptFrame,
    ConnectFrame,
    IncomingFrame,
    ReservedFrame,
    ReserveFrame,
    ReserveReply,
    TunnelCall,
    TunnelData,
    TunnelReadyFrame,
    TunnelReply,
)
from ...proto.wire.messages.session import FailureFrame
from ...proto.wire.timing import RELAY_FULL_SECONDS
from ...routing.swarm import PeerId
from ..tasks import run_until_first
from ..timing import PeerTiming
from .table import RelayPlace, RelayTable

logger = logging.getLogger(__name__)

Side = Stream[TunnelCall, TunnelReply]


@dataclass(eq=False)
class _Held:
    """A reservation, held by a stream."""

    reservation: RelayPlace
    incoming: asyncio.Queue[bytes]
    ended: asyncio.Event


@dataclass(eq=False)
class _Waiting:
    """A connection that the peer has not accepted yet."""

    accepted: asyncio.Future[Side]
    over: asyncio.Event = field(default_factory=asyncio.Event)


class RelayService:
    """Serves the calls of a relay."""

    def __init__(
        self,
        table: RelayTable,
        hellos: HelloChecker,
        handshake: Callable[[], AbstractAsyncContextManager[None]],
        offers: Callable[[], bool],
        clock: Callable[[], float],
        timing: PeerTiming,
    ) -> None:
        """`handshake` bounds the time and the number of streams that have not proved themselves.

        `offers`: whether this peer relays now; one that is itself reached through a relay does not. `clock` gives
        monotonic seconds.
        """
        self.table = table
        self._hellos = hellos
        self._handshake = handshake
        self._offers = offers
        self._clock = clock
        self._timing = timing
        self._held: dict[PeerId, _Held] = {}
        self._waiting: dict[bytes, _Waiting] = {}

    @property
    def handlers(self) -> RelayHandlers:
        return RelayHandlers(reserve=self.reserve, connect=self.connect, accept=self.accept)

    def stop(self) -> None:
        """End all reservations, because this peer no longer relays."""
        for held in self._held.values():
            held.ended.set()

    # --- the relayed peer's side ---

    async def reserve(self, stream: Stream[ReserveFrame, ReserveReply], host: str) -> None:
        """Hold a place for the sender of the hello, seen at `host`, and tell it of nodes that want to reach it."""
        try:
            async with self._handshake():
                frame = await stream.read()
                if frame is None:
                    return
                peer, _ = self._hellos.check(frame.hello)
                if not self._offers():
                    raise PeerUnavailable("this peer relays for nobody now")
                ended = asyncio.Event()
                reservation = self.table.reserve(peer, network_of_host(host), ended.set)
        except SwarmError as error:
            await self._refuse(stream, error)
            return
        held = _Held(reservation, asyncio.Queue(self.table.quota.connections_per_peer), ended)
        if older := self._held.get(peer):
            older.ended.set()
        self._held[peer] = held
        logger.info("relaying for a peer: %d of %d places are taken", self.table.peers, self.table.quota.peers)
        try:
            quota = self.table.quota
            await self._write(stream, ReservedFrame(quota.connections_per_peer, quota.bytes_per_second_per_peer))
            await run_until_first(self._tell(stream, held), _until_end(stream), _until(held.ended))
        finally:
            held.ended.set()
            self.table.release(reservation)
            if self._held.get(peer) is held:
                del self._held[peer]

    async def _tell(self, stream: Stream[ReserveFrame, ReserveReply], held: _Held) -> None:
        while True:
            await self._write(stream, IncomingFrame(await held.incoming.get()))

    async def accept(self, stream: Side) -> None:
        """Serve the peer's side of one connection; return when the connection is over."""
        try:
            async with self._handshake():
                frame = await stream.read()
                if frame is None:
                    return
                if not isinstance(frame, AcceptFrame):
                    raise RemoteProtocolError("a connection is accepted by its token")
                waiting = self._waiting.pop(frame.token, None)
                if waiting is None or waiting.accepted.done():
                    raise AuthenticationError("no such connection waits for its peer")
                waiting.accepted.set_result(stream)
        except SwarmError as error:
            await self._refuse(stream, error)
            return
        await waiting.over.wait()

    # --- the other node's side ---

    async def connect(self, stream: Side, host: str) -> None:
        """Connect the sender, seen at `host`, to the peer that its first frame names, as long as both sides stay."""
        try:
            async with self._handshake():
                frame = await stream.read()
                if frame is None:
                    return
                if not isinstance(frame, ConnectFrame):
                    raise RemoteProtocolError("a connection begins with the peer to reach")
                self._hellos.check(frame.hello)
            needed = asyncio.Event()
            with self.table.connection(PeerId(frame.peer_id), network_of_host(host), needed.set) as place:
                await run_until_first(self._carry(stream, place), _until_needed(needed))
        except SwarmError as error:
            await self._refuse(stream, error)

    async def _carry(self, stream: Side, place: RelayPlace) -> None:
        async with self._other_side(self._held[place.peer]) as other:
            await self._splice(stream, other, place)

    @asynccontextmanager
    async def _other_side(self, held: _Held) -> AsyncIterator[Side]:
        """Yield the stream with which the peer accepts the connection; the stream ends with the block."""
        token = os.urandom(TOKEN_BYTES)
        waiting = self._waiting[token] = _Waiting(asyncio.get_running_loop().create_future())
        try:
            yield await self._accepted(held, token, waiting)
        finally:
            self._waiting.pop(token, None)
            waiting.over.set()

    async def _accepted(self, held: _Held, token: bytes, waiting: _Waiting) -> Side:
        try:
            held.incoming.put_nowait(token)
            async with asyncio.timeout(self._timing.relay_accept_seconds):
                return await waiting.accepted
        except asyncio.QueueFull:
            raise PeerBusy(RELAY_FULL_SECONDS, "the peer takes no more connections") from None
        except TimeoutError:
            raise PeerUnavailable("the peer does not answer its relay") from None

    async def _splice(self, stream: Side, other: Side, reservation: RelayPlace) -> None:
        held = self._held.get(reservation.peer)
        if held is None or held.reservation is not reservation:
            raise PeerUnavailable("that peer is not reached through this relay any more")
        await self._write(other, TunnelReadyFrame())
        await self._write(stream, TunnelReadyFrame())
        idle = _Idle(self._timing.relay_idle_seconds)
        await run_until_first(
            self._forward(stream, other, reservation, idle),
            self._forward(other, stream, reservation, idle),
            idle.run(),
            _until(held.ended),
        )

    async def _forward(self, source: Side, target: Side, reservation: RelayPlace, idle: _Idle) -> None:
        while (frame := await source.read()) is not None:
            if not isinstance(frame, TunnelData):
                raise RemoteProtocolError("a connection that stands carries data only")
            idle.note()
            delay = self.table.delay(reservation, len(frame.data), self._clock())
            if delay > 0:
                await asyncio.sleep(delay)
            await target.write(frame)
            idle.note()

    async def _write(self, stream: Stream[Any, Any], frame: Any) -> None:
        """Write one frame. Raises DeadlineExceeded if the other side does not take it in time."""
        try:
            async with asyncio.timeout(self._timing.write_seconds):
                await stream.write(frame)
        except TimeoutError:
            raise DeadlineExceeded("the other side takes no frames") from None

    async def _refuse(self, stream: Stream[Any, Any], error: SwarmError) -> None:
        with suppress(DeadlineExceeded):
            await self._write(stream, FailureFrame.of(error))


class _Idle:
    """Ends a connection on which nothing comes: live ends ping each other more often than that."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._noted = False

    def note(self) -> None:
        self._noted = True

    async def run(self) -> None:
        """Raise DeadlineExceeded after one to two times the seconds without a note."""
        while True:
            self._noted = False
            await asyncio.sleep(self._seconds)
            if not self._noted:
                raise DeadlineExceeded("nothing came through the connection")


async def _until_end(stream: Stream[ReserveFrame, ReserveReply]) -> None:
    """Wait for the peer to end the stream. Raises RemoteProtocolError if it sends anything."""
    if await stream.read() is not None:
        raise RemoteProtocolError("a peer that holds a place has nothing more to say")


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _until_needed(event: asyncio.Event) -> None:
    """Raises PeerBusy when the room of a connection is given to another network."""
    await event.wait()
    raise PeerBusy(RELAY_FULL_SECONDS, "the relay has given the room of this connection to another network")
