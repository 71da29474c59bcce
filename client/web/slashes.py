"""Serves paths with a trailing slash like those without one: people and programs write both."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class NoTrailingSlashes:
    """ASGI middleware around the routes of an application.

    A redirect would make clients send their keys and texts again, to an address made from their own `Host` header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)
