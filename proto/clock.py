"""The time that nodes tell each other, from a clock of the machine that may be set while a node runs.

Others judge records, calls and hellos by their own clocks.  When the machine's clock is set, either it was wrong before
(a first peer started with it), or it is wrong now, or it alone went on while the machine did not; which one only the
clocks of others can tell.  Until they are asked, time goes on as before, by a clock that nobody sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .wire.timing import CLOCK_STEP_SECONDS


def elapsed_seconds() -> float:
    """A clock that nobody sets; it goes on while the machine sleeps, on systems that have such a clock."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


class SteadyClock:
    """Unix time in seconds, when called: that of the machine, but without the moments at which somebody sets it.

    Small corrections are followed, and large ones (`set_by_seconds`) once it is decided that they are right.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = elapsed_seconds,
        step_seconds: float = CLOCK_STEP_SECONDS,
    ) -> None:
        """`wall` gives Unix seconds, `elapsed` seconds of a clock that nobody sets."""
        self._wall = wall
        self._elapsed = elapsed
        self._step_seconds = step_seconds
        self._began = wall() - elapsed()

    def __call__(self) -> float:
        elapsed = self._elapsed()
        if self.set_by_seconds == 0.0:
            self._began = self._wall() - elapsed
        return self._began + elapsed

    def machine(self) -> float:
        """The machine's clock as it is. Others are told this one, so that all follow when all are corrected."""
        return self._wall()

    @property
    def set_by_seconds(self) -> float:
        """By how much the machine's clock was set, and this one does not follow; below 0: back. 0: they agree."""
        step = self._wall() - self._elapsed() - self._began
        return step if abs(step) > self._step_seconds else 0.0

    def decide(self, others_ahead_seconds: Sequence[float]) -> bool:
        """Follow the machine's clock if it is nearer to the clocks of more others; whether this one does now.

        Given is by how much each of the others is ahead of this clock. Without any the machine's is followed.
        """
        step = self.set_by_seconds
        for_machine = sum(abs(ahead - step) < abs(ahead) for ahead in others_ahead_seconds)
        follows = 2 * for_machine >= len(others_ahead_seconds)
        if follows:
            self._began += step
        return follows
