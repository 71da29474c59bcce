"""Sends answers to a client, and gives up as soon as the client is gone or reads nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive


async def until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, and cancel it as soon as the client is gone. Raises what `work` raises.

    A TimeoutError of `work` means that the client reads nothing; it is taken as gone, and nothing is raised.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.wait({working})
    if not working.cancelled():
        with contextlib.suppress(TimeoutError):
            working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
