"""Compares a chain's speed with what its peers announce: when a step is late, and which hop makes the chain slow.

Slowness is bounded in three ways.  The time allowed for a step grows with the observed times, but by a bounded factor
and up to a ceiling, so a peer that always answers just in time cannot stretch its limit.  The time lost against the
announced speed is summed: a chain that has lost `slow_loss_seconds` is slow, and its slowest hop is worth replacing.
So is a hop that takes more than twice its announced time in `slow_steps` steps in a row.

Steps that are under way together wait for each other at the hops.  These waits count neither as a hop's time nor as the
step's.  Peers say how long they were, but this machine's clock bounds them: a step waits for the one before it at most
while both are under way, so no peer can hide the time between two answers.  And no moment is lost twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ....proto.wire.frames import HopTiming
from ....routing.swarm import PeerId
from ...timing import ChainTiming

_SMOOTHING = 0.1
_FORGETTING = 0.9
"""The lost time decays by this factor with each answer in time."""
_FREE_FACTOR = 2.0
"""Up to this many times the announced time, neither a step nor a hop's part of it counts as slow."""
MAX_DOUBLINGS = 10


@dataclass(frozen=True, slots=True)
class AnsweredStep:
    """The clock readings of a step; a peer's clock is `offset_seconds` ahead of this machine's."""

    sent_at: float
    answered_at: float
    timings: Sequence[HopTiming]
    offset_seconds: Callable[[PeerId], float]


@dataclass(frozen=True, slots=True)
class _StepBefore:
    """The step that was answered last, by this machine's clock."""

    answered_at: float = -math.inf
    left_at: Mapping[PeerId, float] = field(default_factory=dict)
    """When each peer had finished it."""


class StepPace:
    """The pace of one chain; a changed chain starts with a new one."""

    def __init__(self, timing: ChainTiming, slow_hops_left: int = 0) -> None:
        """`slow_hops_left`: how many slow hops the session has replaced so far."""
        self._timing = timing
        self._slow_steps = timing.slow_steps * 2 ** min(slow_hops_left, MAX_DOUBLINGS)
        self._in_a_row: dict[PeerId, int] = {}
        """How many slow steps in a row each hop has had."""
        self._slowness = 1.0
        self._lost_seconds = 0.0
        self._excess: dict[PeerId, float] = {}
        self._before = _StepBefore()
        self.step_seconds = 0.0
        """Smoothed time of a step; 0 before the first one."""

    def allowed_seconds(self, predicted_seconds: float) -> float:
        """Return how long an answer may take before the chain is examined."""
        timing = self._timing
        factor = timing.late_factor * min(max(1.0, self._slowness), timing.max_slowness)
        return timing.late_seconds + min(factor * predicted_seconds, timing.late_ceiling_seconds)

    @property
    def slow_peer(self) -> PeerId | None:
        """The peer that makes the chain slow; None if the chain is not slow."""
        slow = [peer for peer, steps in self._in_a_row.items() if steps >= self._slow_steps]
        if slow:
            return max(sorted(slow), key=lambda peer: self._excess.get(peer, 0.0))
        if self._lost_seconds < self._timing.slow_loss_seconds or not self._excess:
            return None
        return max(sorted(self._excess), key=lambda peer: self._excess[peer])

    def forgive(self) -> None:
        """Reset the losses, because no peer is faster: the chain is slow again only after losing as much once more."""
        self._lost_seconds = 0.0
        self._in_a_row.clear()

    def note(self, step: AnsweredStep, predicted_seconds: float, hop_seconds: Callable[[PeerId], float]) -> None:
        """Take in an answered step.

        `predicted_seconds` is the announced time of the step, `hop_seconds` that of a peer's part of it.

        A hop's time includes the network time from the hop before it; the remaining time, from and to this client, is
        split equally between the first and the last hop.
        """
        before = self._begin_after(step)
        together_seconds = max(0.0, before.answered_at - step.sent_at)
        taken, waited_seconds = _hop_seconds(step, before.left_at if together_seconds else {})
        passed_seconds = step.answered_at - step.sent_at
        observed_seconds = passed_seconds - min(waited_seconds, together_seconds)
        if predicted_seconds > 0:
            self._slowness += _SMOOTHING * (observed_seconds / predicted_seconds - self._slowness)
        weight = _SMOOTHING if self.step_seconds else 1.0
        self.step_seconds += weight * (observed_seconds - self.step_seconds)
        lost = observed_seconds - _FREE_FACTOR * predicted_seconds - self._timing.slow_slack_seconds
        if lost <= 0:
            self._lost_seconds *= _FORGETTING
        else:
            self._lost_seconds += min(lost, passed_seconds - together_seconds)
        for peer, seconds in taken.items():
            limit = _FREE_FACTOR * hop_seconds(peer) + self._timing.slow_hop_slack_seconds
            self._in_a_row[peer] = self._in_a_row.get(peer, 0) + 1 if seconds > limit else 0
        if lost <= 0 and not any(self._in_a_row.values()):
            return
        for peer, seconds in taken.items():
            self._add(peer, seconds)
        ends = observed_seconds - sum(taken.values())
        for peer in (next(iter(taken)), step.timings[-1].peer) if taken else ():
            self._add(peer, ends / 2)

    def pass_over(self, step: AnsweredStep) -> None:
        """Take in a step of a prompt: its own time says nothing, but later steps may have waited for it."""
        self._begin_after(step)

    def _begin_after(self, step: AnsweredStep) -> _StepBefore:
        """Make `step` the one before the next; return the one before it."""
        before = self._before
        left_at = {
            timing.peer: min(timing.finished_at - step.offset_seconds(timing.peer), step.answered_at)
            for timing in step.timings
        }
        self._before = _StepBefore(step.answered_at, left_at)
        return before

    def _add(self, peer: PeerId, seconds: float) -> None:
        self._excess[peer] = _FORGETTING * self._excess.get(peer, 0.0) + max(0.0, seconds)


def _hop_seconds(step: AnsweredStep, free_at: Mapping[PeerId, float]) -> tuple[dict[PeerId, float], float]:
    """Return each peer's time: from the end of the peer before it (the first: from receiving the step) to its own.

    It is without the wait for the step before this one, which the peers had finished at `free_at`; also return the sum
    of these waits.
    """
    taken: dict[PeerId, float] = {}
    waited_seconds, left_at = 0.0, -math.inf
    for timing in step.timings:
        offset = step.offset_seconds(timing.peer)
        received_at = timing.received_at - offset
        began_at = left_at if taken else received_at
        left_at = timing.finished_at - offset
        wait = max(0.0, free_at.get(timing.peer, -math.inf) - max(began_at, received_at))
        taken[timing.peer] = taken.get(timing.peer, 0.0) + left_at - began_at - wait
        waited_seconds += wait
    return taken, waited_seconds
