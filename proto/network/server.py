"""gRPC's server, hardened so that a stranger cannot end the loop that accepts calls.

That loop decodes the name of every call that is of no registered method: a name that is not UTF-8 raises an error
there, and gRPC stops the server.  So all methods are registered here, whose names gRPC compares as bytes, and other
calls are answered with UNIMPLEMENTED before their names are decoded; if very many come at once, the rest are cancelled.
This needs internals of gRPC; if a version of gRPC has different ones, its own server is used, and the log says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
from grpc.aio import Server

from ..errors import PeerUnavailable
from ..wire.timing import SERVER_LOOK_SECONDS
from .address import LOOPBACK

__all__ = ["Server", "new_server", "until_ended"]

logger = logging.getLogger(__name__)

STRANGERS_WORDS = ("Invalid encoding on", "ExecuteBatchError raised in core")
"""Errors that gRPC logs with a traceback: a field of a call that is not UTF-8, and a caller that has gone."""
MOST_ANSWERS = 64
"""Calls of unknown methods that are answered at the same time; further ones are cancelled, which costs nothing."""
ENOUGH_REFUSALS = 2
"""Looks in a row at which a closed port refuses; a firewall that is loaded anew may refuse once."""
Options = Sequence[tuple[str, Any]]


def _registered_server(options: Options) -> Server:
    """A server that serves only registered methods. Raises any error if gRPC's internals are different."""
    from grpc._cython import cygrpc
    from grpc.aio import _server

    class RegisteredCalls(cygrpc.AioServer):
        """The loop of the server, which waits for a call of each registered method and for any other call."""

        def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
            if method is None:
                return asyncio.create_task(self._end_other_calls(), name="end calls of no method")
            future: asyncio.Future[Any] = super()._make_request_call_future(method)
            return future

        async def _end_other_calls(self) -> None:
            """Refuse them until the server stops, which gRPC signals by an exception."""
            answers: set[asyncio.Task[None]] = set()
            while True:
                call = await self._request_call()
                if len(answers) < MOST_ANSWERS:
                    answers.add(answer := asyncio.create_task(refuse(call), name="refuse a call of no method"))
                    answer.add_done_callback(answers.discard)
                del call  # gRPC cancels a call to which nothing refers

    async def refuse(call: Any) -> None:
        began = cygrpc.SendInitialMetadataOperation((), 0)
        code, loop = cygrpc.StatusCode.unimplemented, asyncio.get_running_loop()
        # The caller has gone, or gRPC's internals take other arguments: the call is then cancelled.
        with suppress(grpc.aio.BaseError, TypeError):
            await cygrpc._send_error_status_from_server(call, code, "there is no such method", (), began, loop)

    class RegisteredServer(_server.Server):
        def __init__(self) -> None:
            self._loop = cygrpc.get_working_loop()
            self._server = RegisteredCalls(self._loop, None, (), None, tuple(options), None)

    for owner, part in (
        (cygrpc.AioServer, "_make_request_call_future"),
        (cygrpc.AioServer, "_request_call"),
        (cygrpc, "_send_error_status_from_server"),
        (cygrpc, "SendInitialMetadataOperation"),
    ):
        getattr(owner, part)
    return RegisteredServer()


def new_server(options: Options, make: Callable[[Options], Server] = _registered_server) -> Server:
    """A server without calls yet; `make` makes the hardened one. Strangers cannot fill its log either."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_strangers_word)
    try:
        return make(options)
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning(
            "grpcio %s is not known: one call with a name that is not UTF-8 can end this peer (%s)",
            grpc.__version__,
            error,
        )
        server: Server = grpc.aio.server(options=options)
        return server


def _is_no_strangers_word(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(STRANGERS_WORDS)


async def until_ended(server: Server, host: str, port: int, look_seconds: float = SERVER_LOOK_SECONDS) -> None:
    """Return when `server`, which listens on `host` and `port`, no longer accepts calls.

    Raises the error that ended it, and PeerUnavailable if its port is closed: gRPC closes a port for good when it fails
    to accept a connection, for lack of memory for example, and reports that in its own log only.
    """
    refusals: int | None = None
    while True:
        is_open = await _is_open(_NEAR.get(host, host).strip("[]"), port, look_seconds)
        if not await server.wait_for_termination(look_seconds):
            return
        refusals = refusals_after(refusals, is_open)
        if refusals is not None and refusals >= ENOUGH_REFUSALS:
            raise PeerUnavailable(
                f"connections to port {port} are refused: gRPC has closed it",
                hint="Start the program again; if this happens again, look for what the machine runs out of.",
            )


def refusals_after(refusals: int | None, is_open: bool | None) -> int | None:
    """Return how many times in a row the port has refused after one more look; None: it was never seen open.

    A port that was never seen open says nothing, because a wall may be in between. Nor does a look that failed.
    """
    if is_open is None:
        return refusals
    if is_open:
        return 0
    return None if refusals is None else refusals + 1


_NEAR = {"0.0.0.0": LOOPBACK, "::": "::1", "[::]": "::1"}
"""The address at which this machine reaches a server that listens on all addresses."""


async def _is_open(host: str, port: int, timeout_seconds: float) -> bool | None:
    """Whether the port accepts connections; None if that cannot be found out now.

    The connection comes from the same address: if this machine has lost that, another one may have it, and refuse.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection(host, port, local_addr=(host, 0))
    except ConnectionRefusedError:
        return False
    except OSError as error:  # the queue is full, no descriptor is left, or the address is not here now
        logger.debug("port %d cannot be tried: %s", port, error)
        return None
    writer.close()
    return True
