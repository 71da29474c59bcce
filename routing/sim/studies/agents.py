"""Peers that come and go: what the placement rule makes of it, at once and through old, lossy records.

Two experiments over the same random membership:

* `rest_after_every_event` carries out `decide` until it rests after every join and departure, and compares the result
  with CG-BP from scratch: how far apart are they, and how many blocks had to be loaded.
* `run_protocol` runs the agents themselves: every peer sees its own old snapshot, claims, waits, judges and moves while
  others do the same.  It counts the moves that took a block's last server.

Everything follows from the seed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...perf import PerfModel
from ...place.cgbp import InfeasiblePlacementError, place
from ...place.loaded import cheapest_chains
from ...place.rule import (
    MEMORY_SECONDS,
    RECORD_LIFETIME_SECONDS,
    REFRESH_SECONDS,
    PlanningView,
    Reason,
    ReplanPolicy,
    Verdict,
    after_move,
    decide,
    judge_claim,
    upcoming,
)
from ...swarm import BlockRange, ComputeCost, Coordinate, ModelSpec, MoveClaim, PeerId, PeerSpec, PeerState, Swarm

QUIET_SECONDS = 900.0
"""A swarm in which nothing has changed for so long is taken to rest."""
AFTERMATH_SECONDS = 5400.0
"""How long after the last event a swarm is given to come to rest."""


@dataclass(frozen=True, slots=True)
class Population:
    """What kind of peers a swarm is made of. Memory in bytes, times in seconds per block."""

    model: ModelSpec
    fast_fraction: float = 0.2
    fast_memory_bytes: tuple[float, ...] = (24e9, 40e9, 80e9)
    fast_decode_seconds: tuple[float, float] = (0.002, 0.005)
    slow_memory_bytes: tuple[float, ...] = (8e9, 10e9, 12e9, 16e9, 24e9)
    slow_decode_seconds: tuple[float, float] = (0.005, 0.02)

    def peer(self, number: int, rng: random.Random) -> PeerSpec:
        """A new peer that hosts nothing yet, somewhere on three continents."""
        fast = rng.random() < self.fast_fraction
        decode = rng.uniform(*(self.fast_decode_seconds if fast else self.slow_decode_seconds))
        centre = rng.choice(((0.0, 0.0), (0.045, 0.01), (0.02, 0.08)))
        return PeerSpec(
            id=PeerId(f"peer{number:05d}"),
            blocks=None,
            cost=ComputeCost(decode_fixed=decode, prefill_fixed=2 * decode, prefill_per_token=decode / 100),
            state=PeerState.JOINING,
            memory_bytes=rng.choice(self.fast_memory_bytes if fast else self.slow_memory_bytes),
            coordinate=Coordinate(
                (centre[0] + rng.gauss(0, 0.008), centre[1] + rng.gauss(0, 0.008), rng.gauss(0, 0.004)),
                height=rng.lognormvariate(-4.8, 0.6),
                error=0.1,
            ),
        )


BLOOM = ModelSpec(num_blocks=70, block_bytes=1.3234e9, kv_bytes_per_token=57344.0)
"""The model of the published experiments: 70 blocks of 1.3 GB in four bits, 56 KiB of cache per token and block."""


# --- at once -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RestReport:
    """The swarm at rest after one event. Distances are ratios minus one; None where nothing can be placed."""

    event: str
    peers: int
    concurrency: int
    moves: int
    loaded_blocks: int
    loaded_by_newcomer: int
    """Blocks of these that the joining peer itself had to load, whatever the rule."""
    mean_distance: float | None
    """Predicted mean request time, among as many as R is planned for, over the one of CG-BP from scratch."""
    bound_distance: float | None
    """Farthest client's token time on its cheapest chain over Theorem 2's bound for CG-BP from scratch."""


def rest_after_every_event(
    population: Population,
    peers: int,
    events: int,
    rng: random.Random,
    policy: ReplanPolicy | None = None,
    on_rest: Callable[[Swarm], None] | None = None,
) -> tuple[RestReport, ...]:
    """Start with `peers` peers at rest; then join or lose one at a time, with equal odds, between 60 % and 140 % of
    that number.  `on_rest` sees every swarm at rest."""
    policy = policy or ReplanPolicy()
    numbers = itertools.count()
    crowd = [population.peer(next(numbers), rng) for _ in range(peers)]
    swarm, _, _ = _settle(Swarm(population.model, tuple(crowd)), policy)
    reports = []
    for _ in range(events):
        joins = len(swarm.peers) < 0.6 * peers or (len(swarm.peers) < 1.4 * peers and rng.random() < 0.5)
        if joins:
            newcomer = population.peer(next(numbers), rng)
            swarm = replace(swarm, peers=(*swarm.peers, newcomer))
        else:
            gone = rng.randrange(len(swarm.peers))
            swarm = replace(swarm, peers=swarm.peers[:gone] + swarm.peers[gone + 1 :])
        swarm, moves, by_newcomer = _settle(swarm, policy)
        distance = distance_from_scratch(swarm, policy)
        reports.append(
            RestReport(
                event="join" if joins else "departure",
                peers=len(swarm.peers),
                concurrency=distance.concurrency,
                moves=len(moves),
                loaded_blocks=sum(moves),
                loaded_by_newcomer=by_newcomer,
                mean_distance=distance.mean,
                bound_distance=distance.bound,
            )
        )
        if on_rest is not None:
            on_rest(swarm)
    return tuple(reports)


def _settle(swarm: Swarm, policy: ReplanPolicy) -> tuple[Swarm, list[int], int]:
    """The swarm at rest, the blocks loaded in each move, and how many of them joining peers loaded."""
    loads = []
    by_newcomers = 0
    while (move := decide(swarm, policy)) is not None:
        loads.append(move.loaded_blocks)
        if move.reason is Reason.JOIN:
            by_newcomers += move.loaded_blocks
        swarm = after_move(swarm, move)
        if len(loads) > 3 * len(swarm.peers):
            raise RuntimeError(f"the swarm is not at rest after {len(loads)} moves of {len(swarm.peers)} peers")
    return swarm, loads, by_newcomers


@dataclass(frozen=True, slots=True)
class Distance:
    """How much slower a swarm is than placed from scratch: ratios minus one, None where nothing can be placed."""

    concurrency: int
    mean: float | None
    bound: float | None


def distance_from_scratch(swarm: Swarm, policy: ReplanPolicy) -> Distance:
    """Compare the present ranges with CG-BP's for the same R. Negative where the present ones are better."""
    view = PlanningView.of(swarm, policy)
    if view is None:
        return Distance(1, None, None)
    try:
        plan = place(view.model, view.concurrency)
    except InfeasiblePlacementError:
        return Distance(view.concurrency, None, None)
    scratch = np.array([(0, 0) if r is None else (r.start, r.stop) for r in plan.ranges], dtype=np.int64)
    mean = view.request_times(view.ranges).among_others / view.request_times(scratch).among_others - 1.0
    walk = float(cheapest_chains(_farthest_client_token(view.model), view.ranges).seconds[0])
    return Distance(view.concurrency, mean, walk / plan.bound_seconds - 1.0)


def _farthest_client_token(model: PerfModel) -> PerfModel:
    """One client, as far from every peer as the farthest, and requests of one decoded token: Theorem 2's setting."""
    farthest = model.rtt_seconds.max(axis=0, keepdims=True)
    zeros = np.zeros_like(model.prefill_seconds)
    return replace(
        model, new_tokens=2, rtt_seconds=farthest, prefill_rtt_seconds=np.zeros_like(farthest), prefill_seconds=zeros
    )


# --- through old and lossy records ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProtocolSetup:
    """How peers come and go and how badly records travel. Rates per hour for the whole swarm."""

    peers: int = 20
    hours: float = 6.0
    joins_per_hour: float = 4.0
    leaves_per_hour: float = 2.0
    crashes_per_hour: float = 2.0
    record_loss: float = 0.1
    """Chance that one reader never sees one record."""
    max_record_delay_seconds: float = 40.0
    """A record reaches a reader after a random time up to this; with the refresh, snapshots are up to 60 s old."""
    drain_seconds: float = 120.0
    clock_skew_seconds: float = 2.0
    """Every peer's clock is off by a random amount up to this, either way."""


@dataclass(frozen=True, slots=True)
class ProtocolReport:
    """What happened in a run of the protocol."""

    joins: int
    leaves: int
    crashes: int
    moves: int
    repairs: int
    loaded_blocks: int
    withdrawn_claims: int
    abandoned_loads: int
    last_servers_taken: int
    """Moves that left a block without server though no peer had crashed of late. Must be zero."""
    crash_coincidences: int
    """The same, where a server of the block had crashed less than a record's lifetime before."""
    uncovered_seconds: float
    """Time during which some block had no server, after all blocks had one for the first time."""
    seconds: float
    rested: bool
    """Whether the swarm came to rest after the last event."""
    final_distance: float | None


@dataclass
class _Agent:
    """A peer and what it has read of the others."""

    spec: PeerSpec
    clock_offset: float
    read: dict[PeerId, PeerSpec]
    loaded_at: float | None = None


def run_protocol(
    population: Population, setup: ProtocolSetup, rng: random.Random, policy: ReplanPolicy | None = None
) -> ProtocolReport:
    """Run the agents of a swarm under churn for `setup.hours`, then without churn until nothing moves any more."""
    return _ProtocolRun(population, setup, rng, policy or ReplanPolicy()).run()


class _ProtocolRun:
    """A heap of (time, sequence, action); state is the agents alive and the records on their way."""

    def __init__(self, population: Population, setup: ProtocolSetup, rng: random.Random, policy: ReplanPolicy) -> None:
        self.population, self.setup, self.rng, self.policy = population, setup, rng, policy
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = itertools.count()
        self.numbers = itertools.count()
        self.agents: dict[PeerId, _Agent] = {}
        self.crashed: list[tuple[float, BlockRange]] = []
        self.counts: Counter[str] = Counter()
        self.covered_once = False
        self.uncovered_seconds = 0.0
        self.last_change = 0.0
        self.plans: dict[tuple[object, ...], dict[PeerId, BlockRange]] = {}

    def run(self) -> ProtocolReport:
        end = self.setup.hours * 3600.0
        for _ in range(self.setup.peers):
            self.join()
        for rate, action in (
            (self.setup.joins_per_hour, self.join),
            (self.setup.leaves_per_hour, self.leave),
            (self.setup.crashes_per_hour, self.crash),
        ):
            at = 0.0
            while rate > 0 and (at := at + self.rng.expovariate(rate / 3600.0)) < end:
                self.schedule(at, action)
        while self.heap and self.heap[0][0] < min(max(end, self.last_change) + QUIET_SECONDS, end + AFTERMATH_SECONDS):
            at, _, action = heapq.heappop(self.heap)
            self.advance(at)
            action()
        truth = self.truth()
        return ProtocolReport(
            joins=self.counts["joins"],
            leaves=self.counts["leaves"],
            crashes=self.counts["crashes"],
            moves=self.counts["moves"],
            repairs=self.counts["repairs"],
            loaded_blocks=self.counts["loaded"],
            withdrawn_claims=self.counts["withdrawn"],
            abandoned_loads=self.counts["abandoned"],
            last_servers_taken=self.counts["taken"],
            crash_coincidences=self.counts["coincidences"],
            uncovered_seconds=self.uncovered_seconds,
            seconds=self.now,
            rested=decide(truth, self.policy) is None and all(a.spec.claim is None for a in self.agents.values()),
            final_distance=distance_from_scratch(truth, self.policy).mean,
        )

    def schedule(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (at, next(self.sequence), action))

    def advance(self, at: float) -> None:
        """Move the clock, accounting for the time in which some block has no server."""
        covered = self.servers_of_every_block()
        self.covered_once = self.covered_once or covered
        if self.covered_once and not covered:
            self.uncovered_seconds += at - self.now
        self.now = at

    def truth(self) -> Swarm:
        """What an observer sees who reads every peer's state at this moment."""
        peers = sorted((agent.spec for agent in self.agents.values()), key=lambda one: one.id)
        return Swarm(self.population.model, tuple(peers), now_seconds=self.now)

    def servers_of_every_block(self) -> bool:
        hosted = {b for agent in self.agents.values() for b in agent.spec.blocks or ()}
        return len(hosted) == self.population.model.num_blocks

    # --- membership ---

    def join(self) -> None:
        spec = self.population.peer(next(self.numbers), self.rng)
        skew = self.setup.clock_skew_seconds
        present = {i: agent.spec for i, agent in self.agents.items() if self.rng.random() >= self.setup.record_loss}
        self.agents[spec.id] = _Agent(spec, self.rng.uniform(-skew, skew), present)
        self.counts["joins"] += 1
        self.last_change = self.now
        self.announce(spec.id)
        self.schedule(self.now + self.rng.uniform(0, REFRESH_SECONDS), lambda: self.tick(spec.id))

    def leave(self) -> None:
        """A graceful departure: drain, then go."""
        serving = sorted(i for i, agent in self.agents.items() if agent.spec.state is not PeerState.DRAINING)
        if len(serving) <= self.setup.peers // 2:
            return
        peer_id = self.rng.choice(serving)
        agent = self.agents[peer_id]
        agent.spec = replace(agent.spec, state=PeerState.DRAINING, claim=None)
        agent.loaded_at = None
        self.counts["leaves"] += 1
        self.last_change = self.now
        self.announce(peer_id)
        self.schedule(self.now + self.setup.drain_seconds, lambda: self.vanish(peer_id))

    def vanish(self, peer_id: PeerId) -> None:
        self.agents.pop(peer_id, None)

    def crash(self) -> None:
        """A peer is gone without a word; its records live on until they expire."""
        if len(self.agents) <= self.setup.peers // 2:
            return
        agent = self.agents.pop(self.rng.choice(sorted(self.agents)))
        if agent.spec.blocks is not None:
            self.crashed.append((self.now, agent.spec.blocks))
        self.counts["crashes"] += 1
        self.last_change = self.now

    # --- records ---

    def announce(self, peer_id: PeerId) -> None:
        """Issue the peer's record; every other peer gets it late, or never."""
        agent = self.agents[peer_id]
        agent.spec = replace(agent.spec, issued_seconds=self.now + agent.clock_offset)
        record = agent.spec
        for reader in self.agents:
            if reader != peer_id and self.rng.random() >= self.setup.record_loss:
                delay = self.rng.uniform(0.0, self.setup.max_record_delay_seconds)
                self.schedule(self.now + delay, lambda to=reader: self.deliver(to, record))  # type: ignore[misc]

    def deliver(self, reader: PeerId, record: PeerSpec) -> None:
        agent = self.agents.get(reader)
        if agent is not None:
            known = agent.read.get(record.id)
            if known is None or known.issued_seconds < record.issued_seconds:
                agent.read[record.id] = record

    def snapshot(self, agent: _Agent) -> Swarm:
        """What the agent knows: its own state and the records that it remembers, on its own clock."""
        now = self.now + agent.clock_offset
        agent.read = {i: r for i, r in agent.read.items() if now < r.issued_seconds + MEMORY_SECONDS}
        peers = sorted((agent.spec, *agent.read.values()), key=lambda one: one.id)
        return Swarm(self.population.model, tuple(peers), now_seconds=now)

    # --- the agent's turn ---

    def tick(self, peer_id: PeerId) -> None:
        agent = self.agents.get(peer_id)
        if agent is None:
            return
        if agent.spec.state is not PeerState.DRAINING:
            self.act(agent)
        self.announce(peer_id)
        self.schedule(self.now + REFRESH_SECONDS * self.rng.uniform(0.9, 1.1), lambda: self.tick(peer_id))

    def act(self, agent: _Agent) -> None:
        """Claim, wait, judge, load, judge again, move: one step of it."""
        snapshot = self.snapshot(agent)
        claim = agent.spec.claim
        if claim is None:
            after = self.planned_for(agent, snapshot)
            if after is not None:
                agent.spec = replace(agent.spec, claim=MoveClaim(snapshot.now_seconds, after))
            return
        if agent.loaded_at is not None and self.now < agent.loaded_at:
            return
        verdict = judge_claim(snapshot, agent.spec.id, self.policy, loaded=agent.loaded_at is not None)
        if verdict is Verdict.WITHDRAW:
            self.counts["withdrawn" if agent.loaded_at is None else "abandoned"] += 1
            agent.spec, agent.loaded_at = replace(agent.spec, claim=None), None
        elif verdict is Verdict.MOVE and agent.loaded_at is None:
            new_blocks = len(set(claim.blocks) - set(agent.spec.blocks or ()))
            self.counts["loaded"] += new_blocks
            rate = self.policy.load_bytes_per_second
            agent.loaded_at = self.now + new_blocks * self.population.model.block_bytes / rate
        elif verdict is Verdict.MOVE:
            self.finish(agent, claim)

    def planned_for(self, agent: _Agent, snapshot: Swarm) -> BlockRange | None:
        """The agent's own entry in the upcoming moves of its snapshot; equal snapshots are planned once."""
        key = tuple((one.id, one.blocks, one.state, one.claim) for one in snapshot.peers)
        if key not in self.plans:
            if len(self.plans) > 10_000:
                self.plans.clear()
            self.plans[key] = {move.peer: move.after for move in upcoming(snapshot, self.policy)}
        return self.plans[key].get(agent.spec.id)

    def finish(self, agent: _Agent, claim: MoveClaim) -> None:
        """Drop the old blocks. This is the moment that must not take a block's last server."""
        others = {
            b
            for one in self.agents.values()
            if one is not agent and one.spec.blocks is not None
            for b in one.spec.blocks
        }
        dropped = set(agent.spec.blocks or ()) - set(claim.blocks) - others
        self.crashed = [(at, r) for at, r in self.crashed if self.now - at < 2 * RECORD_LIFETIME_SECONDS]
        if dropped:
            recently = {b for _, blocks in self.crashed for b in blocks}
            self.counts["coincidences" if dropped <= recently else "taken"] += 1
        missing = {b for b in claim.blocks if b not in others}
        self.counts["moves"] += 1
        self.counts["repairs"] += bool(agent.spec.blocks is not None and missing - set(agent.spec.blocks))
        agent.spec = replace(agent.spec, blocks=claim.blocks, state=PeerState.SERVING, claim=None)
        agent.loaded_at = None
        self.last_change = self.now
