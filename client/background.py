"""The one asyncio loop of a client process, in a daemon thread of its own.

`generate` is synchronous and may be called from anywhere, also inside a running loop of the caller (a notebook, a
server).  All network work happens on this loop; each call into it has a deadline.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from ..proto.errors import DeadlineExceeded, UsageError

T = TypeVar("T")

# By default gRPC prepares forked children for using it, and crashes them if it is busy. No child here uses it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


class BackgroundLoop:
    """A loop that runs until its process ends. Use `background_loop()`: there is one per process."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="blockswarm-network", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
        """Run `work` on the loop and wait for its result.

        If the wait ends early, by its deadline or by an interrupt, `work` is cancelled. Raises DeadlineExceeded, what
        `work` raises, UsageError in a forked child, and RuntimeError when called on the loop's own thread, where it
        would deadlock.
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
        """Start `work` on the loop without waiting for it; cancelling the future cancels the work.

        Raises UsageError in a forked child.
        """
        if self.lost:
            work.close()
            raise _forked()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def lost(self) -> bool:
        """Whether this process was forked from the one that runs the loop: its thread does not exist here."""
        return self._process != os.getpid()

    def check(self) -> None:
        """Raise UsageError in a forked child, where waiting for the loop would never end."""
        if self.lost:
            raise _forked()


def _forked() -> UsageError:
    return UsageError(
        "this process was forked from one that is connected to a swarm, and a connection does not survive that",
        hint="Connect in each process itself, and only there: in a worker's start-up hook, or in processes of "
        "multiprocessing.get_context('spawn').",
    )


_lock = threading.Lock()
_current: BackgroundLoop | None = None


def background_loop() -> BackgroundLoop:
    """Return the process's loop, started on first use.

    Raises UsageError in a child of a process that had a loop: gRPC, which the parent used, crashes after a fork.
    """
    global _current
    with _lock:
        if _current is None:
            _current = BackgroundLoop()
        _current.check()
        return _current


def _unlock_after_fork() -> None:
    """Replace the lock in a forked child: another thread of the parent may have held it at the fork."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_after_fork)
