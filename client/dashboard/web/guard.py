"""Rules for every answer: security headers, no request bodies, and a time-out for clients that do not read.

The server is public and read-only: everything that it sends is meant for everybody, and no request changes anything.
"""

from __future__ import annotations

import asyncio

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...api.access.origins import is_allowed

HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self';"
        b" frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
METHODS = ("GET", "HEAD")
MAX_TARGET_BYTES = 2048
PIECE_BYTES = 64 << 10
"""Bodies are sent in pieces, so that a client that does not read is noticed, and at most one piece waits for it."""


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, send_seconds: float, loopback_only: bool) -> None:
        """`loopback_only`: the server listens on a loopback address only, so other host names are refused."""
        self._app = app
        self._seconds = send_seconds
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head_only = scope["method"] == "HEAD"
        answered = asyncio.timeout(None)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            elif head_only:
                if not answered.expired() and answered.when() is None:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    answered.reschedule(0.0)  # cancels the rest of the body, including an endless stream
                return
            for piece in _pieces(message):
                async with asyncio.timeout(self._seconds):
                    await send(piece)

        refusal = self._refusal(scope)
        try:
            async with answered:
                # HEAD is served as GET without the body.
                await (refusal or self._app)({**scope, "method": "GET"} if head_only else scope, receive, guarded)
        except TimeoutError:
            return  # the client did not read for too long: drop the rest, and the server closes the connection

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = dict(scope["headers"])
        if scope["method"] not in METHODS:
            return PlainTextResponse("this page is only read\n", 405, {"allow": ", ".join(METHODS)})
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
            return PlainTextResponse("the address is too long\n", 414)
        if headers.get(b"transfer-encoding") or headers.get(b"content-length", b"0") != b"0":
            return PlainTextResponse("a request has no body here\n", 413, {"connection": "close"})
        if not is_allowed(None, headers.get(b"host", b"").decode("latin-1"), (), self._loopback_only):
            return PlainTextResponse("this machine is not known by that name\n", 421)
        return None


def _pieces(message: Message) -> list[Message]:
    body = message.get("body", b"") if message["type"] == "http.response.body" else b""
    if len(body) <= PIECE_BYTES:
        return [message]
    more = message.get("more_body", False)
    starts = range(0, len(body), PIECE_BYTES)
    return [
        {**message, "body": body[start : start + PIECE_BYTES], "more_body": more or start + PIECE_BYTES < len(body)}
        for start in starts
    ]
