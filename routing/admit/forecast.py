"""When reserved room is expected to become free, and what that means for the sessions that wait.

Pure functions over numbers that the peer measures: how fast a session fills its reservation (`Pace`), hence when it
is expected to end; how long those that wait will hold theirs (`HoldTimes`); which session is admitted when, if the
queue is served strictly in order (`serve_in_order`); and what is left for a newcomer (`Room`), which is what the peer
announces.

A session is taken to end when it has filled its whole reservation.  Most sessions end earlier, so the announcements
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
"""The share of a new observation in a running average, once there are enough of them."""
DECODE_TOKENS = 16
"""A step with more new tokens per row than this is a prefill, and says nothing about the pace of decoding."""
TURNOVER_COUNT = 8
"""Admissions after which how fast the queue was served counts as much as looking ahead."""
MOST_TIMES_THE_USUAL_PROMPT = 4.0
"""A short prompt may have taken long because it waited elsewhere; that is not multiplied by hundreds for a long one."""
MOST_USED_SHARE = 10.0
"""A session that rests for hours between two turns must not stand for those that come."""


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
    """How far a session is, and how long one token of its reservation takes."""

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
    """When the last of them was computed; means nothing while there are none."""

    def after(self, tokens: int, rows: int, now: float) -> Pace:
        """The pace after a step that has left `tokens` tokens in `rows` rows."""
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
        """How long a further token in every row takes."""
        return self.seconds_per_token.value * self.rows

    def end_seconds(self, kv_tokens: int, now: float) -> float:
        """When a session that reserves `kv_tokens` tokens will have used them."""
        return now + max(0, kv_tokens - self.tokens) * self.seconds_per_token.value


@dataclass(frozen=True, slots=True)
class HoldTimes:
    """How long sessions hold their room, from those that have ended.

    A prompt takes seconds for hundreds of tokens and an answer seconds for dozens, so that a time per reserved token
    says little of a session whose answer is longer than those before it.  Where a session says how long its prompt is,
    the two are estimated apart.
    """

    reserved_token_seconds: Average
    """Per token of a reservation, whatever it was used for."""
    prompt_tokens: Average
    """Length of a prompt."""
    prompt_seconds: Average
    """From the admission to the end of the prompt, which contains the wait for the next peer's room."""
    position_seconds: Average
    """A further token in every row."""
    used_share: Average = Average(1.0)
    """Part of the time that the tokens reserved for the answer would have taken: most sessions end earlier."""

    @classmethod
    def guessed(cls, token_seconds: float) -> HoldTimes:
        """Before any session has ended."""
        return cls(Average(token_seconds), Average(1.0), Average(token_seconds), Average(token_seconds))

    def after(self, pace: Pace, kv_tokens: int, since: float, now: float) -> HoldTimes:
        """With one more session that has ended now: it held `kv_tokens` tokens, from `since` on."""
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

        `prompt_tokens`: of these, those of its prompt; 0: not said.  `position_seconds`: the present time of a token in
        every row, None where nobody decodes now.
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
    """How fast a queue is served while sessions wait in it.

    It says what no look ahead at one peer can: that sessions hold room here while they wait for it at the next peer of
    their chains, and that others end early.  It begins anew with every crowd.
    """

    interval: Average = Average(0.0)
    """Seconds between two admissions."""
    since: float = 0.0
    """The last admission, or the moment from which somebody waits."""

    def admitted(self, now: float) -> Turnover:
        """With one more session that was let in."""
        return Turnover(self.interval.after(max(0.0, now - self.since)), now)

    def corrected(self, starts: Sequence[float], now: float) -> list[float]:
        """When the sessions of the queue are let in, in its order, where looking ahead says `starts`."""
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
    """Play the queue: each session starts when there is room and a place for it, and never before the one ahead.

    `places` is the number of further sessions that the peer takes.  No demand exceeds the peer's whole room.
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
    """The mean of a number over the last `window_seconds`, older values fading; at first over the time so far."""

    window_seconds: float
    at_seconds: float
    value: float = 0.0
    """The number since `at_seconds`."""
    total: float = 0.0
    weight: float = 0.0
    """The weight of all time so far, at most 1."""

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
