"""Admission of requests: how many generate at the same time, how many wait, and when refused ones may come back.

A request that generates has a thread.  Of the others, takers (keys, or networks where no key is needed) take turns, and
of each taker the oldest is next.  If the queue is full, a request is refused with the time after which a slot is likely
to be free: by the mean time of the generations here, and not before the swarm's peers have said that they have room.
That is the new one, or the youngest of the taker with most waiting if the new one's taker has fewer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager

from ...proto.fair_places import FairPlaces
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
        self._slots = slots
        self._clock = clock
        self._places: FairPlaces[Hashable] = FairPlaces(slots, queue, self._full)
        self._mean_seconds: float | None = None
        self._swarm_free_at = 0.0
        """When the swarm will have room again, by its peers' account, on `clock`."""

    @property
    def running(self) -> int:
        return self._places.held

    @property
    def queued(self) -> int:
        return self._places.waiting

    def note_busy(self, retry_after_seconds: float) -> None:
        """Record that the swarm refused a request because it is full."""
        self._swarm_free_at = max(self._swarm_free_at, self._clock() + retry_after_seconds)

    def retry_after_seconds(self) -> float:
        """Return how long a refused request should wait before it comes back."""
        here = wait_seconds(self.queued, self._slots, self._mean_seconds)
        return max(here, self._swarm_free_at - self._clock())

    @asynccontextmanager
    async def slot(self, taker: Hashable) -> AsyncIterator[float]:
        """Hold a slot for `taker` during the block; yields the seconds waited for it.

        Raises ApiError if the queue is full, or while waiting if a taker with fewer waiting requests needs the room.
        """
        asked = self._clock()
        async with self._places.place(taker):
            began = self._clock()
            try:
                yield began - asked
            finally:
                self._note(self._clock() - began)

    def _full(self) -> ApiError:
        return ApiError(
            429, f"the endpoint is full: {self.running} requests are answered and {self.queued} wait",
            kind=RATE_LIMIT, code="endpoint_full", retry_after_seconds=self.retry_after_seconds(),
        )  # fmt: skip

    def _note(self, seconds: float) -> None:
        before = self._mean_seconds
        self._mean_seconds = seconds if before is None else before + NEWEST_WEIGHT * (seconds - before)
