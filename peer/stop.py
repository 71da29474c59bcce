"""How a peer is stopped: gently the first time, at once the second time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class StopRequest:
    """Stops a peer: the first time gently, the second time, or before it serves, at once."""

    def __init__(self) -> None:
        self.serving = False
        self.gently = asyncio.Event()
        self.now = asyncio.Event()

    def __call__(self) -> None:
        (self.gently if self.serving and not self.gently.is_set() else self.now).set()


async def until_stopped(work: Coroutine[Any, Any, None], stop: StopRequest) -> None:
    """Run `work`; a stop before it serves, or a second one, cancels it."""
    task = asyncio.create_task(work)
    forced = asyncio.create_task(stop.now.wait())
    try:
        await asyncio.wait([task, forced], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            logger.warning("stopped at once%s", ", open sessions are lost" if stop.serving else "")
            task.cancel()
        await task
    except asyncio.CancelledError:
        if not forced.done():
            raise
    finally:
        forced.cancel()
