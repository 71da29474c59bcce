"""Where a session's time went: queue, compute and network, per hop.

Every answer carries the clock readings of its hops.  Clocks differ, so the time on the way between two nodes uses the
clock offsets that the client measured with its pings; a hop's queue and compute times need no offset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...proto.wire.frames import HopTiming
from ...routing.swarm import BlockRange, PeerId

_MAX_STEPS = 512


@dataclass(frozen=True, slots=True)
class HopReport:
    """Mean seconds per step on one hop; `network_seconds` is the way from the node before it."""

    peer: PeerId
    blocks: BlockRange
    network_seconds: float
    queue_seconds: float
    compute_seconds: float
    numeric_format: str = ""
    """What the peer computes in, as it announces."""


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Mean seconds per step over the last steps that this chain answered."""

    hops: tuple[HopReport, ...]
    return_seconds: float
    """The way from the last hop back to the client."""
    step_seconds: float
    """The whole step, as the client saw it."""
    steps: int


class TimingLog:
    """The clock readings of the last steps of a session."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, tuple[HopTiming, ...]]] = deque(maxlen=_MAX_STEPS)

    def add(self, sent_at: float, answered_at: float, timings: tuple[HopTiming, ...]) -> None:
        """Note one answer; the two moments are of the client's clock (Unix seconds)."""
        self._steps.append((sent_at, answered_at, timings))

    def report(
        self,
        chain: Sequence[tuple[PeerId, BlockRange]],
        offset_seconds: Callable[[PeerId], float],
        numeric_formats: Sequence[str],
    ) -> ChainReport:
        """The means over the steps that went through exactly this chain; `numeric_formats` has one for each hop."""
        peers = [peer for peer, _ in chain]
        steps = [step for step in self._steps if [timing.peer for timing in step[2]] == peers]
        if not steps:
            return ChainReport((), 0.0, 0.0, 0)
        network = [0.0] * (len(peers) + 1)
        queue = [0.0] * len(peers)
        compute = [0.0] * len(peers)
        for sent_at, answered_at, timings in steps:
            left_at = sent_at
            for index, timing in enumerate(timings):
                offset = offset_seconds(timing.peer)
                network[index] += timing.received_at - offset - left_at
                queue[index] += timing.started_at - timing.received_at
                compute[index] += timing.finished_at - timing.started_at
                left_at = timing.finished_at - offset
            network[-1] += answered_at - left_at
        count = len(steps)
        hops = tuple(
            HopReport(
                peer, blocks, network[index] / count, queue[index] / count, compute[index] / count, numeric_format
            )
            for index, ((peer, blocks), numeric_format) in enumerate(zip(chain, numeric_formats, strict=True))
        )
        return ChainReport(hops, network[-1] / count, sum(s[1] - s[0] for s in steps) / count, count)
