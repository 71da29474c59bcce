"""The clock readings of a session's steps, and the report that they give.

Every answer carries the clock readings of its hops.  Clocks differ, so the time on the way between two nodes uses the
clock offsets that the client measured with its pings; a hop's queue and compute times need no offset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...proto.wire.frames import HopTiming, WireStep
from ...routing.swarm import PeerId
from ..report import ChainReport, HopReport, Trip
from .machine.events import HopChoice

MAX_STEPS = 512
"""Older steps are forgotten."""
_FURTHER_TOKENS = 8
"""A step of some tokens is another kind of step than that of one: a further token costs its share of the difference."""


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    sent_at: float
    answered_at: float
    hops: tuple[HopTiming, ...]


class TimingLog:
    """The clock readings of the last steps of a session. Written in one thread, read in any."""

    def __init__(self) -> None:
        self.answered_steps = 0
        """The number of answers that were noted."""
        self._sent_at: dict[int, float] = {}
        """By the steps under way."""
        self._last_trip: Trip | None = None
        self._steps: deque[_Step] = deque(maxlen=MAX_STEPS)

    def sent(self, seq: int, now: float) -> None:
        """A step leaves, at a moment of the client's clock (Unix seconds); it may leave again after a repair."""
        self._sent_at[seq] = now

    def answered(self, step: WireStep, now: float, *, guessed: bool) -> None:
        """Its first answer is here; `guessed` as for `add`."""
        sent_at = self._sent_at.pop(step.seq, None)
        if sent_at is not None:
            self.add(sent_at, now, step.timings, step.plan.tokens, guessed=guessed)

    def add(
        self,
        sent_at: float,
        answered_at: float,
        timings: tuple[HopTiming, ...],
        tokens: int = 1,
        *,
        guessed: bool = False,
    ) -> None:
        """Note one answer to a step of `tokens` tokens; the two moments are of the client's clock (Unix seconds).

        `guessed`: it had no token of the text, and what it took says nothing about one.
        """
        if not guessed:
            self._last_trip = Trip(
                tokens,
                answered_at - sent_at,
                queue_seconds=sum(hop.started_at - hop.received_at for hop in timings),
                compute_seconds=sum(hop.finished_at - hop.started_at for hop in timings),
                crowded=any(hop.crowded for hop in timings),
            )
        self._steps.append(_Step(self.answered_steps, sent_at, answered_at, timings))
        self.answered_steps += 1

    def last_trip(self, predict_seconds: Callable[[int], float]) -> Trip | None:
        """The times of the last answer to a step of the text; None before the first.

        `predict_seconds`: of a step of that many tokens.
        """
        trip = self._last_trip
        if trip is None:
            return None
        further = max(trip.tokens - 1, _FURTHER_TOKENS)
        added = max(0.0, predict_seconds(1 + further) - predict_seconds(1))
        return replace(trip, row_seconds=added / further)

    def report(
        self,
        choices: Sequence[HopChoice],
        offset_seconds: Callable[[PeerId], float],
        since: int = 0,
    ) -> ChainReport:
        """The means over the steps that went through exactly this chain, without the first `since` answers.

        O(steps x hops).
        """
        chain = tuple((choice.peer, choice.blocks) for choice in choices)
        peers = [peer for peer, _ in chain]
        steps = [
            step for step in tuple(self._steps) if step.number >= since and [hop.peer for hop in step.hops] == peers
        ]
        if not steps or not peers:
            return ChainReport(chain)
        network = [0.0] * (len(peers) + 1)
        queue = [0.0] * len(peers)
        compute = [0.0] * len(peers)
        for step in steps:
            left_at = step.sent_at
            for index, timing in enumerate(step.hops):
                offset = offset_seconds(timing.peer)
                network[index] += timing.received_at - offset - left_at
                queue[index] += timing.started_at - timing.received_at
                compute[index] += timing.finished_at - timing.started_at
                left_at = timing.finished_at - offset
            network[-1] += step.answered_at - left_at
        count = len(steps)
        hops = tuple(
            HopReport(
                choice.peer,
                choice.blocks,
                network[index] / count,
                queue[index] / count,
                compute[index] / count,
                choice.numeric_format,
                choice.weights,
            )
            for index, choice in enumerate(choices)
        )
        seconds = sum(step.answered_at - step.sent_at for step in steps)
        return ChainReport(chain, hops, network[-1] / count, seconds / count, count)
