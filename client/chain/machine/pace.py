"""Compares a chain's speed with what its peers announce: when a step is late, and which hop makes the chain slow.

Slowness is bounded in three ways.  The time allowed for a step grows with the observed times, but by a bounded factor
and up to a ceiling, so a peer that always answers just in time cannot stretch its limit.  The time lost against the
announced speed is summed: a chain that has lost `slow_loss_seconds` is slow, and its slowest hop is worth replacing.
So is a hop that takes more than twice its announced time in `slow_steps` steps in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....proto.wire.frames import HopTiming
from ....routing.swarm import PeerId
from ...timing import ChainTiming

_SMOOTHING = 0.1
_FORGETTING = 0.9
"""The lost time decays by this factor with each answer in time."""
_FREE_FACTOR = 2.0
"""Up to this many times the announced time, neither a step nor a hop's part of it counts as slow."""
MAX_DOUBLINGS = 10


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

    def note(
        self,
        predicted_seconds: float,
        observed_seconds: float,
        timings: Sequence[HopTiming],
        offset_seconds: Callable[[PeerId], float],
        hop_seconds: Callable[[PeerId], float] = lambda peer: float("inf"),
    ) -> None:
        """Take in an answer to a step that was sent alone; a peer's clock is `offset_seconds` ahead of this machine's.

        `predicted_seconds` is the announced time of the step, `hop_seconds` that of a peer's part of it.

        A hop's time includes the network time from the hop before it; the remaining time, from and to this client, is
        split equally between the first and the last hop.
        """
        if predicted_seconds > 0:
            self._slowness += _SMOOTHING * (observed_seconds / predicted_seconds - self._slowness)
        weight = _SMOOTHING if self.step_seconds else 1.0
        self.step_seconds += weight * (observed_seconds - self.step_seconds)
        lost = observed_seconds - _FREE_FACTOR * predicted_seconds - self._timing.slow_slack_seconds
        if lost <= 0:
            self._lost_seconds *= _FORGETTING
        else:
            self._lost_seconds += lost
        taken = _hop_seconds(timings, offset_seconds)
        for peer, seconds in taken.items():
            limit = _FREE_FACTOR * hop_seconds(peer) + self._timing.slow_hop_slack_seconds
            self._in_a_row[peer] = self._in_a_row.get(peer, 0) + 1 if seconds > limit else 0
        if lost <= 0 and not any(self._in_a_row.values()):
            return
        for peer, seconds in taken.items():
            self._add(peer, seconds)
        ends = observed_seconds - sum(taken.values())
        for peer in (next(iter(taken)), timings[-1].peer) if taken else ():
            self._add(peer, ends / 2)

    def _add(self, peer: PeerId, seconds: float) -> None:
        self._excess[peer] = _FORGETTING * self._excess.get(peer, 0.0) + max(0.0, seconds)


def _hop_seconds(timings: Sequence[HopTiming], offset_seconds: Callable[[PeerId], float]) -> dict[PeerId, float]:
    """Return each peer's time: from the end of the peer before it (the first: from receiving the step) to its own."""
    taken: dict[PeerId, float] = {}
    left_at: float | None = None
    for timing in timings:
        offset = offset_seconds(timing.peer)
        began_at = timing.received_at - offset if left_at is None else left_at
        left_at = timing.finished_at - offset
        taken[timing.peer] = taken.get(timing.peer, 0.0) + left_at - began_at
    return taken
