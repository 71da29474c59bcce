"""When reserved room is expected to become free, and what that means for the sessions that wait.

Pure functions over numbers that the peer measures: how fast a session fills its reservation (`Pace`), hence when it
is expected to end; how long waiting sessions will hold theirs (`HoldTimes`); when each session is admitted, if the
queue is served strictly in order (`serve_in_order`); and the room that is left for a newcomer (`Room`), which the peer
announces.

A session is assumed to end when it has filled its whole reservation.  Most sessions end earlier, so the announcements
are on the safe side.  Times are Unix seconds, room is KV tokens x blocks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..releases import Room, merge_releases
from ..swarm import KvRelease

SMOOTHING = 0.1
"""The weight of a new observation in a running average, once there are enough observations."""
DECODE_TOKENS = 16
"""A step with more new tokens per row than this is a prefill, and says nothing about the pace of decoding."""
TURNOVER_COUNT = 8
"""Number of admissions after which the measured speed of the queue counts as much as the forecast."""
MOST_TIMES_THE_USUAL_PROMPT = 4.0
"""Largest factor by which a longer prompt scales the mean prompt time, because that may be a wait elsewhere."""
MOST_USED_SHARE = 10.0
"""Largest `used_share` that is learnt: a session idle for hours between two turns must not stand for later ones."""


@dataclass(frozen=True, slots=True)
class Average:
    """A running mean: of all observations at first, then with exponential forgetting."""

    value: float
    count: int = 0
    """Observations so far; while there are none, `value` is a guess."""

    def after(self, observed: float) -> Average:
        """The average with one more observation."""
        weight = max(SMOOTHING, 1 / (self.count + 1))
        return Average(self.value + weight * (observed - self.value), self.count + 1)


@dataclass(frozen=True, slots=True)
class Pace:
    """A session's progress, and the time that one token of its reservation takes."""

    seconds_per_token: Average
    at_seconds: float
    """The moment of the last step."""
    tokens: int = 0
    """Tokens in the cache after that step, all rows together."""
    rows: int = 1
    """Rows after that step."""
    prompt_tokens: int = 0
    """Tokens in the cache before the first token was decoded."""
    prompt_end_seconds: float = 0.0
    """When the last of these tokens was computed; meaningless while there are none."""

    def after(self, tokens: int, rows: int, now: float) -> Pace:
        """The pace after a step that leaves `tokens` tokens in `rows` rows."""
        grown = tokens - self.tokens
        average = self.seconds_per_token
        if not self.tokens or grown > DECODE_TOKENS * rows:
            later = replace(self, at_seconds=now, tokens=tokens, rows=rows)
            return later if average.count else replace(later, prompt_tokens=tokens, prompt_end_seconds=now)
        if grown > 0:
            average = average.after(max(0.0, now - self.at_seconds) / grown)
        return replace(self, seconds_per_token=average, at_seconds=now, tokens=tokens, rows=rows)

    @property
    def is_known(self) -> bool:
        """Whether a token has been decoded."""
        return self.seconds_per_token.count > 0

    @property
    def position_seconds(self) -> float:
        """Seconds for one more token in every row."""
        return self.seconds_per_token.value * self.rows

    def end_seconds(self, kv_tokens: int, now: float) -> float:
        """When a session that reserves `kv_tokens` tokens will have used them."""
        return now + max(0, kv_tokens - self.tokens) * self.seconds_per_token.value


@dataclass(frozen=True, slots=True)
class HoldTimes:
    """How long sessions hold their room, estimated from those that have ended.

    Hundreds of prompt tokens take as long as dozens of answer tokens, so a time per reserved token says little about a
    session whose answer is longer than those before.  If a session states the length of its prompt, prompt and answer
    are estimated separately.
    """

    reserved_token_seconds: Average
    """Per token of a reservation, whatever it was used for."""
    prompt_tokens: Average
    """Length of a prompt."""
    prompt_seconds: Average
    """From the admission to the end of the prompt, including the wait for the next peer's room."""
    position_seconds: Average
    """A further token in every row."""
    used_share: Average = Average(1.0)
    """Time from the prompt's end to the session's, relative to what all tokens reserved for the answer would have
    taken; most sessions end earlier."""

    @classmethod
    def guessed(cls, token_seconds: float) -> HoldTimes:
        """The initial estimate, before any session has ended."""
        return cls(Average(token_seconds), Average(1.0), Average(token_seconds), Average(token_seconds))

    def after(self, pace: Pace, kv_tokens: int, since: float, now: float) -> HoldTimes:
        """The estimate after one more session has ended now; it held `kv_tokens` tokens from `since` on."""
        reserved = self.reserved_token_seconds.after(max(0.0, now - since) / kv_tokens)
        if not pace.is_known:
            return replace(self, reserved_token_seconds=reserved)
        answer_seconds = max(0, kv_tokens - pace.prompt_tokens) * pace.seconds_per_token.value
        used = (now - pace.prompt_end_seconds) / answer_seconds if answer_seconds > 0 else 1.0
        prompt_seconds = max(0.0, pace.prompt_end_seconds - since)
        return HoldTimes(
            reserved,
            self.prompt_tokens.after(pace.prompt_tokens),
            self.prompt_seconds.after(prompt_seconds),
            self.position_seconds.after(pace.position_seconds),
            self.used_share.after(min(max(used, 0.0), MOST_USED_SHARE)),
        )

    def expected(self, kv_tokens: int, prompt_tokens: int, rows: int, position_seconds: float | None) -> float:
        """Seconds for which a session will hold `kv_tokens` tokens in at most `rows` rows.

        `prompt_tokens`: the part of them that is its prompt; 0: not stated.  `position_seconds`: the present time of a
        token in every row, None if no session decodes now.
        """
        if not prompt_tokens:
            return kv_tokens * self.reserved_token_seconds.value
        pace = self.position_seconds.value if position_seconds is None else position_seconds
        positions = max(0, kv_tokens - prompt_tokens) / rows
        return self._expected_prompt(prompt_tokens) + positions * pace * self.used_share.value

    def _expected_prompt(self, tokens: int) -> float:
        times = tokens / self.prompt_tokens.value
        known = self.prompt_seconds.count > 0
        return self.prompt_seconds.value * (min(times, MOST_TIMES_THE_USUAL_PROMPT) if known else times)


@dataclass(frozen=True, slots=True)
class Turnover:
    """The measured speed at which a queue is served while sessions wait in it.

    It captures effects that no forecast at a single peer can: sessions hold room here while they wait for room at the
    next peer of their chains, and others end early.  It restarts whenever a queue forms.
    """

    interval: Average = Average(0.0)
    """Seconds between two admissions."""
    since: float = 0.0
    """The last admission, or the moment when the queue formed."""

    def admitted(self, now: float) -> Turnover:
        """The turnover after one more admission."""
        return Turnover(self.interval.after(max(0.0, now - self.since)), now)

    def corrected(self, starts: Sequence[float], now: float) -> list[float]:
        """When the waiting sessions are admitted, in the order of the queue, given the forecast `starts`."""
        share = self.interval.count / (self.interval.count + TURNOVER_COUNT)
        by_turnover = (max(now, self.since + place * self.interval.value) for place in range(1, len(starts) + 1))
        return [(1 - share) * start + share * seen for start, seen in zip(starts, by_turnover, strict=True)]


@dataclass(frozen=True, slots=True)
class Demand:
    """The room that a waiting session will take, and how long it is expected to hold it."""

    room: int
    held_seconds: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """When each waiting session starts, in the order of the queue, and the room that is left for newcomers."""

    starts: tuple[float, ...]
    rest: Room


def serve_in_order(
    now: float, free: int, places: int, ends: Iterable[KvRelease], waiting: Sequence[Demand], max_releases: int
) -> Schedule:
    """Simulate the queue: each session starts when there is room and a place for it, and never before the one ahead.

    `places` is the number of further sessions that the peer accepts.  No demand exceeds the peer's whole room.
    O((n + w) log(n + w)) for n ends and w waiting sessions.
    """
    running = [(end.at_seconds, end.tokens) for end in ends]
    heapq.heapify(running)
    starts = []
    start = now
    for demand in waiting:
        while running and (free < demand.room or places < 1):
            at, tokens = heapq.heappop(running)
            start = max(start, at)
            free, places = free + tokens, places + 1
        starts.append(start)
        free, places = free - demand.room, places - 1
        heapq.heappush(running, (start + demand.held_seconds, demand.room))
    while running and (places < 1 or free < 0):
        at, tokens = heapq.heappop(running)
        start = max(start, at)
        free, places = free + tokens, places + 1
    later = [KvRelease(max(start, at), tokens) for at, tokens in sorted(running)]
    if start > now:
        # The waiting sessions go first, whatever becomes free in the meantime.
        later, free = [KvRelease(start, max(0, free)), *later], 0
    return Schedule(tuple(starts), Room(max(0, free), merge_releases(later, max_releases)))


@dataclass(frozen=True, slots=True)
class TimeAverage:
    """The mean of a number over the last `window_seconds`, with older values fading; at first over the time so far."""

    window_seconds: float
    at_seconds: float
    value: float = 0.0
    """The number since `at_seconds`."""
    total: float = 0.0
    weight: float = 0.0
    """The weight of the time so far, at most 1."""

    def after(self, value: float, now: float) -> TimeAverage:
        """The average once the number is `value` from now on."""
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
