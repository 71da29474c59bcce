"""Rules for every answer, whatever the application does."""

from __future__ import annotations

import asyncio
from typing import Any

from blockswarm.client.dashboard.web.guard import MAX_TARGET_BYTES, PIECE_BYTES, Guard
from starlette.responses import PlainTextResponse, Response
from support.sightings import Answer, ask_app


def asked(target: str = "/", loopback_only: bool = True, **options: Any) -> Answer:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("here")(scope, receive, send)

    guard = Guard(app, send_seconds=10, loopback_only=loopback_only)
    return asyncio.run(ask_app(guard, target, **options))


def test_every_answer_has_the_headers_that_keep_pages_to_themselves() -> None:
    for answer in (asked(), asked(method="POST"), asked(host="evil.example")):
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_it_is_only_read() -> None:
    assert asked(method="HEAD").status == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert asked(method=method).status == 405
    assert asked(headers={"content-length": "5"}).status == 413
    assert asked(headers={"transfer-encoding": "chunked"}).status == 413
    assert asked("/?" + "x" * MAX_TARGET_BYTES).status == 414


def test_a_page_of_this_machine_is_known_by_its_names_only() -> None:
    """A name that leads to 127.0.0.1 would make a browser show this page to somebody else's script."""
    assert asked(host="evil.example").status == 421
    assert asked(host="[::1]:8080").status == 200
    assert asked(host="evil.example", loopback_only=False).status == 200


def test_a_client_that_takes_nothing_is_given_up_with_one_piece_under_way() -> None:
    sent: list[bytes] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])
            await asyncio.Future()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Response(bytes(10 * PIECE_BYTES))(scope, receive, send)

    scope = {"type": "http", "method": "GET", "raw_path": b"/", "query_string": b"", "headers": [(b"host", b"h")]}

    async def play() -> None:
        await Guard(app, send_seconds=0.01, loopback_only=False)(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(play())
    assert [len(piece) for piece in sent] == [PIECE_BYTES]


def test_a_body_in_pieces_is_the_body() -> None:
    content = bytes(range(256)) * 1024

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Response(content)(scope, receive, send)

    answer = asyncio.run(ask_app(Guard(app, send_seconds=10, loopback_only=False), "/"))
    assert answer.body == content
    assert answer.headers["content-length"] == str(len(content))
