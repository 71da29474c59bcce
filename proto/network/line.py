"""A line to a peer: one channel, which is open for as long as calls use it.

gRPC keeps dialling a peer that does not answer as long as its channel is open, even when all calls have failed long
ago.  So a channel is made for the first call and closed with the last one; between calls it stays open only if the peer
has answered on it, because gRPC redials such a peer only for a call.  Channels that one session opens cannot displace
those that another uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from ..errors import DeadlineExceeded, SessionLost
from .tunnel import LocalEnd


@dataclass(frozen=True)
class Connection:
    """A channel, and the callback for when the peer has answered on it."""

    channel: grpc.aio.Channel
    on_answer: Callable[[], None]
    through: tuple[LocalEnd, Line] | None = None
    """The tunnel that the channel runs in, and the line to the relay; no other channel uses them."""

    async def close(self) -> None:
        """End all calls."""
        await self.channel.close(grace=None)
        if self.through is not None:
            tunnel, relay = self.through
            await tunnel.close()
            relay.close()


class Line:
    """One channel, shared by calls; the first call makes it."""

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], close_connection: Callable[[Connection], None]
    ) -> None:
        """`connect` raises SwarmError; `close_connection` closes a connection without waiting for it."""
        self._connect = connect
        self._close_connection = close_connection
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._calls = 0
        self._answers = False
        """Whether the peer has answered on the channel, and has not been lost since."""
        self._retired = False
        self._closed = False

    @property
    def in_use(self) -> bool:
        """Whether a call is in progress."""
        return self._calls > 0

    @property
    def is_open(self) -> bool:
        """Whether there is a channel."""
        return self._connection is not None

    async def channel(self) -> grpc.aio.Channel:
        """The channel, for a call that has begun. Raises SwarmError; SessionLost if the line was closed."""
        async with self._connecting:
            connection = self._connection
            if connection is None and not self._closed:
                connection = self._connection = await self._connect()
            if connection is None or self._closed:
                self._drop()
                raise SessionLost("the connection was closed")
            return connection.channel

    async def ask(self, method: str, question: bytes, timeout_seconds: float) -> bytes | None:
        """The answer of a unary call; None if the call succeeds without an answer.

        Raises SwarmError if the peer cannot be dialled, and grpc's own errors.
        """
        self.begin()
        try:
            try:
                async with asyncio.timeout(timeout_seconds):
                    channel = await self.channel()
            except TimeoutError:
                raise DeadlineExceeded(f"not dialled within {timeout_seconds:.1f} s") from None
            with self.watched():
                answer: bytes | None = await channel.unary_unary(method)(question, timeout=timeout_seconds)
            self.answered()
            return answer
        finally:
            self.end()

    def begin(self) -> None:
        """Note that a call begins; it may have to wait for the channel."""
        self._calls += 1

    def end(self) -> None:
        """Note that a call has ended for which `begin` was called."""
        self._calls -= 1
        self._close_if_idle()

    def answered(self) -> None:
        """Note that the peer has answered."""
        if self._connection is not None and not self._answers:
            self._answers = True
            self._connection.on_answer()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Context that notes if grpc reports the peer as unavailable."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._answers = False
            raise

    def retire(self) -> None:
        """Close the channel as soon as no call uses it, whether the peer answers or not."""
        self._retired = True
        self._close_if_idle()

    def close(self) -> None:
        """Close the channel at once, cancel calls in progress, and refuse further ones."""
        self._closed = True
        self._drop()

    def _close_if_idle(self) -> None:
        if not self._calls and (self._retired or not self._answers):
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._answers = False
        if connection is not None:
            self._close_connection(connection)


class LineCall:
    """A bidirectional stream of bytes over a line. It is opened at once, in the background.

    gRPC closes a channel for good only when nothing refers to its calls any more, so a finished call is released here.
    """

    def __init__(self, line: Line, method: str) -> None:
        self._line = line
        line.begin()
        self._opening: asyncio.Future[Any] = asyncio.create_task(self._open(method), name=f"open {method}")
        self._opening.add_done_callback(self._opened)

    async def read(self) -> Any:
        """The next message, or grpc's EOF. Raises SwarmError if the peer cannot be dialled, and grpc's own errors."""
        data = await self._use(lambda call: call.read())
        if data is not grpc.aio.EOF:
            self._line.answered()
        return data

    async def write(self, data: bytes) -> None:
        """Send a message. Raises as `read`."""
        await self._use(lambda call: call.write(data))

    def cancel(self) -> None:
        """End the call at once."""
        opening = self._opening
        self._opening = opening.get_loop().create_future()
        self._opening.cancel()
        if not opening.cancel() and not opening.cancelled() and opening.exception() is None:
            opening.result().cancel()

    async def _use(self, use: Callable[[Any], Awaitable[Any]]) -> Any:
        opening = self._opening
        await asyncio.shield(opening)
        try:
            with self._line.watched():
                return await use(opening.result())
        except grpc.aio.AioRpcError as error:
            self._opening = opening.get_loop().create_future()
            self._opening.set_exception(error.with_traceback(None))
            self._opening.exception()  # it is raised to those who come later, if anybody does
            raise error.with_traceback(None)  # noqa: B904 -- the frames below refer to the call
        except asyncio.CancelledError as error:
            raise error.with_traceback(None)  # noqa: B904 -- likewise
        finally:
            del opening

    async def _open(self, method: str) -> Any:
        return (await self._line.channel()).stream_stream(method)()

    def _opened(self, opening: asyncio.Future[Any]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            self._line.end()
        else:
            opening.result().add_done_callback(lambda call: self._line.end())
