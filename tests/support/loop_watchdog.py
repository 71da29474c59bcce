"""Finds callbacks that keep an event loop from doing anything else.

What counts is the processor time of the loop's own thread in one callback: on a busy machine a callback may take long
by the clock although it does little.  The collector of garbage is off meanwhile: in a large test process it takes
longer than anything that is looked for here.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock


@dataclass
class LoopWatch:
    """The longest callback so far."""

    callbacks: int = 0
    longest_seconds: float = 0.0
    longest: str = field(default="none")


@contextmanager
def watched_loops() -> Iterator[LoopWatch]:
    """Watch all event loops of the process for the time of a block."""
    watch = LoopWatch()
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        try:
            run(handle)
        finally:
            seconds = time.thread_time() - began
            watch.callbacks += 1
            if seconds > watch.longest_seconds:
                watch.longest_seconds, watch.longest = seconds, _describe(handle)

    gc.collect()
    gc.disable()
    try:
        with mock.patch.object(asyncio.Handle, "_run", timed):
            yield watch
    finally:
        gc.enable()


def _describe(handle: asyncio.Handle) -> str:
    """A handle that steps a task does not name it, but refers to it."""
    tasks = [referent for referent in gc.get_referents(handle._callback) if isinstance(referent, asyncio.Task)]
    return repr(tasks[0] if tasks else handle)
