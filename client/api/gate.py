"""Admission of requests: how many generate at the same time, how many wait, and when refused ones may come back.

A request that generates has a thread; the others wait in order of arrival.  If the queue is full, a request is refused
with the time after which a slot is likely to be free: by the mean time of the generations here, and not before the
swarm's peers have said that they have room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from .openai.errors import RATE_LIMIT, ApiError

NEWEST_WEIGHT = 0.2
"""The weight of the newest generation in the moving mean."""


def wait_seconds(ahead: int, slots: int, mean_seconds: float | None) -> float:
    """Estimate the wait for a slot of a request with `ahead` others before it; 0 before any generation has ended."""
    return 0.0 if mean_seconds is None else mean_seconds * (ahead + 1) / slots


class Gate:
    """The slots of one endpoint, in which requests generate; used on its loop only."""

    def __init__(self, slots: int, queue: int, clock: Callable[[], float]) -> None:
        """At most `slots` requests generate and `queue` more wait; `clock` returns seconds."""
        self.running = 0
        self._slots = slots
        self._queue_limit = queue
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_seconds: float | None = None
        self._swarm_free_at = 0.0
        """When the swarm will have room again, by its peers' account, on `clock`."""

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def note_busy(self, retry_after_seconds: float) -> None:
        """Record that the swarm refused a request because it is full."""
        self._swarm_free_at = max(self._swarm_free_at, self._clock() + retry_after_seconds)

    def retry_after_seconds(self) -> float:
        """Return how long a refused request should wait before it comes back."""
        here = wait_seconds(len(self._waiting), self._slots, self._mean_seconds)
        return max(here, self._swarm_free_at - self._clock())

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Hold a slot during the block; yields the seconds waited for it. Raises ApiError if the queue is full."""
        asked = self._clock()
        await self._enter()
        began = self._clock()
        try:
            yield began - asked
        finally:
            self._leave()
            self._note(self._clock() - began)

    async def _enter(self) -> None:
        if self.running < self._slots and not self._waiting:
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
                self._leave()  # the slot was given together with the cancellation
            else:
                self._waiting.remove(turn)
            raise

    def _leave(self) -> None:
        """Pass the slot to the next waiting request."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _note(self, seconds: float) -> None:
        before = self._mean_seconds
        self._mean_seconds = seconds if before is None else before + NEWEST_WEIGHT * (seconds - before)
