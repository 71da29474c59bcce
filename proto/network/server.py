"""gRPC's server, of which a stranger cannot end the loop that takes calls.

That loop asks for the name of every call that is of no registered method, as text: a name that is no UTF-8 raises an
error there, and gRPC stops the server.  So all methods are registered here, whose names gRPC compares as bytes, and
other calls are ended before anybody asks for their names.  This needs inner parts of gRPC's; with a gRPC that has other
ones its own server is used, and the log says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc.aio import Server

from ..wire.timing import SERVER_LOOK_SECONDS

__all__ = ["Server", "new_server", "until_ended"]

logger = logging.getLogger(__name__)

STRANGERS_WORDS = ("Invalid encoding on", "ExecuteBatchError raised in core")
"""Errors that gRPC shows with a traceback: a field of a call that is no UTF-8, and a caller that has gone."""
Options = Sequence[tuple[str, Any]]


def _registered_server(options: Options) -> Server:
    """A server whose methods are those that are registered. Raises what a gRPC of other inner parts raises."""
    from grpc._cython import cygrpc
    from grpc.aio import _server

    class RegisteredCalls(cygrpc.AioServer):
        """The loop of the server, which waits for a call of each registered method and for one of any other."""

        def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
            if method is None:
                return asyncio.create_task(self._end_other_calls(), name="end calls of no method")
            future: asyncio.Future[Any] = super()._make_request_call_future(method)
            return future

        async def _end_other_calls(self) -> None:
            """Until the server stops, which is told by an exception of gRPC's."""
            while True:
                await self._request_call()  # nobody refers to the call, so gRPC cancels it

    class RegisteredServer(_server.Server):
        def __init__(self) -> None:
            self._loop = cygrpc.get_working_loop()
            self._server = RegisteredCalls(self._loop, None, (), None, tuple(options), None)

    for part in ("_make_request_call_future", "_request_call"):
        getattr(cygrpc.AioServer, part)
    return RegisteredServer()


def new_server(options: Options, make: Callable[[Options], Server] = _registered_server) -> Server:
    """A server of no calls yet; `make` makes the one that strangers cannot end. They cannot fill its log either."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_strangers_word)
    try:
        return make(options)
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning(
            "grpcio %s is not known: one call with a name that is no UTF-8 can end this peer (%s)",
            grpc.__version__,
            error,
        )
        server: Server = grpc.aio.server(options=options)
        return server


def _is_no_strangers_word(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(STRANGERS_WORDS)


async def until_ended(server: Server) -> None:
    """Return when calls are taken no more, or raise what gRPC has ended for."""
    while await server.wait_for_termination(SERVER_LOOK_SECONDS):
        pass
