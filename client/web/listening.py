"""The port of a server, and its limits for all clients: connections, slow request heads, unread answers."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...proto.errors import UsageError

MAX_CONNECTIONS = 4096
"""Further connections are answered with status 503."""


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket whose connections send small pieces at once (TCP_NODELAY). Raises UsageError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except UnicodeError as error:
        raise UsageError(f"cannot listen at {host}:{port}: {error}", hint="Choose another --host.") from None
    except OSError as error:
        # The text of `create_server` repeats the address; the words for the number alone are those that users know.
        number = error.errno or 0
        why = os.strerror(number) if number in errno.errorcode else error.strerror or error
        raise UsageError(
            f"cannot listen at {host}:{port}: {why}",
            hint="Choose another --host or --port (0: any free one), or end the program that has this one.",
        ) from None
    # asyncio sets it only on sockets that name their protocol; without it a body waits 40 ms for a delayed ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def drop_idle_readers(listening: socket.socket, seconds: float) -> None:
    """Have the kernel close connections whose client reads nothing for this time, where it can (Linux).

    An answer that is written at once waits in the connection's buffer, where no task of this program would notice.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(1000 * seconds))


def root_address(listening: socket.socket) -> str:
    """Return the URL of a server for people: "http://127.0.0.1:8000"."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_config(app: ASGIApp, *, head_seconds: float, stop_seconds: float) -> uvicorn.Config:
    """Return the configuration of a server.

    `head_seconds`: time-out of a request's head; `stop_seconds`: how long running answers have when the server stops.
    """
    protocol = type("Protocol", (ImpatientProtocol,), {"head_seconds": head_seconds})
    return uvicorn.Config(
        app, loop="asyncio", http=protocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=math.ceil(stop_seconds),
    )  # fmt: skip


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request head does not come in time."""

    head_seconds = math.inf
    _until: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._until is None and self._head_is_due():
            self._wait_for_head()
        super().data_received(data)
        if not self._head_is_due():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _head_is_due(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _wait_for_head(self) -> None:
        self._until = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._until is not None:
            self._until.cancel()
            self._until = None

    def _give_up(self) -> None:
        self._until = None
        if self._head_is_due():
            self.transport.abort()
