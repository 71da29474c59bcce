"""The clock readings of a session's steps, and the report that they give.

Every answer carries the clock readings of its hops.  Clocks differ, so the time on the way between two nodes uses the
clock offsets that the client measured with its pings; a hop's queue and compute times need no offset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...proto.wire.frames import HopTiming
from ...routing.swarm import PeerId
from ..report import ChainReport, HopReport
from .machine.events import HopChoice

MAX_STEPS = 512
"""Older steps are forgotten."""


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
        self._steps: deque[_Step] = deque(maxlen=MAX_STEPS)

    def add(self, sent_at: float, answered_at: float, timings: tuple[HopTiming, ...]) -> None:
        """Note one answer; the two moments are of the client's clock (Unix seconds)."""
        self._steps.append(_Step(self.answered_steps, sent_at, answered_at, timings))
        self.answered_steps += 1

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
