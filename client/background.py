"""The one asyncio loop of a client process, in a daemon thread of its own.

`generate` is synchronous and may be called from anywhere, also from inside somebody else's running loop (a notebook, a
server).  All network work happens on this loop; calls cross over with a deadline.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..proto.errors import DeadlineExceeded

T = TypeVar("T")


class BackgroundLoop:
    """A loop that runs until its process ends. Use `background_loop()`: there is one per process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="blockswarm-network", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
        """Run `work` on the loop and wait for its result.

        If the wait ends early, by its deadline or by an interrupt, `work` is cancelled. Raises DeadlineExceeded, what
        `work` raises, and RuntimeError when called on the loop itself, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("the network loop cannot wait for its own work")
        future = self.submit(work)
        try:
            return future.result(timeout_seconds)
        except concurrent.futures.TimeoutError as error:
            if future.done() and future.exception() is error:
                raise  # a TimeoutError of the work itself
            raise DeadlineExceeded(f"no answer within {timeout_seconds:.1f} s") from None
        finally:
            future.cancel()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start `work` on the loop and do not wait; cancelling the future cancels the work."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call_soon(self, action: Callable[[], object]) -> None:
        """Call a function on the loop, from any thread, without waiting for it."""
        self._loop.call_soon_threadsafe(action)


_lock = threading.Lock()
_current: tuple[int, BackgroundLoop] | None = None


def background_loop() -> BackgroundLoop:
    """The process's loop, started on first use. A forked child gets its own: threads do not survive a fork."""
    global _current
    with _lock:
        if _current is None or _current[0] != os.getpid():
            _current = (os.getpid(), BackgroundLoop())
        return _current[1]


def _forget_after_fork() -> None:
    """The child may have been forked while another thread held the lock."""
    global _lock, _current
    _lock, _current = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
