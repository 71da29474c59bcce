"""The yield mode: pauses between steps while the machine's owner needs it (`swarm-peer --nice`).

The load of other programs is the machine's processor time minus this process's, over the last second.  While they take
half of the machine or more, the peer computes only in the share that they leave; it stops yielding when they are below
a third, so that it does not start and stop all the time.  Sessions always go on, at a tenth of the speed or more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil

from ..engine.step_record import StepRecord
from ..timing import PeerTiming

YIELD_FROM = 0.5
YIELD_UNTIL = 0.33
LONGEST_PAUSE_STEPS = 9.0
"""Pauses are at most this many times as long as the step before."""
NICENESS = 10


@dataclass(frozen=True, slots=True)
class CpuReading:
    """Processor seconds since some moment."""

    at_seconds: float
    machine: float
    """All processes on all cores."""
    own: float


def others_share(before: CpuReading, after: CpuReading, cores: int) -> float:
    """The share of the machine that other programs used between two readings, 0 to 1."""
    elapsed = after.at_seconds - before.at_seconds
    if elapsed <= 0:
        return 0.0
    others = (after.machine - before.machine) - (after.own - before.own)
    return min(1.0, max(0.0, others / (elapsed * cores)))


def pause_seconds(share: float, step_seconds: float, longest_seconds: float) -> float:
    """The pause after a step that leaves other programs the `share` of the machine that they use."""
    steps = min(share / max(1e-9, 1 - share), LONGEST_PAUSE_STEPS)
    return min(steps * step_seconds, longest_seconds)


class OwnerLoad:
    """Samples the machine's load and decides how long to pause. For the engine's thread only."""

    def __init__(
        self, read: Callable[[], CpuReading], clock: Callable[[], float], cores: int, timing: PeerTiming
    ) -> None:
        """`clock` is the clock of the readings."""
        self._read = read
        self._clock = clock
        self._cores = cores
        self._timing = timing
        self._before = read()
        self._share = 0.0
        self._yields = False
        self._step_seconds = 0.0

    def observe(self, step: StepRecord) -> StepRecord:
        """Take in a step; return it as sessions see it, with the pause that follows."""
        self._step_seconds = step.seconds
        return replace(step, seconds=step.seconds + self.pause())

    def pause(self) -> float:
        """Seconds to wait before the next step; 0 while the machine is free."""
        if self._clock() - self._before.at_seconds >= self._timing.owner_sample_seconds:
            reading = self._read()
            self._share = others_share(self._before, reading, self._cores)
            self._before = reading
            self._yields = self._share >= (YIELD_UNTIL if self._yields else YIELD_FROM)
        if not self._yields:
            return 0.0
        return pause_seconds(self._share, self._step_seconds, self._timing.owner_pause_seconds)


def read_cpu() -> CpuReading:
    """Take a reading now."""
    times = psutil.cpu_times()
    # "user" and "nice" include the guests of virtual machines.
    machine = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return CpuReading(time.monotonic(), machine, time.process_time())
