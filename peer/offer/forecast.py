"""When reserved room is expected to become free, and what that means for those who wait.

Pure functions over numbers that the peer measures: how fast a session fills its reservation (`Pace`), hence when it
is expected to end; who is admitted when, if the queue is served strictly in order (`serve_in_order`); and what is left
for somebody who joins now (`Room`), which is what the peer announces.

An end is the moment at which the session has filled its whole reservation.  Most sessions end earlier, so what is
announced is on the safe side.  Times are Unix seconds, room is KV tokens x blocks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...proto.directory.records import merge_releases
from ...routing.swarm import KvRelease

SMOOTHING = 0.1
"""The share of a new observation in a running average, once there are enough of them."""
DECODE_TOKENS = 16
"""A step with more new tokens per row than this is a prompt's, and says nothing of the pace of what follows."""


@dataclass(frozen=True, slots=True)
class Average:
    """A mean that follows: of everything at first, then with forgetting."""

    value: float
    count: int = 0
    """Observations so far; none yet: `value` is a guess."""

    def after(self, observed: float) -> Average:
        """The average with one more observation."""
        weight = max(SMOOTHING, 1 / (self.count + 1))
        return Average(self.value + weight * (observed - self.value), self.count + 1)


@dataclass(frozen=True, slots=True)
class Pace:
    """How far a session is, and how long one token of its reservation takes."""

    seconds_per_token: Average
    at_seconds: float
    """Of the last step."""
    tokens: int = 0
    """In the cache after that step, all rows together."""

    def after(self, tokens: int, rows: int, now: float) -> Pace:
        """A step has left `tokens` tokens in `rows` rows."""
        grown = tokens - self.tokens
        average = self.seconds_per_token
        if 0 < grown <= DECODE_TOKENS * rows:
            average = average.after(max(0.0, now - self.at_seconds) / grown)
        return Pace(average, now, tokens)

    def end_seconds(self, kv_tokens: int, now: float) -> float:
        """When a session that reserves `kv_tokens` tokens will have used them."""
        return now + max(0, kv_tokens - self.tokens) * self.seconds_per_token.value


@dataclass(frozen=True, slots=True)
class Need:
    """What one waiting session will take, and for how long."""

    room: int
    held_seconds: float


@dataclass(frozen=True, slots=True)
class Room:
    """What somebody who joins now can have: at once, and later."""

    free: int
    releases: tuple[KvRelease, ...]
    """Ascending in time."""

    def wait_seconds(self, need: int, now: float) -> float:
        """Until `need` is free; infinite if nothing is known of that."""
        free = self.free
        if free >= need:
            return 0.0
        for release in self.releases:
            free += release.tokens
            if free >= need:
                return max(0.0, release.at_seconds - now)
        return math.inf


@dataclass(frozen=True, slots=True)
class Schedule:
    """Who is admitted when, in the order of the queue, and what is left for others."""

    starts: tuple[float, ...]
    rest: Room


def serve_in_order(
    now: float, free: int, places: int, ends: Iterable[KvRelease], waiting: Sequence[Need], max_releases: int
) -> Schedule:
    """Play the queue: each session starts when there is room and a place for it, and never before the one ahead.

    `places` is how many more sessions the peer takes.  Nobody's need is larger than all the room there is.
    O((n + w) log(n + w)) for n ends and w who wait.
    """
    running = [(end.at_seconds, end.tokens) for end in ends]
    heapq.heapify(running)
    starts = []
    start = now
    for need in waiting:
        while running and (free < need.room or places < 1):
            at, tokens = heapq.heappop(running)
            start = max(start, at)
            free, places = free + tokens, places + 1
        starts.append(start)
        free, places = free - need.room, places - 1
        heapq.heappush(running, (start + need.held_seconds, need.room))
    while running and places < 1:
        at, tokens = heapq.heappop(running)
        start = max(start, at)
        free, places = free + tokens, places + 1
    later = [KvRelease(max(start, at), tokens) for at, tokens in sorted(running)]
    if start > now:
        # Those who wait go first, whatever is free meanwhile.
        later, free = [KvRelease(start, max(0, free)), *later], 0
    return Schedule(tuple(starts), Room(max(0, free), merge_releases(later, max_releases)))


@dataclass(frozen=True, slots=True)
class TimeAverage:
    """The mean of a number over the last `window_seconds`, older values fading; since the start while that is less."""

    window_seconds: float
    at_seconds: float
    value: float = 0.0
    """Since `at_seconds`."""
    total: float = 0.0
    weight: float = 0.0
    """Of all time so far, at most 1."""

    def after(self, value: float, now: float) -> TimeAverage:
        """The number is `value` from now on."""
        faded = math.exp(-max(0.0, now - self.at_seconds) / self.window_seconds)
        return replace(
            self,
            at_seconds=max(now, self.at_seconds),
            value=value,
            total=faded * self.total + (1 - faded) * self.value,
            weight=faded * self.weight + (1 - faded),
        )

    def mean(self, now: float) -> float:
        """The mean until now."""
        here = self.after(self.value, now)
        return here.total / here.weight if here.weight > 0 else self.value
