"""How long peers that failed or are full are not chosen, by run.

A *run* is a peer between two starts: a restarted peer gets another chance.  Failures are remembered: each further one
doubles the ban, and the failures of a peer that has not failed for long enough are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ...proto.errors import PeerBusy, SwarmError
from ...routing.swarm import PeerId
from ..peer_errors import is_silence
from ..timing import ClientTiming

Run = tuple[PeerId, int]
"""A peer and its incarnation."""
MOST_RUNS = 1000
"""More than the records that the directory holds under one key."""


@dataclass(frozen=True, slots=True)
class _Failures:
    count: int
    banned_until: float
    forgotten_at: float
    silent: bool
    """Whether the last failure was silence, which a broken connection would explain as well."""
    excused: bool = False
    """Whether the peer was found to answer after all; this excuses it only once."""


class Bans:
    """The failures and refusals of all peers, as this client saw them."""

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float], timing: ClientTiming) -> None:
        """`clock` returns Unix seconds, in which peers promise room; `monotonic` a time that is never adjusted."""
        self._clock = clock
        self._monotonic = monotonic
        self._timing = timing
        self._failures: dict[Run, _Failures] = {}
        self._full_until: dict[Run, float] = {}

    def note(self, run: Run, error: SwarmError) -> None:
        """Record a failure of a run; after PeerBusy, that it has no room until the time that it gave."""
        self._forget()
        if isinstance(error, PeerBusy):
            self._full_until[run] = self._clock() + error.retry_after_seconds
            return
        now, old = self._monotonic(), self._failures.get(run)
        count = old.count + 1 if old is not None else 1
        seconds = min(self._timing.ban_seconds * 2.0 ** min(count - 1, 60), self._timing.max_ban_seconds)
        forgotten_at = now + seconds + self._timing.forget_failures_seconds
        excused = old is not None and old.excused
        self._failures[run] = _Failures(count, now + seconds, forgotten_at, is_silence(error), excused)

    def runs(self) -> frozenset[Run]:
        """Return the runs of which anything is remembered."""
        return frozenset((*self._failures, *self._full_until))

    def is_banned(self, run: Run) -> bool:
        failures = self._failures.get(run)
        return failures is not None and failures.banned_until > self._monotonic()

    def full_until(self, run: Run) -> float | None:
        """Return when the run said that it will have room; None if it did not, or the time has passed."""
        until = self._full_until.get(run)
        return until if until is not None and until > self._clock() else None

    def failures(self, run: Run) -> int:
        """Return the number of remembered failures; routing prefers runs with fewer."""
        failures = self._failures.get(run)
        return failures.count if failures is not None and failures.forgotten_at > self._monotonic() else 0

    def pardon(self, peers: Iterable[PeerId]) -> None:
        """Forget the failures of those peers, which were not at fault."""
        pardoned = frozenset(peers)
        self._failures = {run: failures for run, failures in self._failures.items() if run[0] not in pardoned}

    def excusable(self) -> frozenset[Run]:
        """Return the banned runs that were only silent and have not been excused before."""
        excusable = (run for run, failures in self._failures.items() if failures.silent and not failures.excused)
        return frozenset(filter(self.is_banned, excusable))

    def excuse(self, run: Run) -> None:
        """Lift the ban of a peer that answers over a new connection, once. Its failures stay remembered."""
        if failures := self._failures.get(run):  # it may have been pardoned meanwhile
            self._failures[run] = replace(failures, banned_until=self._monotonic(), excused=True)

    def _forget(self) -> None:
        """Drop expired entries, and the oldest ones beyond `MOST_RUNS`."""
        now, unix = self._monotonic(), self._clock()
        self._failures = {run: failures for run, failures in self._failures.items() if failures.forgotten_at > now}
        self._full_until = {run: until for run, until in self._full_until.items() if until > unix}
        for entries in (self._failures, self._full_until):
            while len(entries) >= MOST_RUNS:
                del entries[next(iter(entries))]
