"""A slash behind an address's end is no part of it."""

from __future__ import annotations

import pytest
from blockswarm.client.web.slashes import NoTrailingSlashes
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient


async def told(request: Request) -> Response:
    return PlainTextResponse(f"{request.url.path} {request.url.query} {(await request.body()).decode()}")


CLIENT = TestClient(
    Starlette(
        routes=[Route("/", told), Route("/models/{name:path}", told), Route("/texts", told, methods=["POST"])],
        middleware=[Middleware(NoTrailingSlashes)],
    ),
    follow_redirects=False,
)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("/", "/"), ("//", "/"),
     ("/models/a/b", "/models/a/b"), ("/models/a/b/", "/models/a/b"), ("/models/a//", "/models/a")],
)  # fmt: skip
def test_an_address_is_the_same_with_a_slash_behind_it(asked: str, meant: str) -> None:
    answer = CLIENT.get(f"http://testserver{asked}?x=1/")
    assert (answer.status_code, answer.text) == (200, f"{meant} x=1/ ")


def test_a_body_is_taken_where_it_was_sent() -> None:
    answer = CLIENT.post("/texts/", content="a text")
    assert (answer.status_code, answer.text) == (200, "/texts  a text")
