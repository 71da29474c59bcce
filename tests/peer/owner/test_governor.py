"""The yield mode leaves the machine to its owner, and the sessions get on."""

from __future__ import annotations

import time

import pytest
from blockswarm.peer.engine.step_record import StepRecord
from blockswarm.peer.owner.governor import (
    LONGEST_PAUSE_STEPS,
    CpuReading,
    OwnerLoad,
    others_share,
    pause_seconds,
    read_cpu,
)
from blockswarm.peer.timing import PeerTiming
from hypothesis import given
from hypothesis import strategies as st

CORES = 4
TIMING = PeerTiming()


class Machine:
    """Processor time passes as it is told."""

    def __init__(self) -> None:
        self.reading = CpuReading(0.0, 0.0, 0.0)
        self.load = OwnerLoad(lambda: self.reading, lambda: self.reading.at_seconds, CORES, TIMING)
        self.load.observe(StepRecord(1, 1, 1, 0, 10, 4.0, 0.1, 0.0))

    def run(self, seconds: float, others: float, own: float) -> float:
        """Let time pass with cores busy, and ask for the pause."""
        now = self.reading
        self.reading = CpuReading(
            now.at_seconds + seconds, now.machine + (others + own) * seconds, now.own + own * seconds
        )
        return self.load.pause()


def test_own_work_is_no_reason_to_pause() -> None:
    assert Machine().run(5.0, others=0.2, own=3.8) == 0.0


def test_leaves_the_share_that_others_use() -> None:
    # Others take 3 of 4 cores: the peer works a quarter of the time.
    assert Machine().run(1.0, others=3.0, own=1.0) == pytest.approx(0.3)


def test_the_announced_cost_hears_of_the_pauses() -> None:
    step = StepRecord(1, 1, 1, 0, 10, 4.0, 0.1, 0.0)
    machine = Machine()
    assert machine.load.observe(step).seconds == 0.1
    machine.run(1.0, others=3.0, own=1.0)
    assert machine.load.observe(step).seconds == pytest.approx(0.4)


def test_begins_at_half_and_ends_below_a_third() -> None:
    machine = Machine()
    assert machine.run(1.0, others=1.9, own=1.0) == 0.0
    assert machine.run(1.0, others=2.1, own=1.0) > 0.0
    assert machine.run(1.0, others=1.5, own=1.0) > 0.0
    assert machine.run(1.0, others=1.2, own=1.0) == 0.0
    assert machine.run(1.0, others=1.9, own=1.0) == 0.0


@given(share=st.floats(0, 1), step=st.floats(0, 100))
def test_sessions_get_on(share: float, step: float) -> None:
    assert 0 <= pause_seconds(share, step, longest_seconds=2.0) <= min(2.0, LONGEST_PAUSE_STEPS * step)


def test_a_clock_that_stands_still_is_no_load() -> None:
    assert others_share(CpuReading(1.0, 0.0, 0.0), CpuReading(1.0, 5.0, 0.0), CORES) == 0.0


def test_reads_the_machine() -> None:
    before = read_cpu()
    until = time.process_time() + 0.03
    while time.process_time() < until:
        pass
    after = read_cpu()
    assert after.at_seconds > before.at_seconds
    assert after.own >= before.own + 0.02
    assert after.machine >= before.machine
