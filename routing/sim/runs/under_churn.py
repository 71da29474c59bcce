"""The product's policy while peers join, leave, crash and become slow: churn_table.py says what happens and when.

* Crash: noticed at once.  A request that runs there is interrupted: it keeps what the other hops computed, the exact
  router fills the gap from the failed hop on without the dead peer, the replacement rebuilds (a prefill of the tokens
  so far from the predecessor's buffer; the step under way is repeated), and room is awaited in the peer's queue for
  as long as a lease lasts.  Where no gap can be filled, or the lease runs out, the request gives all back and starts
  on a whole new chain: no token is lost, all caches are rebuilt.
* Leave: the peer drains.  Requests that wait for it are routed again; those that run there go on.  What still runs
  after the drain time is handed over: interrupted, as above, though not by a failure.
* Join: a newcomer serves from that moment, where the re-planning rule puts it.  Placed peers do not move.
* Slow: requests that run there take longer from that moment; the router learns of it a refresh later.

A request without any chain waits until a peer joins that makes one; what still waits at the end is unserved.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ...papers.instances import Instance, InstanceError
from ...perf import FloatArray, IntArray
from ...place.cgbp import CgbpPlan
from ...place.moves import ReplanPolicy
from ...place.rule import joining_move
from ...place.view import PlanningView
from ...route.costs import HubCosts
from ...route.lattice import Spans
from ...route.repair import fill_gaps
from ...route.search import ChainSearch
from ...route.wsrr import Ledger
from ...swarm import BlockRange, ComputeCost, PeerId, PeerSpec
from ..kernel import Kernel
from ..worlds.churn_table import ChurnEvent, Kind
from .churn import Churn, ChurnReport, columns, expanded, server_of
from .fifo import FifoSwarm, Job, Plan
from .product import LedgerRooms, jobs_of
from .progress import PendingPrefill, Speeds, Work
from .published import NeverRunsError, Progress, RequestResult, result_of


@dataclass
class _Request:
    """A request that has started at least once."""

    work: Work
    touched: bool = False
    """Whether it did not run as predicted at its start."""
    crashed: bool = False
    broke_at: float | None = None
    lost_seconds: float = 0.0
    """Time that the interruption under way has cost."""
    next_work: Work | None = None
    """The work on the chain that it waits for."""
    rebuilds: tuple[PendingPrefill, ...] = ()
    """The prefills that compute lost caches again."""
    keeps_hops: bool = False


def run_with_churn(
    instance: Instance, plan: CgbpPlan, fixed_seconds: float, churn: Churn, progress: Progress
) -> tuple[list[RequestResult], ChurnReport]:
    """Every request through the exact router and the FIFO queues of peers that come and go; the served ones' results.

    Raises NeverRunsError if no chain ever has room though nothing happens, InstanceError for a range that does not fit.
    """
    return ChurnRun(instance, plan, fixed_seconds, churn, progress).run()


class ChurnRun:
    """One run. Peers are numbered: first the servers of the instance, then the newcomers in order of joining."""

    def __init__(
        self,
        instance: Instance,
        plan: CgbpPlan,
        fixed_seconds: float,
        churn: Churn,
        progress: Progress,
        kernel: Kernel | None = None,
    ) -> None:
        servers = instance.model.num_peers
        likes = [server_of(event, list(range(servers))) for event in churn.events if event.kind is Kind.JOIN]
        self._origin = np.array([*range(servers), *likes], dtype=np.int64)
        self._instance = expanded(instance, self._origin)
        self._kinds = self._instance.request_kinds()
        self._concurrency = plan.concurrency
        self._fixed_seconds = fixed_seconds
        self._churn = churn
        self._progress = progress
        self._next_newcomer = servers
        self.present = set(range(servers))
        """The peers that are there, draining ones included."""
        self._draining: set[int] = set()
        self._ranges: list[BlockRange | None] = [*plan.ranges, *(None for _ in likes)]
        self._slowdowns: dict[int, list[float]] = {}
        self._slowness = np.ones(len(self._origin))
        self._announced = np.ones(len(self._origin))
        self._searches: dict[tuple[int, int], ChainSearch] = {}
        self._spans = self._open_spans()
        self._prefill = lru_cache(maxsize=4096)(self._prefill_of)
        self._requests: dict[int, _Request] = {}
        self._results: dict[int, RequestResult] = {}
        self._counts: Counter[str] = Counter()
        self._repair_seconds: list[float] = []
        self._handing_over = False
        self._requests_in_all = len(instance.arrivals_seconds)
        self.kernel = kernel or Kernel()
        self.swarm = FifoSwarm(
            self.kernel,
            self._units().tolist(),
            self._route,
            self._started,
            interrupted=self._interrupted,
            finished=self._finished,
        )

    def run(self) -> tuple[list[RequestResult], ChurnReport]:
        """See `run_with_churn`."""
        for job in jobs_of(self._instance):
            self.kernel.at(job.arrival_seconds, lambda job=job: self.swarm.arrive(job))  # type: ignore[misc]
        for event in self._churn.events:
            self.kernel.at(event.at_seconds, lambda event=event: self._happens(event))  # type: ignore[misc]
        self.kernel.run()
        unserved = self.swarm.open_sessions
        if unserved and not self._churn.events:
            raise NeverRunsError
        assert self.swarm.idle_units() == list(self.swarm.ledger.units), "a reservation leaked"
        served = [self._results[number] for number in sorted(self._results) if number not in self._requests]
        assert len(served) + unserved == self._requests_in_all, "a request is lost"
        return served, ChurnReport(
            joins=self._counts["join"],
            leaves=self._counts["leave"],
            crashes=self._counts["crash"],
            slowdowns=self._counts["slow"],
            interrupted_requests=self._counts["interrupted"],
            repairs=self._counts["repairs"],
            restarts=self._counts["restarts"],
            handovers=self._counts["handovers"],
            unserved_requests=unserved,
            repair_seconds=tuple(self._repair_seconds),
        )

    # --- what happens to the peers ---

    def _happens(self, event: ChurnEvent) -> None:
        if len(self._results) == self._requests_in_all and not self.swarm.open_sessions:
            return  # all is over
        if event.kind is Kind.JOIN:
            self._join(event)
        else:
            there = self.present - self._draining if event.kind is Kind.LEAVE else self.present
            peer = server_of(event, sorted(there))
            if peer is None or peer not in there:
                return  # it has gone already
            if event.kind is Kind.LEAVE:
                self._leave(peer)
            elif event.kind is Kind.CRASH:
                self._vanish(peer)
            else:
                self._slow_down(peer, event)
        self._counts[event.kind.value] += 1

    def _join(self, event: ChurnEvent) -> None:
        peer = self._next_newcomer
        self._next_newcomer += 1
        self.present.add(peer)
        self._ranges[peer] = event.blocks or self._planned_for(peer)
        self._check_fits(peer)
        self._membership_changed()
        self.swarm.resize(peer, int(self._units()[peer]))
        self.swarm.retry_stranded()

    def _planned_for(self, newcomer: int) -> BlockRange | None:
        """Where the re-planning rule puts a newcomer, for the run's R; None if it has no room for a block."""
        staying = sorted(self.present - self._draining)
        model = columns(self._instance.model, np.array(staying))
        peers = tuple(PeerSpec(PeerId(str(j)), self._ranges[j], ComputeCost(0.0)) for j in staying)
        spare = tuple(replace(p, blocks_fixed=True) if p.blocks is None else p for p in peers[:-1])
        weights = np.ones(model.num_clients)
        assert staying[-1] == newcomer
        view = PlanningView.over(ReplanPolicy(), (*spare, peers[-1]), model, weights, self._concurrency)
        move = joining_move(view)
        return move.after if move is not None else None

    def _check_fits(self, peer: int) -> None:
        blocks, model = self._ranges[peer], self._instance.model
        if blocks is not None and len(blocks) * model.block_bytes > model.memory_bytes[peer]:
            raise InstanceError(f"{self._instance.name}: churn: blocks {blocks} do not fit into newcomer {peer}")

    def _leave(self, peer: int) -> None:
        self._draining.add(peer)
        self._membership_changed()
        self.swarm.reroute(peer, running=False)
        self.kernel.after(self._churn.drain_seconds, lambda: self._drained(peer))

    def _drained(self, peer: int) -> None:
        if peer in self.present:
            self._handing_over = True
            self._vanish(peer)
            self._handing_over = False

    def _vanish(self, peer: int) -> None:
        self.present.discard(peer)
        self._draining.discard(peer)
        self._membership_changed()
        self.swarm.reroute(peer, running=True)
        self.swarm.resize(peer, 0)
        self._ranges[peer] = None

    def _slow_down(self, peer: int, event: ChurnEvent) -> None:
        self._slowdowns.setdefault(peer, []).append(event.factor)
        self._set_slowness(peer)
        self.kernel.after(event.duration_seconds, lambda: self._recover(peer, event.factor))

    def _recover(self, peer: int, factor: float) -> None:
        self._slowdowns[peer].remove(factor)
        self._set_slowness(peer)

    def _set_slowness(self, peer: int) -> None:
        """The true speed changes now, the announced one a refresh later."""
        running = self.swarm.running_on(peer)
        now = self.kernel.now_seconds
        for job in running:
            request = self._requests[job.number]
            request.work = request.work.until(now, self._speeds(job, self._slowness))
        self._slowness = self._slowness.copy()
        self._slowness[peer] = math.prod(sorted(self._slowdowns[peer]))
        for job in running:
            self._run_at_true_speed(job)
        self.kernel.after(self._churn.refresh_seconds, lambda: self._announce(peer))

    def _announce(self, peer: int) -> None:
        self._announced = self._announced.copy()
        self._announced[peer] = self._slowness[peer]
        self._membership_changed()
        for job in self.swarm.running_on(peer):
            self.swarm.rebook(job)

    # --- routing ---

    def _membership_changed(self) -> None:
        self._searches.clear()
        self._spans = self._open_spans()

    def _open_spans(self) -> Spans:
        """The ranges of the peers that take new sessions."""
        closed = self._draining | (set(range(len(self._origin))) - self.present)
        ranges = [None if j in closed else hosted for j, hosted in enumerate(self._ranges)]
        return Spans.of(self._instance.model.num_blocks, ranges)

    def _units(self) -> IntArray:
        return self._instance.cache_units(np.array([len(hosted) if hosted else 0 for hosted in self._ranges]))

    def _prefill_of(self, tokens: int) -> tuple[FloatArray, FloatArray]:
        per_block, rtt = self._churn.prefill(tokens)
        return per_block[self._origin], rtt[:, self._origin]

    def _speeds(self, job: Job, slowness: FloatArray) -> Speeds:
        return Speeds(self._kinds[job.kind].model, job.client, self._prefill, slowness)

    def _route(self, job: Job, ledger: Ledger, now_seconds: float, kept: frozenset[int]) -> Plan | None:
        everything = np.array(ledger.units, dtype=np.int64) // job.units_per_block
        room = LedgerRooms(ledger, now_seconds, job.units_per_block, everything)
        request = self._requests.get(job.number)
        if request is None:
            choice = self._search(job).cheapest(room)
            if choice is None:
                return None
            held = self._fixed_seconds + choice.cost_seconds
            return Plan(choice.chain, held, choice.total_seconds, choice.wait_seconds)
        return self._resumption(job, request, room, kept)

    def _search(self, job: Job) -> ChainSearch:
        """The search for whole requests, compiled once per membership."""
        key = (job.kind, job.client)
        if key not in self._searches:
            visit, per_block = self._kinds[job.kind].model.request_hop_seconds(job.client)
            if (self._announced != 1.0).any():
                per_block = per_block * self._announced
            self._searches[key] = ChainSearch(self._spans, HubCosts(visit, per_block))
        return self._searches[key]

    def _resumption(self, job: Job, request: _Request, room: LedgerRooms, kept: frozenset[int]) -> Plan | None:
        """The chain of an interrupted request: the hops that it kept and the gaps filled, else one all anew."""
        work, model = request.work, self._kinds[job.kind].model
        tokens = self._churn.prompt_tokens[job.kind] + model.new_tokens - 1 - work.whole_steps
        per_block, rtt = self._prefill(tokens)
        costs = HubCosts(
            rtt[job.client] + work.whole_steps * model.rtt_seconds[job.client],
            (per_block + work.whole_steps * model.decode_seconds) * self._announced,
        )
        surviving = tuple(hop for hop in work.chain if hop[0] in kept)
        filled = fill_gaps(self._spans, costs, room, surviving) or fill_gaps(self._spans, costs, room, ())
        if filled is None:
            return None
        chain, wait = filled.chain, filled.wait_seconds
        stays = frozenset(surviving) & frozenset(chain)
        request.next_work = following = work.on(chain, stays, tokens)
        lost = {block for _, blocks in work.lost_hops(stays) for block in blocks}
        request.rebuilds = tuple(stage for stage in following.stages if not lost.isdisjoint(stage.hop[1]))
        request.keeps_hops = bool(stays)
        held = following.remaining_seconds(self._speeds(job, self._announced))
        return Plan(chain, held, held + wait, wait)

    # --- what happens to a request ---

    def _started(self, job: Job, plan: Plan, wait_seconds: float) -> None:
        now = self.kernel.now_seconds
        model = self._kinds[job.kind].model
        request = self._requests.get(job.number)
        if request is None:
            prompt = self._churn.prompt_tokens[job.kind]
            work = Work.of(plan.chain, now, self._fixed_seconds, prompt, model.new_tokens)
            self._requests[job.number] = _Request(work)
            self._results[job.number] = result_of(
                model,
                job.client,
                plan.chain,
                arrival_seconds=job.arrival_seconds,
                predicted_wait_seconds=plan.predicted_wait_seconds,
                wait_seconds=wait_seconds,
                fixed_seconds=self._fixed_seconds,
                path_cost_seconds=plan.cost_seconds,
            )
            self._progress(len(self._results))
        else:
            assert request.next_work is not None
            assert request.broke_at is not None
            request.work = replace(request.next_work, at_seconds=now)
            speeds = self._speeds(job, self._slowness)
            rebuilding = math.fsum(speeds.stage_seconds(stage) for stage in request.rebuilds)
            self._repair_seconds.append(now - request.broke_at + request.lost_seconds + rebuilding)
            self._counts["repairs" if request.keeps_hops else "restarts"] += 1
            request.next_work = request.broke_at = None
        if any(j in self._slowdowns for j, _ in plan.chain):
            self._run_at_true_speed(job)

    def _run_at_true_speed(self, job: Job) -> None:
        request = self._requests[job.number]
        request.touched = True
        self.swarm.set_remaining(job, request.work.remaining_seconds(self._speeds(job, self._slowness)))

    def _interrupted(self, job: Job) -> None:
        request = self._requests[job.number]
        speeds = self._speeds(job, self._slowness)
        now = self.kernel.now_seconds
        request.work, request.lost_seconds = request.work.until(now, speeds).broken_off(speeds)
        request.touched = True
        request.broke_at = now
        if self._handing_over:
            self._counts["handovers"] += 1
        elif not request.crashed:
            request.crashed = True
            self._counts["interrupted"] += 1

    def _finished(self, job: Job) -> None:
        request = self._requests.pop(job.number)
        if request.touched:
            now = self.kernel.now_seconds
            work = request.work.until(now, self._speeds(job, self._slowness))
            first = now if work.first_token_seconds is None else work.first_token_seconds
            self._results[job.number] = replace(
                self._results[job.number],
                chain=work.chain,
                ttft_seconds=first - job.arrival_seconds,
                total_seconds=now - job.arrival_seconds,
            )
