"""Streams of values over gRPC: frames are encoded and decoded here, and gRPC's errors are translated into ours.

gRPC itself moves only bytes.  A frame that cannot be decoded raises RemoteProtocolError on its own stream; if gRPC
deserialised frames itself, it would log a traceback and give the reader None.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

import grpc

from ..errors import RemoteProtocolError, SessionLost, SwarmError, from_grpc_status, from_wire, to_wire
from ..wire.messages.codec import Codec
from .address import host_of_caller

logger = logging.getLogger(__name__)

ERROR_CODE_KEY = "blockswarm-error"
"""Trailing metadata of a unary call that failed with one of our errors: its number on the wire."""

In = TypeVar("In", covariant=True)
Out = TypeVar("Out", contravariant=True)
Heard = TypeVar("Heard")
Said = TypeVar("Said")
QuestionTime = Callable[[], AbstractAsyncContextManager[Any]]


class Stream(Protocol[In, Out]):
    """One side of a stream: frames of class In come in, frames of class Out go out."""

    async def read(self) -> In | None:
        """The next frame; None at the end of the stream. Raises SwarmError."""

    async def write(self, frame: Out) -> None:
        """Send a frame; returns when there is room for the next. Raises SwarmError."""


class DialedStream(Stream[In, Out], Protocol[In, Out]):
    """The dialling side of a stream, which may cancel it."""

    def cancel(self) -> None:
        """End the stream at once; unread frames are lost."""


class StreamEnded(SessionLost):
    """The other side of a stream that is served here has gone."""


class ServedStream(Generic[Heard, Said]):
    """The serving side of a stream."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], heard: Codec[Heard], said: Codec[Said]) -> None:
        self._context = context
        self._heard = heard
        self._said = said

    async def read(self) -> Heard | None:
        """As in `Stream`."""
        with _ended_by_grpc():
            data = await self._context.read()  # type: ignore[attr-defined]
        return None if data is grpc.aio.EOF else self._heard.decode(data)

    async def write(self, frame: Said) -> None:
        """As in `Stream`."""
        data = self._said.encode(frame)
        with _ended_by_grpc():
            await self._context.write(data)


@contextmanager
def _ended_by_grpc() -> Iterator[None]:
    try:
        yield
    except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
        raise StreamEnded(f"the stream has ended: {error}") from None


class CalledStream(Generic[Heard, Said]):
    """The dialling side of a stream."""

    def __init__(self, call: Any, peer: str, heard: Codec[Heard], said: Codec[Said]) -> None:
        """`peer` is named in errors."""
        self._call = call
        self._peer = peer
        self._heard = heard
        self._said = said

    async def read(self) -> Heard | None:
        """As in `Stream`."""
        with translated_grpc_errors(self._peer):
            data = await self._call.read()
        return None if data is grpc.aio.EOF else decoded(self._heard, data, self._peer)

    async def write(self, frame: Said) -> None:
        """As in `Stream`."""
        data = self._said.encode(frame)
        with translated_grpc_errors(self._peer):
            await self._call.write(data)

    def cancel(self) -> None:
        """As in `DialedStream`."""
        self._call.cancel()


def decoded(codec: Codec[Heard], data: bytes, peer: str) -> Heard:
    """The value in `data`; errors name the peer that sent it. Raises RemoteProtocolError."""
    try:
        return codec.decode(data)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(f"{peer}: {error}") from error.__cause__


@contextmanager
def translated_grpc_errors(peer: str) -> Iterator[None]:
    """Translate grpc's errors into ours, with the name of the peer."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        text = f"{peer}: {error.details()}"
        number = dict(error.trailing_metadata()).get(ERROR_CODE_KEY, "")
        if isinstance(number, str) and number.isdecimal() and len(number) < 4:
            raise from_wire(int(number), text) from None
        raise from_grpc_status(error.code().name, text) from None
    except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
        raise from_grpc_status("CANCELLED", f"{peer}: {error}") from None


def served_call(
    handler: Callable[[Stream[Heard, Said], str], Awaitable[None]], heard: Codec[Heard], said: Codec[Said]
) -> Any:
    """A streaming call; `handler` is also given the caller's host as seen here."""

    async def serve_stream(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            stream: ServedStream[Heard, Said] = ServedStream(context, heard, said)
            await handler(stream, host_of_caller(context.peer()))
        except StreamEnded as error:
            logger.debug("nobody is there to hear more: %s", error)

    return grpc.stream_stream_rpc_method_handler(serve_stream)


def answered_call(
    handler: Callable[[Heard, str], Awaitable[Said]],
    question: Codec[Heard],
    answer: Codec[Said],
    question_time: QuestionTime,
) -> Any:
    """A unary call. It is served as a stream, because gRPC would wait for its request without any limit."""

    async def serve_call(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        stream: ServedStream[Heard, Said] = ServedStream(context, question, answer)
        try:
            async with question_time():
                asked = await stream.read()
            if asked is None:
                raise RemoteProtocolError("a call without a question")
            await stream.write(await handler(asked, host_of_caller(context.peer())))
        except StreamEnded as error:
            logger.debug("nobody is there to hear an answer: %s", error)
        except SwarmError as error:
            code, text = to_wire(error)
            await context.abort(grpc.StatusCode.ABORTED, text, trailing_metadata=((ERROR_CODE_KEY, str(code)),))

    return grpc.stream_stream_rpc_method_handler(serve_call)
