"""The product's admission: crossing chains under overload; nobody stuck, nothing leaked, nobody overtaken."""

from __future__ import annotations

import numpy as np
import pytest
from blockswarm.routing.route.wsrr import Ledger
from blockswarm.routing.sim.kernel import Kernel
from blockswarm.routing.sim.runs.fifo import FifoSwarm, Job, Plan
from blockswarm.routing.swarm import BlockRange
from hypothesis import given, settings
from hypothesis import strategies as st


class Recorder:
    """Plays jobs on fixed chains and records who held what, when."""

    def __init__(self, units: list[int], chains: list[list[tuple[int, int]]], held: float, lease: float) -> None:
        self.kernel = Kernel()
        self.units = units
        self.starts: dict[int, float] = {}
        self.chains: dict[int, tuple[tuple[int, BlockRange], ...]] = {}
        self._held = held
        self._plans = [tuple((j, BlockRange(0, k)) for j, k in chain) for chain in chains]
        self.swarm = FifoSwarm(self.kernel, units, self._route, self._started, lease_seconds=lease)

    def _route(self, job: Job, ledger: Ledger, now: float, kept: frozenset[int]) -> Plan:
        chain = self._plans[job.kind]
        wait = max(ledger.wait(j, len(blocks), now) for j, blocks in chain)
        return Plan(chain, self._held, self._held, wait)

    def _started(self, job: Job, plan: Plan, wait: float) -> None:
        assert job.number not in self.starts, "started twice"
        self.starts[job.number] = job.arrival_seconds + wait
        self.chains[job.number] = plan.chain

    def play(self, arrivals: list[tuple[float, int]]) -> None:
        for number, (at, kind) in enumerate(sorted(arrivals)):
            job = Job(number, 0, kind, at, 1)
            self.kernel.at(at, lambda job=job: self.swarm.arrive(job))  # type: ignore[misc]
        self.kernel.run()

    def check(self, jobs: int) -> None:
        assert len(self.starts) == jobs, "a session is stuck"
        assert self.swarm.open_sessions == 0
        assert self.swarm.idle_units() == self.units, "a reservation leaked"
        edges = sorted({*self.starts.values()})
        for moment in edges:
            used = [0] * len(self.units)
            for number, start in self.starts.items():
                if start <= moment < start + self._held - 1e-9:
                    for j, blocks in self.chains[number]:
                        used[j] += len(blocks)
            assert all(u <= cap for u, cap in zip(used, self.units, strict=True)), "over-committed"


def test_crossing_chains_under_overload_all_finish() -> None:
    """Chains that use the same peers in opposite order would deadlock if each took them in its own order."""
    rng = np.random.default_rng(0)
    swarm = Recorder([2, 2, 2], [[(0, 2), (1, 2)], [(1, 2), (0, 2)], [(2, 1), (0, 2)], [(1, 1), (2, 2)]], 10.0, 7.0)
    swarm.play(
        [(float(at), int(kind)) for at, kind in zip(rng.uniform(0, 60, 80), rng.integers(0, 4, 80), strict=True)]
    )
    swarm.check(80)


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_chains_and_arrivals_finish_and_release(data: st.DataObject) -> None:
    units = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    hop = st.integers(0, len(units) - 1)
    chains = [
        [
            (j, data.draw(st.integers(1, units[j])))
            for j in data.draw(st.lists(hop, min_size=1, max_size=4, unique=True))
        ]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    arrivals = data.draw(
        st.lists(st.tuples(st.integers(0, 40).map(float), st.integers(0, len(chains) - 1)), max_size=25)
    )
    swarm = Recorder(
        units, chains, data.draw(st.sampled_from([0.5, 3.0, 20.0])), data.draw(st.sampled_from([1.0, 30.0]))
    )
    swarm.play(arrivals)
    swarm.check(len(arrivals))


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40).map(float), st.integers(0, 1)), max_size=25))
def test_at_one_peer_nobody_is_overtaken(arrivals: list[tuple[float, int]]) -> None:
    """A small request does not slip past a large one that came first and does not fit yet."""
    swarm = Recorder([3], [[(0, 1)], [(0, 3)]], 5.0, 30.0)
    swarm.play(arrivals)
    swarm.check(len(arrivals))
    starts = [swarm.starts[number] for number in range(len(arrivals))]
    assert starts == sorted(starts)


def test_a_wait_ends_when_there_is_room_not_at_a_retry() -> None:
    swarm = Recorder([1], [[(0, 1)]], 2.5, 30.0)
    swarm.play([(0.0, 0), (1.0, 0), (1.1, 0)])
    assert [swarm.starts[n] for n in range(3)] == [0.0, 2.5, 5.0]


ARRIVALS = [(0.0, 0), (1.0, 1), (2.0, 2), (3.0, 2), (4.0, 0)]
"""Sessions 0 and 4 use peer 0, 2 and 3 peer 1, session 1 both."""
CROSSING = [[(0, 1)], [(0, 1), (1, 1)], [(1, 1)]]


def test_a_peer_s_queue_is_in_order_of_arrival_at_that_peer() -> None:
    """Session 1 was before 3, but while it waited for peer 0 it had not asked peer 1: the product's peers know no
    other order."""
    swarm = Recorder([1, 1], CROSSING, 10.0, 30.0)
    swarm.play(ARRIVALS)
    assert swarm.starts == {0: 0.0, 2: 2.0, 3: 12.0, 1: 22.0, 4: 32.0}


def test_room_that_a_lease_gave_back_goes_to_those_behind() -> None:
    """Session 1 takes peer 0 at 10 and has 5 s to get peer 1; then 4 is served, and 1 comes again after it."""
    swarm = Recorder([1, 1], CROSSING, 10.0, 5.0)
    swarm.play(ARRIVALS)
    assert (swarm.starts[4], swarm.starts[1]) == (15.0, 25.0)


def test_the_kernel_runs_in_order_of_time_priority_and_scheduling() -> None:
    kernel, seen = Kernel(), []
    kernel.at(2.0, lambda: seen.append("late"))
    kernel.at(1.0, lambda: seen.append("second"))
    kernel.at(1.0, lambda: seen.append("third"))
    kernel.at(1.0, lambda: seen.append("first"), priority=-1)
    kernel.at(1.5, lambda: seen.append("never")).cancel()
    kernel.run()
    assert seen == ["first", "second", "third", "late"]
    with pytest.raises(ValueError, match="cannot schedule"):
        kernel.at(1.0, lambda: None)


def test_a_failing_action_stops_the_run() -> None:
    kernel = Kernel()
    kernel.after(1.0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        kernel.run()


def test_who_waited_for_a_rerouted_session_s_room_goes_on_at_once() -> None:
    """Session 1 holds peer 0 and waits for peer 1; when peer 1 goes both its sessions move to peer 2, 2 gets peer 0."""
    chains = {0: [1], 1: [0, 1], 2: [0]}
    starts: dict[int, list[float]] = {0: [], 1: [], 2: []}
    interrupted: list[int] = []

    def route(job: Job, ledger: Ledger, now: float, kept: frozenset[int]) -> Plan:
        chain = tuple((j, BlockRange(0, 1)) for j in chains[job.number])
        return Plan(chain, 10.0, 10.0, max(ledger.wait(j, 1, now) for j, _ in chain))

    def crash() -> None:
        chains.update({0: [2], 1: [2]})
        swarm.reroute(1, running=True)
        swarm.resize(1, 0)

    kernel = Kernel()
    swarm = FifoSwarm(
        kernel,
        [1, 1, 1],
        route,
        lambda job, plan, wait: starts[job.number].append(kernel.now_seconds),
        interrupted=lambda job: interrupted.append(job.number),
    )
    for number in range(3):
        kernel.at(float(number), lambda number=number: swarm.arrive(Job(number, 0, 0, float(number), 1)))  # type: ignore[misc]
    kernel.at(3.0, crash)
    kernel.run()
    assert starts == {0: [0.0, 3.0], 1: [13.0], 2: [3.0]}
    assert interrupted == [0]
    assert swarm.idle_units() == [1, 0, 1]
