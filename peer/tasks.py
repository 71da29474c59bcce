"""Tasks with owners, and the stop of a program that runs them: no task is left behind, whatever happens.

Rules:

* Work that has to be over before the caller goes on runs in `run_to_end`. `asyncio.shield` is no replacement: a
  cancelled caller goes on at once and leaves the shielded work behind.
* What a program cannot do without runs in `vital_tasks`: when such a task ends, the program ends with its reason.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, TypeVar

from ..proto.errors import SwarmError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


async def run_to_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` to its end, even if the caller is cancelled meanwhile, and return its result.

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


class VitalTaskEnded(SwarmError):
    """A task that the program cannot do without has ended."""

    code = "vital-task"
    default_hint = "Start the program again; if this happens again, report it with the log (--verbose)."


@asynccontextmanager
async def vital_tasks(work: Mapping[str, Coroutine[Any, Any, object]]) -> AsyncIterator[None]:
    """Run `work` (what it does -> coroutine) beside the block, and cancel it at the end of the block.

    Each coroutine should run until it is cancelled. When one ends or fails, the block is cancelled and VitalTaskEnded
    raised with the reason. No task is left when this returns or raises.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_vital(name, coroutine), name=name) for name, coroutine in work.items()]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failures:
        # The first failure has cancelled everything else.
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
    finally:
        for coroutine in work.values():
            coroutine.close()  # Python warns of coroutines that were cancelled before they began


async def _vital(name: str, work: Coroutine[Any, Any, object]) -> None:
    try:
        await work
    except SwarmError as error:
        raise VitalTaskEnded(f"{name} failed: {error}", hint=error.hint) from error
    except Exception as error:
        logger.debug("%s failed", name, exc_info=True)
        raise VitalTaskEnded(f"{name} failed: {type(error).__name__}: {error}") from error
    raise VitalTaskEnded(f"{name} has ended, which it should not")


async def run_until_first(
    *coroutines: Coroutine[Any, Any, None],
    cancel_inside: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> None:
    """Run side by side until one ends; then cancel the others, wait for them, and raise what the first one raised.

    The others are cancelled inside the context `cancel_inside`. None of them is left when this returns or raises.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await run_to_end(_cancel(tasks, cancel_inside))


async def _cancel(
    tasks: Sequence[asyncio.Task[None]], cancel_inside: Callable[[], AbstractAsyncContextManager[None]]
) -> None:
    async with cancel_inside():
        await cancel_all(tasks)


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end. Their errors, also earlier ones, are logged at debug level."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            logger.debug("a cancelled task failed: %s", outcome)


class StopRequest:
    """Stops a peer: the first time gently, the second time, or before it serves, at once.

    A download or a load runs in a thread that cannot be stopped, so the process exits: after a short time for cleanup,
    or at once on the next signal.  Files are written whole or not at all.
    """

    def __init__(
        self,
        on_stop: Callable[[], object] = lambda: None,
        leave: Callable[[], object] | None = None,
        cleanup_seconds: float = 0.0,
    ) -> None:
        """`leave` ends the process, whatever runs in it; called in any thread. None: the process is not ended."""
        self._on_stop = on_stop
        self._leave = leave
        self._cleanup_seconds = cleanup_seconds
        self.serving = False
        self.gently = asyncio.Event()
        self.now = asyncio.Event()

    def __call__(self) -> None:
        self._on_stop()
        if self.serving and not self.gently.is_set():
            self.gently.set()
            return
        if self._leave is not None:
            if self.now.is_set():
                self._leave()
            elif not self.serving:
                timer = threading.Timer(self._cleanup_seconds, self._leave)
                timer.daemon = True
                timer.start()
        self.now.set()

    def hang_up(self) -> None:
        """Stop because the terminal has closed. The system says so, and its shell as well: that is no second stop."""
        if not (self.gently.is_set() or self.now.is_set()):
            self()


async def until_stopped(work: Coroutine[Any, Any, None], stop: StopRequest) -> None:
    """Run `work`; a stop before it serves, or a second one, cancels it. `work` is over when this returns or raises."""

    async def forced() -> None:
        await stop.now.wait()
        logger.warning("stopped at once%s", ", open sessions are lost" if stop.serving else "")

    await run_until_first(work, forced())


class Changes:
    """Wakes all that wait for a condition whenever something has changed. For one event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Have every waiter check its condition again."""
        changed, self._next = self._next, asyncio.Event()
        changed.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is checked now and after every `notify`."""
        while not condition():
            await self._next.wait()
