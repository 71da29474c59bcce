"""The application of a dashboard, for any ASGI server: pages, JSON, and errors in the requested form."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from ....proto.errors import UsageError
from ...web.slashes import NoTrailingSlashes
from ..written.values import as_json
from .api import api_router
from .guard import Guard
from .operation import ops_router
from .pages import page_router
from .rendering import Overloaded
from .site import HTML, JSON, Site
from .templating import environment

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """Why there is no answer."""

    error: str


def make_app(site: Site) -> ASGIApp:
    """Return the application: all routes behind the guard."""
    app = FastAPI(
        title="blockswarm dashboard",
        description="What is known of the swarms of some models. Read only; nobody's address is told.",
        version="1",
        docs_url=None,  # its page would load a script from another origin
        redoc_url=None,
        openapi_url=None,  # served below, like all other data
        redirect_slashes=False,
        responses={
            "4XX": {"model": ErrorReply, "description": "The request is at fault."},
            "5XX": {"model": ErrorReply, "description": "The dashboard cannot answer now."},
        },
    )
    templates = environment()
    app.include_router(api_router(site))
    app.include_router(page_router(site, templates))
    app.include_router(ops_router(site))

    async def description(request: Request) -> Response:
        return await site.answer(request, JSON, lambda moment: as_json(app.openapi()))

    app.add_api_route("/api/v1/openapi.json", description, include_in_schema=False)
    for kind, handler in _handlers(templates).items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(NoTrailingSlashes)
    return Guard(app, send_seconds=site.timing.send, loopback_only=site.loopback_only)


def _handlers(templates: Environment) -> dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]:
    def told(request: Request, status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
        headers = {"cache-control": "no-store", **(headers or {})}
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": text}, status, headers)
        page = templates.get_template("error.html").render(status=status, text=text)
        return Response(page, status, headers, HTML)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return told(request, error.status_code, str(error.detail), error.headers)

    async def incomplete(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        named = ", ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        return told(request, 400, named)

    async def usage(request: Request, error: Exception) -> Response:
        return told(request, 400, str(error))

    async def overloaded(request: Request, error: Exception) -> Response:
        return told(request, 503, "the dashboard is busy: come back in a moment", {"retry-after": "2"})

    async def defect(request: Request, error: Exception) -> Response:
        """Return an internal error; the log has the traceback."""
        return told(request, 500, "this page has a fault; it is in the log of the dashboard")

    return {
        HTTPException: http_error,
        RequestValidationError: incomplete,
        UsageError: usage,
        Overloaded: overloaded,
        Exception: defect,
    }
