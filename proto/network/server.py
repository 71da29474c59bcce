"""gRPC's server, of which a stranger cannot end the loop that takes calls.

That loop asks for the name of every call that is of no registered method, as text: a name that is no UTF-8 raises an
error there, and gRPC stops the server.  So all methods are registered here, whose names gRPC compares as bytes, and
other calls are ended before anybody asks for their names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from grpc._cython import cygrpc
from grpc.aio import _server

from ..wire.timing import SERVER_LOOK_SECONDS


class RegisteredServer(_server.Server):
    """A server whose methods are those that are registered."""

    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _RegisteredCalls(self._loop, None, (), None, tuple(options), None)

    async def until_ended(self) -> None:
        """Return when calls are taken no more, or raise what gRPC has ended for."""
        while await self.wait_for_termination(SERVER_LOOK_SECONDS):
            pass


class _RegisteredCalls(cygrpc.AioServer):
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
