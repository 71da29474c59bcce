"""The endpoint's routes: OpenAI's, `/metrics` and `/healthz`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..web.callers import network_of_caller
from ..web.slashes import NoTrailingSlashes
from .access.origins import is_allowed
from .answering import Endpoint, Sender
from .openai.errors import ApiError, internal_error
from .openai.fields import parse_object
from .openai.replies import AnswerHead, AnswerShape, ChatShape, CompletionShape, model_card, model_list
from .openai.requests import ChatRequest, CompletionRequest, parse_chat, parse_completion
from .page import page_routes
from .responses import NOT_KEPT, AnswerResponse, error_response

MAX_BODY_BYTES = 1 << 20
"""Parsing JSON of this size does not block the loop for too long."""

R = TypeVar("R", ChatRequest, CompletionRequest)


def make_app(endpoint: Endpoint) -> Starlette:
    """Return the application, for any ASGI server."""

    async def models(request: Request) -> Response:
        admitted(endpoint, request)
        models = [(served.name, served.created) for served in endpoint.models.values()]
        return JSONResponse(model_list(models), headers=NOT_KEPT)

    async def model(request: Request) -> Response:
        admitted(endpoint, request)
        served = endpoint.model(request.path_params["name"])
        return JSONResponse(model_card(served.name, served.created), headers=NOT_KEPT)

    async def chat(request: Request) -> Response:
        sender = admitted(endpoint, request)
        asked = parse_chat(await read_object(request, endpoint.timing.body_seconds))
        shape = ChatShape(asked.wish.top_logprobs is not None)
        return answer_to(endpoint, asked, sender, "chatcmpl-", shape)

    async def completion(request: Request) -> Response:
        sender = admitted(endpoint, request)
        asked = parse_completion(await read_object(request, endpoint.timing.body_seconds))
        shape = CompletionShape(asked.wish.top_logprobs is not None)
        return answer_to(endpoint, asked, sender, "cmpl-", shape)

    async def metrics(request: Request) -> Response:
        admitted(endpoint, request)
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(endpoint.metrics.scrape(), headers=NOT_KEPT, media_type=kind)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers=NOT_KEPT)

    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completion, methods=["POST"]),
        Route("/metrics", metrics),
        Route("/healthz", health),
        *page_routes(),
    ]

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        endpoint.metrics.note_error(error.status)
        return error_response(error)

    handlers: Mapping[type[Exception] | int, Callable[[Request, Exception], Awaitable[Response]]] = {
        ApiError: api_error,
        HTTPException: http_error,
        Exception: defect,
    }
    cors = Middleware(
        CORSMiddleware, allow_origins=list(endpoint.allowed_origins), allow_methods=["GET", "POST"],
        allow_headers=["*"], expose_headers=["*"], allow_private_network=True,
    )  # fmt: skip
    middleware = [Middleware(NoTrailingSlashes), *([cors] if endpoint.allowed_origins else [])]
    return Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)  # type: ignore[arg-type]


def admitted(endpoint: Endpoint, request: Request) -> Sender:
    """Return the sender of a request. Raises ApiError if it may not send requests."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if not is_allowed(origin, host, endpoint.allowed_origins, endpoint.loopback_only):
        raise ApiError(403, "web pages of other origins may not ask (--allow-origin)", code="origin_not_allowed")
    allowance = endpoint.keys.allowance(request.headers.get("authorization"))
    return Sender(allowance, allowance if endpoint.keys.are_needed else network_of_caller(request.scope))


def answer_to(
    endpoint: Endpoint,
    asked: ChatRequest | CompletionRequest,
    sender: Sender,
    prefix: str,
    shape: AnswerShape,
) -> Response:
    """Return the response to a request. Raises ApiError if its model is not served."""
    served = endpoint.model(asked.wish.model)
    head = AnswerHead(prefix + endpoint.new_id(), int(endpoint.unix_clock()), served.name, served.fingerprint)
    return AnswerResponse(endpoint, asked.wish, head, shape, endpoint.answer(served, asked, sender))


async def read_object(request: Request, seconds: float) -> dict[str, object]:
    """Read the JSON object in a request's body, within `seconds`. Raises ApiError."""
    try:
        async with asyncio.timeout(seconds):
            return parse_object(await _read_body(request))
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {seconds:g} s", code="body_timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the client went away") from None


async def _read_body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise ApiError(413, f"the body has more than {MAX_BODY_BYTES} bytes", code="body_too_large")
        parts.append(part)
    return b"".join(parts)


async def http_error(request: Request, error: Exception) -> Response:
    """Return a routing error (no such path, no such method) in the API's shape."""
    assert isinstance(error, HTTPException)
    response = error_response(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))
    response.headers.update(error.headers or {})  # Allow
    return response


async def defect(request: Request, error: Exception) -> Response:
    """Return an internal error; the log has the traceback."""
    return error_response(internal_error())
