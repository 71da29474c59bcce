"""Room for attention cache over time: what is free now, and which reservations become free when.

The one place that answers "when is there room for N tokens?": for a peer and the sessions in its queue, for a client
and the peers that it considers, for the simulator and its reservations.  Room is counted in any unit that the caller
chooses (KV tokens x blocks, slots); times are on the caller's clock, in seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .swarm import KvRelease

MAX_RELEASES = 32
"""The most releases that a peer announces."""


@dataclass(frozen=True, slots=True)
class Room:
    """Room that a newcomer can have: at once, and later."""

    free: int
    releases: tuple[KvRelease, ...]
    """Ascending in time."""

    def wait_seconds(self, need: int, now: float) -> float:
        """Seconds until `need` is free; infinite if no release makes it so."""
        return wait_for_room(need, self.free, self.releases, now)


def wait_for_room(need: int, free: int, releases: Iterable[tuple[float, int]], now: float) -> float:
    """Seconds until `need` is free, if the releases (moment, units), ascending in time, happen as announced.

    0 if it is free already, or if the release that completes it is overdue; infinite if the releases never suffice.
    """
    if free >= need:
        return 0.0
    for at_seconds, tokens in releases:
        free += tokens
        if free >= need:
            return max(0.0, at_seconds - now)
    return math.inf


def merge_releases(releases: Sequence[KvRelease], max_count: int = MAX_RELEASES) -> tuple[KvRelease, ...]:
    """At most `max_count` releases that never promise tokens earlier than `releases` (ascending in time) do.

    Runs of releases are merged at their latest moment; the first ones, which matter most, stay exact. O(n).
    """
    kept = max_count // 2
    tail = releases[kept:]
    if len(releases) <= max_count:
        return tuple(releases)
    groups = max_count - kept
    edges = [round(index * len(tail) / groups) for index in range(groups + 1)]
    merged = [
        KvRelease(tail[stop - 1].at_seconds, sum(release.tokens for release in tail[start:stop]))
        for start, stop in itertools.pairwise(edges)
    ]
    return (*releases[:kept], *merged)
