"""Tasks with owners: work that a cancellation must not cut short, and a condition that is told without waiting.

Rule: whatever has to be over before something else is told goes through `run_to_end`. `asyncio.shield` is no
replacement: a cancelled caller goes on at once and leaves the shielded work behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

_T = TypeVar("_T")


async def run_to_end(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which ends before this returns or raises, also if the caller is cancelled meanwhile.

    The cancellation is raised when the work is over. For short cleanup only: the caller cannot be stopped before.
    """
    task = asyncio.create_task(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None:
        return task.result()
    # Raise the cancellation, and show what the work failed with as its cause.
    raise cancellation from (None if task.cancelled() else task.exception())


async def run_until_first(
    *coroutines: Coroutine[Any, Any, None],
    cancel_inside: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> None:
    """Run side by side until one ends; then cancel the others, wait for them, and raise what the first one raised.

    The others are cancelled inside of the context `cancel_inside`. None of them is left when this returns or raises.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await run_to_end(_cancel(tasks, cancel_inside))


async def _cancel(
    tasks: Sequence[asyncio.Task[None]], cancel_inside: Callable[[], AbstractAsyncContextManager[None]]
) -> None:
    async with cancel_inside():
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Changes:
    """Wakes everybody who waits for a condition whenever something has changed. One event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Have every waiter look again."""
        changed, self._next = self._next, asyncio.Event()
        changed.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is asked now and after every `notify`."""
        while not condition():
            await self._next.wait()
