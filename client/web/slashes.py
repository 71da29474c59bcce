"""Addresses with a slash behind their end mean the same as without: people and programs write both."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class NoTrailingSlashes:
    """ASGI middleware around the routes of an application.

    A redirection would have clients send their keys and texts again, to an address made from their own `Host`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)
