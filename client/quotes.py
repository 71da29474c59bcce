"""Quotes: what a request is likely to take, before it begins, and how far earlier quotes were off.

The expected times follow from what peers announce and what was measured of the network.  How far they are off depends
on what neither tells: other sessions, narrow lines, this machine.  So the interval comes from the sessions that have
ended: a quote is off by as much as the predictions for them were.

Where the load changes the next session is not like the last ones, and such an interval is too narrow.  So each outcome
is also held against the interval that those before it gave, and after a miss the next intervals are a little wider,
after a hit a very little narrower: in the long run as many outcomes are missed as should be, whatever the load does
(adaptive conformal inference, Gibbs and Candes, 2021).
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
"""Sessions that are remembered."""
LEAST_SESSIONS = 4
"""Sessions before which nothing is said about how far a quote may be off."""
CONFIDENCE = 0.9
"""The share of requests that should end up inside the interval, as soon as there are enough sessions to tell."""
CORRECTION_STEP = 0.05
"""How much of a miss goes into the next intervals. Twice or half of it hits about as many."""
MOST_CORRECTION = 0.2
"""Bound of the correction of the share that is missed, so that a bad hour is forgotten after dozens of sessions."""


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
        """Tokens per second, from seconds per token."""
        return Estimate(*(1 / x if x > 0 else math.inf for x in (self.expected, self.high, self.low)))


@dataclass(frozen=True, slots=True)
class Quote:
    """The times that a request of one row would get now. Nothing is reserved: the next moment may be another one."""

    chain: tuple[tuple[PeerId, BlockRange], ...]
    wait_seconds: float
    """Until there is room, as peers announce."""
    first_token_seconds: Estimate
    """From the call to the first token, without the wait."""
    tokens_per_second: Estimate
    """Speed of the tokens after it, without guessing ahead, which makes it more."""
    sessions: int
    """Ended sessions that the intervals come from; with less than LEAST_SESSIONS they say nothing."""
    confidence: float
    """The share of requests that the intervals are made for."""


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """The times of one session's steps: of its first one, and from one step of one token per row to the next."""

    prompt_tokens: int = 0
    """Tokens of the first step, which waits for room and opens the chain as well."""
    first_seconds: float = 0.0
    trips: int = 0
    """Steps of one token per row that followed another step at once."""
    total_seconds: float = 0.0
    """From the ends of the steps before these to their ends: with what the client computes between them."""
    last_at: float = 0.0
    """When the last step ended."""

    @property
    def trip_seconds(self) -> float:
        return self.total_seconds / self.trips if self.trips else 0.0

    def after(self, plan: StepPlan, began_at: float, ended_at: float, *, guessed: bool = False) -> SessionTimes:
        """The times with one more step, by any clock; `guessed`: it has no token of the text."""
        if not self.prompt_tokens:
            return SessionTimes(plan.tokens, ended_at - began_at, last_at=ended_at)
        if guessed or plan.tokens != len(plan.rows):  # a prompt, or guesses
            return replace(self, last_at=ended_at)
        took = ended_at - self.last_at
        return replace(self, trips=self.trips + 1, total_seconds=self.total_seconds + took, last_at=ended_at)


class Quoting(Protocol):
    """A swarm that says what a request would take."""

    def quote(self, prompt_tokens: int, new_tokens: int) -> Quote:
        """The times that a request of one row would take now. Raises SwarmError."""


class Ratios:
    """How many times the predicted time it took, of the last sessions, and how well their intervals did."""

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=MAX_SESSIONS)
        self._correction = 0.0

    def __len__(self) -> int:
        return len(self._ratios)

    def add(self, ratio: float) -> None:
        """Note an outcome, and whether the interval before it was wide enough."""
        if (count := len(self._ratios)) >= LEAST_SESSIONS:
            missed = float(ratio not in self.estimate(1.0))
            correction = self._correction + CORRECTION_STEP * (1 - reached_confidence(count) - missed)
            self._correction = min(max(correction, -MOST_CORRECTION), MOST_CORRECTION / 2)
        self._ratios.append(ratio)

    def estimate(self, predicted: float) -> Estimate:
        """A time for which `predicted` was predicted."""
        return estimate(predicted, self._ratios, self._correction)


class QuoteHistory:
    """The outcomes of the last sessions. Written and read in any thread."""

    def __init__(self) -> None:
        self._first_token = Ratios()
        self._token = Ratios()
        self._turn = threading.Lock()

    def add(self, predicted: PredictedRequest, first_token_seconds: float, token_seconds: float) -> None:
        """Note what a session took; one without a prediction is left out."""
        if predicted.first_token_seconds > 0 and predicted.token_seconds > 0:
            with self._turn:
                self._first_token.add(first_token_seconds / predicted.first_token_seconds)
                self._token.add(token_seconds / predicted.token_seconds)

    def quote(self, chain: Sequence[tuple[PeerId, BlockRange]], predicted: PredictedRequest) -> Quote:
        """The quote for a request for which these times are predicted."""
        with self._turn:
            first = self._first_token.estimate(predicted.first_token_seconds)
            token = self._token.estimate(predicted.token_seconds)
            count = len(self._token)
        return Quote(tuple(chain), predicted.wait_seconds, first, token.inverse, count, reached_confidence(count))


def estimate(predicted: float, ratios: Collection[float], correction: float = 0.0) -> Estimate:
    """A time for which `predicted` was predicted, where the earlier ones came out as `ratios` of their predictions.

    If the next one is like the others, it lies between the k-th smallest and the k-th largest of m with a probability
    of 1 - 2k / (m + 1): the largest k that leaves CONFIDENCE is taken, or the first.  `correction` is added to the
    share that this misses; where the first and the last are not far enough apart, the interval goes on beyond them by
    as many times their distance from the middle, in logarithms.
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
    """The share of requests inside the interval that `estimate` makes of so few outcomes."""
    return 1 - 2 * _rank(count) / (count + 1) if count >= LEAST_SESSIONS else 1.0


def _rank(count: int) -> int:
    return max(1, math.floor((1 - CONFIDENCE) / 2 * (count + 1) + 1e-9))
