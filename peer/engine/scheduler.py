"""The choice of the tokens of the next step, and of how long to wait for more; no tensors.

The rules:

1. Rows with one new token ("decode rows") of all sessions are part of every step: they share one read of the weights.
2. Longer rows ("prompts") are cut into chunks of `chunk_tokens`, counted from the first token of the row's step, and a
   step takes at most `chunk_tokens` of them in all.  A prompt therefore delays a decode row by one chunk's time at
   most.  Where a row is cut never depends on other sessions, so the sums inside its attention do not either.
3. Jobs with prompts take turns.  The one that was served longest ago goes first, and what it leaves of the budget goes
   to the next ones whose chunk fits.  Among N jobs, one of k chunks is complete after at most k * N steps, whatever
   arrives later.
4. A session brings at most `chunk_tokens` decode rows to a step, so that a session with a thousand rows is treated like
   one with a long prompt.
5. Guesses, the last tokens of a session's step, may never be needed.  They are left out of a step of the engine in
   which other sessions have tokens of their texts, so that they delay nobody's token; but at most `MOST_DEFERRALS`
   times, because the session's own text waits behind them.  (So a row may also be cut where its guesses begin.)  A
   step that takes guesses, or that would not have come to them anyway, defers nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

from ...routing.swarm import ComputeCost

DEFAULT_CHUNK_TOKENS = 64
"""The chunk until the machine's speed is known, see `chunk_tokens_within`."""
MIN_CHUNK_TOKENS = 32
"""Smaller chunks make prompts slow, because each chunk reads the weights once."""
MAX_CHUNK_TOKENS = 512
MOST_DEFERRALS = 4
"""Steps of the engine that may go ahead of the guesses of a session's step."""


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Limits on the time that a chunk adds to a step, and on waits to share a step."""

    stall_seconds: float = 0.25
    """A chunk should not add more than this to a step, or more than the time of a decode step, if that is longer."""
    gather_seconds: float = 0.025
    """The longest wait of a ready job for others; see also `GATHER_SHARE`."""
    turnaround_seconds: float = 0.1
    """Longer turnarounds count as this: a person who read the answer says little about the next turnaround."""


def _no_pause() -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class EnginePolicy:
    """How the engine divides its time. A value: to change the policy, replace it (`Engine.adopt_policy`)."""

    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    """Most prompt tokens in a step; see `chunk_tokens_within`."""
    pause: Callable[[], float] = _no_pause
    """Called in the engine's thread after every step; returns the seconds to leave to the machine's owner."""


@dataclass(frozen=True, slots=True)
class Take:
    """Compute the next `count` tokens of row `row` of job `job` now; both are indices into `jobs` of `plan_step`."""

    job: int
    row: int
    count: int


@dataclass(frozen=True, slots=True)
class StepChoice:
    """The tokens of the next step."""

    takes: tuple[Take, ...]
    """Ascending by job and row, a row at most once."""
    order: tuple[int, ...]
    """The jobs in the order in which the next step looks at them."""
    deferred: tuple[int, ...] = ()
    """The jobs whose guesses are left out for the sake of others' texts."""


def plan_step(
    jobs: Sequence[Sequence[int]], chunk_tokens: int, deferrable: Mapping[int, int] = MappingProxyType({})
) -> StepChoice:
    """Choose the tokens of the next step.

    `jobs[i]` has the number of tokens left in every row of job i; the jobs are in the order of the last choice, new
    ones at the end.  `deferrable` maps a job to the number of guesses, at the end of its last row, that can wait.  The
    takes are empty only if no token is left.  O(rows).
    """
    takes: list[Take] = []
    waiting: list[int] = []
    served: list[int] = []
    deferred: list[int] = []
    room = chunk_tokens
    texts = [job for job, rows in enumerate(jobs) if sum(rows) > deferrable.get(job, 0)]
    for job, rows in enumerate(jobs):
        single_rows, room_before = 0, room
        guesses = deferrable.get(job, 0) if set(texts[:2]) - {job} else 0
        if guesses and rows[-1] - guesses < chunk_tokens:
            deferred.append(job)
        for row, left in enumerate((*rows[:-1], rows[-1] - guesses)):
            if left == 1 and single_rows < chunk_tokens:
                single_rows += 1
                takes.append(Take(job, row, 1))
            elif left > 1 and (count := min(left, chunk_tokens)) <= room:
                room -= count
                takes.append(Take(job, row, count))
        (served if room < room_before else waiting).append(job)
    return StepChoice(tuple(takes), (*waiting, *served), tuple(deferred))


def chunk_tokens_within(cost: ComputeCost, num_blocks: int, stall_seconds: float) -> int:
    """The largest power of two whose prefill keeps the limit of `StepTiming.stall_seconds` in `num_blocks` blocks.

    Between `MIN_CHUNK_TOKENS` and `MAX_CHUNK_TOKENS`.
    """
    allowed_seconds = max(stall_seconds, num_blocks * cost.decode_seconds())
    chunk_tokens = MAX_CHUNK_TOKENS
    while chunk_tokens > MIN_CHUNK_TOKENS and num_blocks * cost.prefill_per_token * chunk_tokens > allowed_seconds:
        chunk_tokens //= 2
    return chunk_tokens


# Sessions that one step answered come back at nearly the same time.  Without a pause the first of them starts the next
# step alone, the others miss it, and from then on two groups alternate that could share every step.  Simulated with 8
# sessions and steps of 80 ms + 5 ms per row: 40 tokens/s without the pause and 66 with it if the sessions come back
# after 0.2 or 1 ms; with it, 63 after 5 ms and 56 after 20 ms.  The 99th percentile of the gaps between a session's
# tokens falls from 200 ms to 120 to 144 ms.

GATHER_SHARE = 0.25
"""The longest wait of a ready job for others, as a share of the last step's time."""
_SMOOTHING = 0.25


@dataclass(frozen=True, slots=True)
class TurnAround:
    """Time from an answer to the session's next step: smoothed mean and mean deviation (as in RFC 6298)."""

    mean_seconds: float
    deviation_seconds: float

    @classmethod
    def first(cls, seconds: float) -> TurnAround:
        return cls(seconds, seconds / 2)

    def observed(self, seconds: float) -> TurnAround:
        """Return the statistics with one more observation."""
        deviation = self.deviation_seconds + _SMOOTHING * (abs(seconds - self.mean_seconds) - self.deviation_seconds)
        return TurnAround(self.mean_seconds + _SMOOTHING * (seconds - self.mean_seconds), deviation)

    def after(self, answered_at: float) -> Return:
        usually_at = answered_at + self.mean_seconds
        return Return(usually_at, usually_at + 4 * self.deviation_seconds)


@dataclass(frozen=True, slots=True)
class Return:
    """When a session should be back, and by when it nearly always is."""

    usually_at: float
    latest_at: float


class ExpectedSessions:
    """Sessions that were answered and are not back yet, and when each is expected, by its earlier turnarounds.

    Sessions are any hashable objects; they are held by weak references.
    """

    def __init__(self, turnaround_seconds: float) -> None:
        """`turnaround_seconds` as in `StepTiming`."""
        self._turnaround_seconds = turnaround_seconds
        self._answered_at: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._turn_arounds: WeakKeyDictionary[Any, TurnAround] = WeakKeyDictionary()
        self._expected: WeakKeyDictionary[Any, Return] = WeakKeyDictionary()

    def answered(self, session: Any, now: float) -> None:
        self._answered_at[session] = now
        if session in self._turn_arounds:
            self._expected[session] = self._turn_arounds[session].after(now)

    def arrived(self, session: Any, now: float) -> None:
        """The session's next step is here."""
        self._expected.pop(session, None)
        answered_at = self._answered_at.pop(session, None)
        if answered_at is not None:
            before, seconds = self._turn_arounds.get(session), min(now - answered_at, self._turnaround_seconds)
            self._turn_arounds[session] = before.observed(seconds) if before is not None else TurnAround.first(seconds)

    def returns(self, now: float) -> list[Return]:
        """Return the expected returns; drop sessions that are overdue."""
        for session in [session for session, expected in self._expected.items() if expected.latest_at <= now]:
            del self._expected[session]
        return list(self._expected.values())


def gather_until(
    ready_since: float, expected: Iterable[Return], last_step_seconds: float, gather_seconds: float
) -> float:
    """The moment until which the engine waits for more jobs; `ready_since`, i.e. no wait, if nobody is expected.

    `ready_since`: when the engine became free and a job was ready. `expected`: returns of the sessions that are not
    back yet.  No wait exceeds the limit, and a session that usually comes after it is not waited for.
    `gather_seconds` as in `StepTiming`.
    """
    limit = ready_since + min(gather_seconds, GATHER_SHARE * last_step_seconds)
    ends = (min(back.latest_at, limit) for back in expected if back.usually_at <= limit)
    return max(ready_since, max(ends, default=ready_since))
