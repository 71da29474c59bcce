"""Records the clock readings of a session's steps and makes the report from them.

Every answer carries the clock readings of its hops.  Clocks differ, so the network time between two nodes is corrected
by the clock offsets that the client measured with its pings; a hop's queue and compute times need no correction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...proto.wire.frames import HopTiming, WireStep
from ...routing.swarm import PeerId
from ..report import ChainReport, HopReport, Trip
from .machine.events import HopChoice
from .machine.facts import unproven_of

MAX_STEPS = 512
"""Older steps are forgotten."""
_FURTHER_TOKENS = 8
"""Steps of several tokens are computed differently from those of one, so the cost of a further token is an average over
at least this many."""


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    sent_at: float
    answered_at: float
    hops: tuple[HopTiming, ...]


class TimingLog:
    """The clock readings of the latest steps of a session. Written in one thread, read from any."""

    def __init__(self) -> None:
        self.answered_steps = 0
        """The number of answers recorded so far."""
        self._sent: dict[int, tuple[int, float]] = {}
        """Seq of a step under way -> the epoch in which it was last sent, and when."""
        self._answered: set[int] = set()
        """The seqs of answered steps that a repair may send again."""
        self._last_trip: Trip | None = None
        self._steps: deque[_Step] = deque(maxlen=MAX_STEPS)

    def sent(self, step: WireStep, now: float) -> None:
        """Record that a step is sent, at `now` on the client's clock (Unix seconds).

        A repair sends every step of the operations under way again, in a new epoch. Those that are answered already
        count no second time: peers only repeat their kept answers. O(steps under way).
        """
        self._answered = {seq for seq in self._answered if seq > step.acked_seq}
        if step.seq not in self._answered:
            self._sent[step.seq] = step.epoch, now

    def answered(self, step: WireStep, now: float, *, guessed: bool) -> None:
        """Record the answer to a step as it was last sent, at `now` likewise; ignore others. `guessed` as for `add`."""
        epoch, sent_at = self._sent.get(step.seq, (None, now))
        if step.epoch == epoch:
            del self._sent[step.seq]
            self._answered.add(step.seq)
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
        """Record an answer to a step of `tokens` tokens; both times are on the client's clock (Unix seconds).

        `guessed`: the step carried no token of the text, so its time says nothing about a trip of the text.
        """
        if not guessed:
            seconds = max(0.0, answered_at - sent_at)
            # Peers may say anything, but what they have spent is a part of this.
            queue_seconds = sum(max(0.0, hop.started_at - hop.received_at) for hop in timings)
            compute_seconds = sum(max(0.0, hop.finished_at - hop.started_at) for hop in timings)
            self._last_trip = Trip(
                tokens,
                seconds,
                queue_seconds=min(seconds, queue_seconds),
                compute_seconds=min(seconds, compute_seconds),
                crowded=any(hop.crowded for hop in timings),
            )
        self._steps.append(_Step(self.answered_steps, sent_at, answered_at, timings))
        self.answered_steps += 1

    def last_trip(self, predict_seconds: Callable[[int], float]) -> Trip | None:
        """Return the times of the last answered step of the text; None before the first.

        `predict_seconds` predicts the time of a step with the given number of tokens.
        """
        trip = self._last_trip
        if trip is None:
            return None
        further = max(trip.tokens - 1, _FURTHER_TOKENS)
        predicted = predict_seconds(1)
        added = max(0.0, predict_seconds(1 + further) - predicted)
        return replace(trip, row_seconds=added / further, predicted_seconds=predicted)

    def report(
        self,
        choices: Sequence[HopChoice],
        offset_seconds: Callable[[PeerId], float],
        since: int = 0,
    ) -> ChainReport:
        """Return the means over the steps that went through exactly this chain, without the first `since` answers.

        `offset_seconds` is a peer's clock minus the client's. O(steps x hops).
        """
        chain = tuple((choice.peer, choice.blocks) for choice in choices)
        peers = [peer for peer, _ in chain]
        steps = [
            step for step in tuple(self._steps) if step.number >= since and [hop.peer for hop in step.hops] == peers
        ]
        if not steps or not peers:
            return ChainReport(chain, unproven_seconds=unproven_of(choices))
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
        return ChainReport(chain, hops, network[-1] / count, seconds / count, count, unproven_of(choices))
