"""How fast a chain answers against what its peers announce: when a step is late, and which hop makes the chain slow.

Slowness is bounded in two ways.  What a step may take grows with what was observed, but by a bounded factor and up to a
ceiling: a peer that always answers just in time cannot raise the time that it is given.  And the time lost against the
announced speed is added up: a chain that has lost `slow_loss_seconds` is slow, and its slowest hop should be left if
another peer would be faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....proto.wire.frames import HopTiming
from ....routing.swarm import PeerId
from ...timing import ChainTiming

_SMOOTHING = 0.1
_FORGETTING = 0.9
"""The share of the lost time that an answer in time leaves."""
_FREE_FACTOR = 2.0
"""A step that takes this many times what was announced loses nothing."""


class StepPace:
    """The pace of one chain; a changed chain starts with a new one."""

    def __init__(self, timing: ChainTiming) -> None:
        self._timing = timing
        self._slowness = 1.0
        self._lost_seconds = 0.0
        self._excess: dict[PeerId, float] = {}
        self.step_seconds = 0.0
        """Duration of a step, smoothed; 0 before the first one."""

    def allowed_seconds(self, predicted_seconds: float) -> float:
        """How long an answer may take before the chain is examined."""
        timing = self._timing
        factor = timing.late_factor * min(max(1.0, self._slowness), timing.max_slowness)
        return timing.late_seconds + min(factor * predicted_seconds, timing.late_ceiling_seconds)

    @property
    def slow_peer(self) -> PeerId | None:
        """The peer that makes the chain slow, if it is slow."""
        if self._lost_seconds < self._timing.slow_loss_seconds or not self._excess:
            return None
        return max(sorted(self._excess), key=lambda peer: self._excess[peer])

    def forgive(self) -> None:
        """Nobody is faster: look again only after as much time is lost once more."""
        self._lost_seconds = 0.0

    def note(
        self,
        predicted_seconds: float,
        observed_seconds: float,
        timings: Sequence[HopTiming],
        offset_seconds: Callable[[PeerId], float],
    ) -> None:
        """Take in an answer to a step that was sent alone; a peer's clock is `offset_seconds` ahead of this machine's.

        The way to a hop is counted as the hop's; what is left over is the way from and to this client, and is halved
        between the first and the last hop.
        """
        if predicted_seconds > 0:
            self._slowness += _SMOOTHING * (observed_seconds / predicted_seconds - self._slowness)
        weight = _SMOOTHING if self.step_seconds else 1.0
        self.step_seconds += weight * (observed_seconds - self.step_seconds)
        lost = observed_seconds - _FREE_FACTOR * predicted_seconds - self._timing.slow_slack_seconds
        if lost <= 0:
            self._lost_seconds *= _FORGETTING
            return
        self._lost_seconds += lost
        if not timings:
            return
        moments = [
            (timing.peer, timing.received_at - offset, timing.finished_at - offset)
            for timing in timings
            for offset in [offset_seconds(timing.peer)]
        ]
        left_at = moments[0][1]
        for peer, _, finished_at in moments:
            self._add(peer, finished_at - left_at)
            left_at = finished_at
        ends = observed_seconds - (left_at - moments[0][1])
        for peer in (moments[0][0], moments[-1][0]):
            self._add(peer, ends / 2)

    def _add(self, peer: PeerId, seconds: float) -> None:
        self._excess[peer] = _FORGETTING * self._excess.get(peer, 0.0) + max(0.0, seconds)
