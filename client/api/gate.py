"""How many requests generate at a time, how many wait for their turn, and when the others may come back.

A request that generates has a thread; the others wait in the order in which they came.  With the queue full a request
is refused with the time after which a place is likely: by the time that generations took here, and not before the
peers of the swarm have said that they have room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from .openai.errors import RATE_LIMIT, ApiError

NEWEST_WEIGHT = 0.2
"""The part of the newest generation in the mean."""


def wait_seconds(ahead: int, places: int, mean_seconds: float | None) -> float:
    """When a place is free for a request with `ahead` others before it; 0 while no generation has ended yet."""
    return 0.0 if mean_seconds is None else mean_seconds * (ahead + 1) / places


class Gate:
    """The places of one endpoint; used on its loop only."""

    def __init__(self, places: int, queue: int, clock: Callable[[], float]) -> None:
        """At most `places` requests generate, and `queue` more wait; `clock` gives seconds."""
        self.running = 0
        self._places = places
        self._queue_limit = queue
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_seconds: float | None = None
        self._swarm_free_at = 0.0
        """On the clock: when the swarm has room again, by its own account."""

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def note_busy(self, retry_after_seconds: float) -> None:
        """The swarm refused a request for want of room."""
        self._swarm_free_at = max(self._swarm_free_at, self._clock() + retry_after_seconds)

    def retry_after_seconds(self) -> float:
        """When to come back, for a request that finds no place."""
        here = wait_seconds(len(self._waiting), self._places, self._mean_seconds)
        return max(here, self._swarm_free_at - self._clock())

    @asynccontextmanager
    async def place(self) -> AsyncIterator[float]:
        """Wait for a place and hold it; gives the seconds that this took. Raises ApiError if the queue is full."""
        asked = self._clock()
        await self._enter()
        began = self._clock()
        try:
            yield began - asked
        finally:
            self._leave()
            self._note(self._clock() - began)

    async def _enter(self) -> None:
        if self.running < self._places and not self._waiting:
            self.running += 1
            return
        if len(self._waiting) >= self._queue_limit:
            seconds = self.retry_after_seconds()
            raise ApiError(
                429, f"the endpoint is full: {self.running} requests are answered and {self.queued} wait",
                kind=RATE_LIMIT, code="endpoint_full", retry_after_seconds=seconds,
            )  # fmt: skip
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place came together with the cancellation
            else:
                self._waiting.remove(turn)
            raise

    def _leave(self) -> None:
        """Give the place to the next one that waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _note(self, seconds: float) -> None:
        before = self._mean_seconds
        self._mean_seconds = seconds if before is None else before + NEWEST_WEIGHT * (seconds - before)
