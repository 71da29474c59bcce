"""Sends answers to a client, whole or as events, and gives up as soon as the client is gone.

A response that has begun cannot change its status: a later error becomes the stream's last event, and `[DONE]` does not
follow.  So a stream sends its head only with its first piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from ..web.sending import until_gone
from .answering import AnswerItem, Completed, Endpoint
from .openai.errors import ApiError
from .openai.replies import DONE, AnswerHead, AnswerShape, Json, chunk, comment, event, usage, whole_answer
from .openai.requests import TextWish
from .pieces import Piece
from .run.call import Begun, Repaired
from .trace import told_event

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

NOT_KEPT = {"cache-control": "no-store"}
"""For answers that describe the present: a cache on the way must not answer in place of the endpoint."""


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers={**NOT_KEPT, **error.headers()})


class AnswerResponse(Response):
    """The answers to one request, whole or as a stream."""

    def __init__(
        self, endpoint: Endpoint, wish: TextWish, head: AnswerHead, shape: AnswerShape, items: AsyncIterator[AnswerItem]
    ) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._wish = wish
        self._head = head
        self._shape = shape
        self._items = items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answers; if the client is gone, cancel the generation."""

        async def work() -> None:
            async with aclosing(self._items) as items:  # type: ignore[type-var]
                if self._wish.stream:
                    await self._stream(send, items)
                else:
                    await self._whole(scope, receive, send, items)

        await until_gone(receive, work())

    async def _whole(self, scope: Scope, receive: Receive, send: Send, items: AsyncIterator[AnswerItem]) -> None:
        pieces: list[Piece] = []
        shape = self._shape
        try:
            async for item in items:
                if isinstance(item, Begun):
                    shape = shape.with_echo(item.echoed)
                elif isinstance(item, Piece):
                    pieces.append(item)
                elif isinstance(item, Completed):
                    body = whole_answer(self._head, shape, pieces, item.counts, swarm=item.trace.as_json())
                    response: Response = JSONResponse(body, headers=item.trace.headers())
        except ApiError as error:
            self._endpoint.metrics.note_error(error.status)
            response = error_response(error)
        async with asyncio.timeout(self._endpoint.timing.send_seconds):
            await response(scope, receive, send)

    async def _stream(self, send: Send, items: AsyncIterator[AnswerItem]) -> None:
        """Send the answers as events. A chunk that ends an answer waits for the next item, which confirms success."""
        out = EventStream(send, self._endpoint.timing.send_seconds)
        chunks = ChunkWriter(self._wish, self._head, self._shape)
        try:
            async for item in items:
                await out.write(b"".join(chunks.write(item)))
            await out.end(b"".join([*chunks.rest(), DONE]))
        except ApiError as error:
            self._endpoint.metrics.note_error(error.status)
            if not out.begun:
                await out.fail(error)
            else:
                await out.end(event(error.body()))


class ChunkWriter:
    """Converts items to the events of a stream."""

    def __init__(self, wish: TextWish, head: AnswerHead, shape: AnswerShape) -> None:
        self._wish = wish
        self._head = head
        self._shape = shape
        self._opened: set[int] = set()
        self._held: Json | None = None
        """A chunk that ends an answer, held until the next item is known."""

    def write(self, item: AnswerItem) -> list[bytes]:
        match item:
            case Begun():
                self._shape = self._shape.with_echo(item.echoed)
                return []
            case Repaired():
                return [comment(told_event(item.event))]
            case Piece(text="", reasoning="", scores=(), finish=None):
                return []  # its text is held back: it may be part of a tool call or of a reasoning mark
            case Piece():
                return [*self._opening(item.choice), *self._next(self._chunk(self._shape.delta(item)), item)]
            case Completed():
                return self._last(item)

    def rest(self) -> Sequence[bytes]:
        return self._release()

    def _opening(self, choice: int) -> list[bytes]:
        if choice in self._opened:
            return []
        self._opened.add(choice)
        opening = self._shape.opening(choice)
        return [*self._release(), event(self._chunk(opening))] if opening is not None else []

    def _next(self, data: Json, piece: Piece) -> list[bytes]:
        released = self._release()
        if piece.finish is None:
            return [*released, event(data)]
        self._held = data
        return released

    def _last(self, item: Completed) -> list[bytes]:
        told = item.trace.as_json()
        if self._wish.include_usage:
            last = chunk(self._head, self._shape, [], usage=usage(item.counts), swarm=told)
            return [*self._release(), event(last)]
        if self._held is not None:
            self._held["swarm"] = told
        return self._release()

    def _chunk(self, choice: Json) -> Json:
        more: Mapping[str, Any] = {"usage": None} if self._wish.include_usage else {}
        return chunk(self._head, self._shape, [choice], **more)

    def _release(self) -> list[bytes]:
        held, self._held = self._held, None
        return [] if held is None else [event(held)]


class EventStream:
    """Server-sent events as a response body; the response's head is sent with the first event."""

    def __init__(self, send: Send, send_seconds: float) -> None:
        self.begun = False
        self._send = send
        self._seconds = send_seconds

    async def write(self, data: bytes) -> None:
        """Send bytes, if there are any. Raises TimeoutError if the client does not read them."""
        if data:
            await self._begin()
            await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        await self._begin()
        await self._put({"type": "http.response.body", "body": data, "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """Send an error response, before anything else was sent."""
        response = error_response(error)
        await self._put(
            {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )
        await self._put({"type": "http.response.body", "body": response.body, "more_body": False})

    async def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            headers = [(name.encode(), value.encode()) for name, value in STREAM_HEADERS.items()]
            await self._put({"type": "http.response.start", "status": 200, "headers": headers})

    async def _put(self, message: Message) -> None:
        async with asyncio.timeout(self._seconds):
            await self._send(message)
