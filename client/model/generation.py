"""One call of `generate`: its events, where its time went, and how another thread stops it.

A model may be used by several threads and tasks at once.  Each call has a `Generation` of its own; the last one of a
model is kept per context (`contextvars`), so each thread or task sees its own.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..config import SessionEvent
from ..report import ChainReport, GuessReport
from .batch.padding import RowEnds
from .remote import SwarmCache

ONE_PLAIN_TEXT: Mapping[str, Any] = {
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""Arguments of `generate` for callers that need a single text as a tensor: a model's own generation config may ask for
several texts, or for an output object."""


class Cancellation:
    """Stops a call of `generate` from another thread: its pending step fails, and no further one begins."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._lock = threading.Lock()
        self._caches: weakref.WeakSet[SwarmCache] = weakref.WeakSet()

    def add(self, cache: SwarmCache) -> None:
        """Abort `cache` when the call is cancelled; at once if it has been already."""
        with self._lock:
            self._caches.add(cache)
            requested = self.requested.is_set()
        if requested:
            cache.abort()

    def request(self) -> None:
        """Stop the call without waiting for it."""
        with self._lock:
            self.requested.set()
            caches = list(self._caches)
        for cache in caches:
            cache.abort()


class Generation:
    """One call of `generate`. Its events and its report can be read from any thread, also while it runs."""

    def __init__(self, cancellation: Cancellation | None = None) -> None:
        """A call within another one (of an assistant model, say) is cancelled together with it."""
        self.outer: Generation | None = current_generation()
        """The call inside which this one runs."""
        inherited = self.outer.cancellation if self.outer is not None else None
        self.cancellation: Cancellation | None = cancellation or inherited
        self.assisted = False
        """Whether `generate` itself guesses ahead, by an assistant model or prompt look-up."""
        self.longest = 0
        """The most tokens that a row of the call may have."""
        self.finished = False
        self._events: list[SessionEvent] = []
        self._cache: SwarmCache | None = None
        self._own_caches: weakref.WeakSet[SwarmCache] = weakref.WeakSet()
        self._report = ChainReport()
        self.row_ends: RowEnds | None = None
        """Where the rows of the batch ended; set once the call generates, and kept after it."""
        self._guesses = GuessReport()

    @property
    def events(self) -> tuple[SessionEvent, ...]:
        """How the call found and repaired its chain, in order."""
        return tuple(self._events)

    @property
    def report(self) -> ChainReport:
        """Where the time of this call's steps went, per hop."""
        cache = self._cache
        return cache.report() if cache is not None else self._report

    @property
    def guesses(self) -> GuessReport:
        """The trips of this call, and how well guessing ahead did."""
        cache = self._cache
        guesses = cache.guesses if cache is not None else None
        return guesses.guesser.report() if guesses is not None else self._guesses

    def use(self, cache: SwarmCache, longest: int) -> None:
        """Make `cache` the cache of this call, whose rows have at most `longest` tokens."""
        cache.begin_use(self._events.append)
        if cache.guesses is not None:
            cache.guesses.guesser.begin_use()
        self._cache = cache
        self.longest = longest
        if self.cancellation is not None:
            self.cancellation.add(cache)

    def own(self, cache: SwarmCache) -> None:
        """Release `cache` at the end of this call, or of the outermost one if it runs inside others."""
        if self.outer is not None:
            self.outer.own(cache)
            return
        self._own_caches.add(cache)
        if self.cancellation is not None:
            self.cancellation.add(cache)

    @contextmanager
    def running(self, model: Any) -> Iterator[None]:
        """Make this the current generation of the context, and the last one of `model`, while the block runs."""
        token = _current.set(self)
        note_last(model, self)
        try:
            yield
        finally:
            _current.reset(token)
            note_last(model, self)  # calls inside this one have replaced it meanwhile
            self._finish()

    def _finish(self) -> None:
        """Close the cache and keep only its reports: the cache holds the inputs of the whole text."""
        cache = self._cache
        if cache is not None:
            self._report = cache.report()
            self._guesses = self.guesses
            self._cache = None
        for cache in tuple(self._own_caches):
            cache.release()
        self._own_caches.clear()
        self.cancellation = self.outer = None
        self.finished = True


_current: contextvars.ContextVar[Generation | None] = contextvars.ContextVar("blockswarm_generation", default=None)
_last: contextvars.ContextVar[weakref.WeakKeyDictionary[Any, Generation] | None] = contextvars.ContextVar(
    "blockswarm_last_generations", default=None
)
"""By model; replaced and never mutated, because new tasks and threads copy the context."""


def current_generation() -> Generation | None:
    """Return the innermost call of `generate` that is running in this thread or task."""
    return _current.get()


def last_generation(model: Any) -> Generation | None:
    """Return the last call of `generate` on `model` in this thread or task; None if there was none."""
    known = _last.get()
    return known.get(model) if known is not None else None


def note_last(model: Any, generation: Generation) -> None:
    """Make `generation` the last one of `model` in this context."""
    changed = weakref.WeakKeyDictionary(_last.get() or {})
    changed[model] = generation
    _last.set(changed)
