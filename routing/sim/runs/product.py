"""The product's own policies, simulated: the exact router with a FIFO queue per peer, its hops through the client or
pushed from peer to peer; and chains with one queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from ...chains import FastestFreeChain, cgbp_chains
from ...papers.instances import Instance
from ...perf import IntArray, PerfModel
from ...place.cgbp import CgbpPlan
from ...route.costs import HubCosts
from ...route.lattice import Spans
from ...route.search import ChainSearch
from ...route.wsrr import Ledger
from ..kernel import Kernel
from .fifo import FifoSwarm, Job, Plan
from .published import NeverRunsError, Progress, RequestResult, result_of
from .push import PushTimes


class LedgerRooms:
    """A ledger's peers as the chain search sees them (`PeerRooms`), for requests of some units per block."""

    def __init__(self, ledger: Ledger, now_seconds: float, units_per_block: int, everything: IntArray) -> None:
        self._ledger = ledger
        self._now = now_seconds
        self._units = units_per_block
        self._everything = everything

    def blocks_within(self, wait_seconds: float) -> IntArray:
        if wait_seconds == float("inf"):
            return self._everything
        ledger, now = self._ledger, self._now
        free = [ledger.free_within(j, wait_seconds, now) for j in range(len(ledger.units))]
        return np.array(free, dtype=np.int64) // self._units

    def wait_seconds(self, peer: int, blocks: int) -> float:
        return self._ledger.wait(peer, blocks * self._units, self._now)


def jobs_of(instance: Instance) -> list[Job]:
    """The instance's requests in order of arrival."""
    kinds = instance.request_kinds()
    return [
        Job(number, int(instance.request_client[number]), kind, arrival, kinds[kind].units_per_block)
        for number, arrival in enumerate(instance.arrivals_seconds.tolist())
        for kind in (instance.kind_of(number),)
    ]


class ExactRouting:
    """The exact cheapest chain over a placement, by client and kind of request; `times` by kind."""

    def __init__(
        self, instance: Instance, plan: CgbpPlan, fixed_seconds: float, times: Sequence[PerfModel | PushTimes]
    ) -> None:
        self._fixed = fixed_seconds
        spans = Spans.of(instance.model.num_blocks, plan.ranges)
        units = instance.cache_units(plan.sizes)
        self._everything = [units // kind.units_per_block for kind in instance.request_kinds()]
        self._searches = {
            (number, client): ChainSearch(
                spans,
                each.costs(client, spans)
                if isinstance(each, PushTimes)
                else HubCosts(*each.request_hop_seconds(client)),
            )
            for number, each in enumerate(times)
            for client in range(instance.model.num_clients)
        }

    def __call__(self, job: Job, ledger: Ledger, now_seconds: float, kept: frozenset[int]) -> Plan:
        room = LedgerRooms(ledger, now_seconds, job.units_per_block, self._everything[job.kind])
        choice = self._searches[job.kind, job.client].cheapest(room)
        if choice is None:
            raise NeverRunsError
        held = self._fixed + choice.cost_seconds
        return Plan(choice.chain, held, choice.total_seconds, choice.wait_seconds)


def run_exact(
    instance: Instance,
    plan: CgbpPlan,
    fixed_seconds: float,
    progress: Progress,
    push: Sequence[PushTimes] | None = None,
) -> list[RequestResult]:
    """Every request through the exact router and the peers' FIFO queues. Raises NeverRunsError.

    `push`: by kind of request where peers push to the next; else every hop goes through the client.
    """
    times: Sequence[PerfModel | PushTimes] = push or [kind.model for kind in instance.request_kinds()]
    kernel = Kernel()
    results: dict[int, RequestResult] = {}

    def started(job: Job, chosen: Plan, wait_seconds: float) -> None:
        results[job.number] = result_of(
            times[job.kind],
            job.client,
            chosen.chain,
            arrival_seconds=job.arrival_seconds,
            predicted_wait_seconds=chosen.predicted_wait_seconds,
            wait_seconds=wait_seconds,
            fixed_seconds=fixed_seconds,
            path_cost_seconds=chosen.cost_seconds,
        )
        progress(len(results))

    units = instance.cache_units(plan.sizes).tolist()
    swarm = FifoSwarm(kernel, units, ExactRouting(instance, plan, fixed_seconds, times), started)
    for job in jobs_of(instance):
        kernel.at(job.arrival_seconds, lambda job=job: swarm.arrive(job))  # type: ignore[misc]
    kernel.run()
    assert swarm.open_sessions == 0, "a session is stuck"
    assert swarm.idle_units() == units, "a reservation leaked"
    return [results[number] for number in range(len(results))]


def run_chains(instance: Instance, plan: CgbpPlan, fixed_seconds: float, progress: Progress) -> list[RequestResult]:
    """Every request on the fastest free of GCA's chains, else in one central FIFO queue. Raises NeverRunsError."""
    session_units = mean_units(instance)
    slots = instance.cache_units(plan.sizes) // session_units
    chains = cgbp_chains(instance.model, plan, slots.tolist())
    kernel = Kernel()
    kinds = instance.request_kinds()
    most = max(kind.units_per_block for kind in kinds)
    if not any(chain.capacity * session_units >= most for chain in chains):
        raise NeverRunsError
    clients = range(instance.model.num_clients)
    free = FastestFreeChain(
        [chain.capacity * session_units for chain in chains],
        [[instance.model.request_seconds(client, chain.chain) for chain in chains] for client in clients],
    )
    queue: deque[Job] = deque()
    results: dict[int, RequestResult] = {}

    def start_next() -> None:
        while queue:
            taken = free.take(queue[0].client, queue[0].units_per_block)
            if taken is None:
                return
            start(queue.popleft(), taken)

    def start(job: Job, number: int) -> None:
        wait = kernel.now_seconds - job.arrival_seconds
        result = result_of(
            kinds[job.kind].model,
            job.client,
            chains[number].chain,
            arrival_seconds=job.arrival_seconds,
            predicted_wait_seconds=wait,
            wait_seconds=wait,
            fixed_seconds=fixed_seconds,
            path_cost_seconds=chains[number].service_seconds,
        )
        results[job.number] = result
        kernel.after(result.total_seconds - wait, lambda: finish(number, job.units_per_block), priority=-1)
        progress(len(results))

    def finish(number: int, units: int) -> None:
        free.give_back(number, units)
        start_next()

    def arrive(job: Job) -> None:
        queue.append(job)
        start_next()

    for job in jobs_of(instance):
        kernel.at(job.arrival_seconds, lambda job=job: arrive(job))  # type: ignore[misc]
    kernel.run()
    assert len(results) == len(instance.arrivals_seconds), "a request is stuck"
    return [results[number] for number in range(len(results))]


def mean_units(instance: Instance) -> int:
    """Units per block of the mean request, rounded up: what GCA calls a session."""
    kinds = instance.request_kinds()
    units = [kinds[instance.kind_of(number)].units_per_block for number in range(len(instance.arrivals_seconds))]
    return -(-sum(units) // len(units)) if units else 1
