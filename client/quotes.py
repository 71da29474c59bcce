"""Quotes: the time that a request is likely to take, predicted before it begins, and how accurate predictions were.

The expected times follow from the peers' announced costs and the measured network.  Their error depends on what neither
of these shows: other sessions, slow links, this machine.  So the intervals come from the sessions that have ended: the
next prediction is expected to be off by as much as theirs were.

When the load changes, the next session does not resemble the previous ones, and such an interval is too narrow.  So
each outcome is compared with the interval that the outcomes before it gave; a miss makes later intervals a little
wider, a hit very slightly narrower.  In the long run the intended share of outcomes falls outside, however the load
changes (adaptive conformal inference, Gibbs and Candes, 2021).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..proto.wire.steps import StepPlan
from ..routing.route.predict import PredictedRequest
from ..routing.swarm import BlockRange, PeerId

MAX_SESSIONS = 64
"""The number of ended sessions that are remembered."""
LEAST_SESSIONS = 4
"""Intervals are unbounded before this many sessions have ended."""
CONFIDENCE = 0.9
"""The share of requests that should fall inside the interval, once enough sessions have ended to tell."""
CORRECTION_STEP = 0.05
"""Step size of the correction after each outcome. Doubling or halving it changes the share of hits little."""
MOST_CORRECTION = 0.2
"""Bound on the correction of the missed share, so that a bad hour is forgotten after dozens of sessions."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, and the interval in which it is expected."""

    expected: float
    low: float = 0.0
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def inverse(self) -> Estimate:
        """The estimate of 1/x: tokens per second from seconds per token."""
        return Estimate(*(1 / x if x > 0 else math.inf for x in (self.expected, self.high, self.low)))


@dataclass(frozen=True, slots=True)
class Quote:
    """The times that a request of one row would take if it began now. Nothing is reserved for it."""

    chain: tuple[tuple[PeerId, BlockRange], ...]
    wait_seconds: float
    """Until there is room, as the peers announce."""
    first_token_seconds: Estimate
    """From the call to the first token, without the wait for room."""
    tokens_per_second: Estimate
    """Speed after the first token, without guessing ahead, which can only raise it."""
    sessions: int
    """The number of ended sessions behind the intervals; below LEAST_SESSIONS the intervals are unbounded."""
    confidence: float
    """The share of requests that should fall inside the intervals."""


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """The measured times of one session: its first step, and its decode steps (one token per row)."""

    prompt_tokens: int = 0
    """Tokens of the first step, which also waits for room and opens the chain."""
    first_seconds: float = 0.0
    trips: int = 0
    """The number of decode steps."""
    total_seconds: float = 0.0
    """Sum over the decode steps of the time since the step before ended, including the client's computing between."""
    last_at: float = 0.0
    """When the last step ended."""

    @property
    def trip_seconds(self) -> float:
        return self.total_seconds / self.trips if self.trips else 0.0

    def after(self, plan: StepPlan, began_at: float, ended_at: float, *, guessed: bool = False) -> SessionTimes:
        """Return the times with one more step added, by any clock; `guessed`: it carries no token of the text."""
        if not self.prompt_tokens:
            return SessionTimes(plan.tokens, ended_at - began_at, last_at=ended_at)
        if guessed or plan.tokens != len(plan.rows):  # a prompt, or guesses
            return replace(self, last_at=ended_at)
        took = ended_at - self.last_at
        return replace(self, trips=self.trips + 1, total_seconds=self.total_seconds + took, last_at=ended_at)


class Quoting(Protocol):
    """A swarm that predicts the times of a request."""

    def quote(self, prompt_tokens: int, new_tokens: int) -> Quote:
        """Predict the times of a request of one row that begins now. Raises SwarmError."""


class Ratios:
    """The ratios of observed to predicted time of the latest sessions, and the correction of their intervals."""

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=MAX_SESSIONS)
        self._correction = 0.0

    def __len__(self) -> int:
        return len(self._ratios)

    def add(self, ratio: float) -> None:
        """Add an outcome, and correct the next intervals by whether the previous one contained it."""
        if (count := len(self._ratios)) >= LEAST_SESSIONS:
            missed = float(ratio not in self.estimate(1.0))
            correction = self._correction + CORRECTION_STEP * (1 - reached_confidence(count) - missed)
            self._correction = min(max(correction, -MOST_CORRECTION), MOST_CORRECTION / 2)
        self._ratios.append(ratio)

    def estimate(self, predicted: float) -> Estimate:
        """Estimate a time from its prediction; see the function `estimate`."""
        return estimate(predicted, self._ratios, self._correction)


class QuoteHistory:
    """The outcomes of the latest sessions. Thread-safe."""

    def __init__(self) -> None:
        self._first_token = Ratios()
        self._token = Ratios()
        self._turn = threading.Lock()

    def add(self, predicted: PredictedRequest, first_token_seconds: float, token_seconds: float) -> None:
        """Add the measured times of a session, unless nothing was predicted for it."""
        if predicted.first_token_seconds > 0 and predicted.token_seconds > 0:
            with self._turn:
                self._first_token.add(first_token_seconds / predicted.first_token_seconds)
                self._token.add(token_seconds / predicted.token_seconds)

    def quote(self, chain: Sequence[tuple[PeerId, BlockRange]], predicted: PredictedRequest) -> Quote:
        """Return the quote for a request on `chain` whose times are predicted."""
        with self._turn:
            first = self._first_token.estimate(predicted.first_token_seconds)
            token = self._token.estimate(predicted.token_seconds)
            count = len(self._token)
        return Quote(tuple(chain), predicted.wait_seconds, first, token.inverse, count, reached_confidence(count))


def estimate(predicted: float, ratios: Collection[float], correction: float = 0.0) -> Estimate:
    """Estimate a time from its prediction and the `ratios` of observed to predicted time of earlier sessions.

    If the next ratio is exchangeable with the m earlier ones, it lies between the k-th smallest and the k-th largest
    with probability 1 - 2k / (m + 1); k is the largest that keeps CONFIDENCE, and at least 1.  `correction` is added to
    the missed share 2k / (m + 1).  Where that asks for a rank below 1, the interval is extended beyond the smallest and
    the largest ratio, in proportion to their distance from the median on a logarithmic scale.  O(m log m).
    """
    count = len(ratios)
    if count < LEAST_SESSIONS:
        return Estimate(predicted)
    ascending = sorted(ratios)
    middle = (ascending[(count - 1) // 2] + ascending[count // 2]) / 2
    rank = _rank(count) + correction / 2 * (count + 1)
    k, beyond = max(1, math.floor(rank + 1e-9)), max(0.0, 1 - rank)
    ends = (ascending[k - 1], ascending[count - k])
    low, high = (end * (end / middle) ** beyond if middle > 0 else end for end in ends)
    return Estimate(predicted * middle, predicted * low, predicted * high)


def reached_confidence(count: int) -> float:
    """Return the share of requests inside the uncorrected interval that `estimate` makes of `count` outcomes."""
    return 1 - 2 * _rank(count) / (count + 1) if count >= LEAST_SESSIONS else 1.0


def _rank(count: int) -> int:
    return max(1, math.floor((1 - CONFIDENCE) / 2 * (count + 1) + 1e-9))
