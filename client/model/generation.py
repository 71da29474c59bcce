"""One call of `generate`: the cache that it uses, and how another thread stops it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .remote import SwarmCache


class Cancellation:
    """Stops a call of `generate` from another thread: its pending step fails, and it stops before the next one."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._lock = threading.Lock()
        self._caches: list[SwarmCache] = []

    def add(self, cache: SwarmCache) -> None:
        """Have `cache` aborted by a request, or now if there was one."""
        with self._lock:
            self._caches.append(cache)
            requested = self.requested.is_set()
        if requested:
            cache.abort()

    def request(self) -> None:
        """Stop the call. Does not wait for it."""
        with self._lock:
            self.requested.set()
            caches = list(self._caches)
        for cache in caches:
            cache.abort()


class Generation:
    """One call of `generate`."""

    def __init__(self, cancellation: Cancellation | None = None) -> None:
        """A call within another one (of an assistant model, say) is cancelled together with it."""
        outer = current_generation()
        inherited = outer.cancellation if outer is not None else None
        self.cancellation: Cancellation | None = cancellation or inherited
        self.assisted = False
        """Whether an assistant model, or a prompt look-up, guesses tokens ahead."""
        self._caches: list[SwarmCache] = []

    def use(self, cache: SwarmCache, *, own: bool) -> None:
        """The call computes with `cache`; an `own` one is closed at the end of the call."""
        if own:
            self._caches.append(cache)
        if self.cancellation is not None:
            self.cancellation.add(cache)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make this the current generation of the context while the block runs, and close its caches afterwards."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            for cache in self._caches:
                cache.close()


_current: contextvars.ContextVar[Generation | None] = contextvars.ContextVar("blockswarm_generation", default=None)


def current_generation() -> Generation | None:
    """The innermost call of `generate` that is running in this thread or task."""
    return _current.get()
