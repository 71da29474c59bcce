"""The placement agents of a swarm while peers come and go, through old and lossy records.

Every peer sees its own old snapshot, claims, waits, judges and moves while others do the same.  The run counts the
moves that took a block's last server, and tells whether the swarm comes to rest.  Everything follows from the seed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...place.agent import Action, AgentState, BeginLoading, Claim, Loading, MoveTo, Withdraw, next_action
from ...place.moves import Move, ReplanPolicy
from ...place.rule import decide, upcoming
from ...swarm import BlockRange, MoveClaim, PeerId, PeerSpec, PeerState, Swarm
from ...timing import PEER_MEMORY_SECONDS, RECORD_LIFETIME_SECONDS, RECORD_REFRESH_SECONDS
from ..worlds.population import Population
from .rest import distance_from_scratch


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
    memory_seconds: float = PEER_MEMORY_SECONDS
    """Time after its last record during which an agent plans with a peer."""
    quiet_seconds: float = 900.0
    """A swarm in which nothing has changed for this time is taken to rest."""
    aftermath_seconds: float = 5400.0
    """Time after the last event within which a swarm must come to rest."""
    joins_at_once: bool = False
    """See `next_action`."""


@dataclass(frozen=True, slots=True)
class ProtocolReport:
    """The counts of one run of the protocol."""

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
    """A peer and the records of others that it has read."""

    spec: PeerSpec
    clock_offset: float
    read: dict[PeerId, PeerSpec]
    loaded_at: float | None = None
    """When the blocks of the claim are loaded; None: loading has not begun."""
    block_seconds: float = 0.0
    """Time to load one block."""

    def loading(self, now: float) -> Loading:
        if self.loaded_at is None:
            return Loading.NOT_BEGUN
        return Loading.UNDER_WAY if now < self.loaded_at else Loading.DONE


def run_protocol(
    population: Population,
    setup: ProtocolSetup,
    rng: random.Random,
    policy: ReplanPolicy | None = None,
    turn: Callable[..., Action] = next_action,
) -> ProtocolReport:
    """Run the agents of a swarm under churn for `setup.hours`, then without churn until nothing moves any more.

    `turn`: what an agent does at its turn, called as `next_action` is.
    """
    return _ProtocolRun(population, setup, rng, policy or ReplanPolicy(), turn).run()


class _ProtocolRun:
    """A heap of (time, sequence, action); state is the agents alive and the records on their way."""

    def __init__(
        self,
        population: Population,
        setup: ProtocolSetup,
        rng: random.Random,
        policy: ReplanPolicy,
        turn: Callable[..., Action],
    ) -> None:
        self.population, self.setup, self.rng, self.policy, self.turn = population, setup, rng, policy, turn
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
        self.plans: dict[tuple[object, ...], tuple[Move, ...]] = {}

    def run(self) -> ProtocolReport:
        end = self.setup.hours * 3600.0
        quiet, latest = self.setup.quiet_seconds, end + self.setup.aftermath_seconds
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
        while self.heap and self.heap[0][0] < min(max(end, self.last_change) + quiet, latest):
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
        """The swarm as it is at this moment."""
        peers = sorted((agent.spec for agent in self.agents.values()), key=lambda peer: peer.id)
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
        self.schedule(self.now + self.rng.uniform(0, RECORD_REFRESH_SECONDS), lambda: self.tick(spec.id))

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
        """The agent's knowledge: its own state and the records that it remembers, on its own clock."""
        now = self.now + agent.clock_offset
        agent.read = {i: r for i, r in agent.read.items() if now < r.issued_seconds + self.setup.memory_seconds}
        peers = sorted((agent.spec, *agent.read.values()), key=lambda peer: peer.id)
        return Swarm(self.population.model, tuple(peers), now_seconds=now)

    # --- the agent's turn ---

    def tick(self, peer_id: PeerId) -> None:
        agent = self.agents.get(peer_id)
        if agent is None:
            return
        if agent.spec.state is not PeerState.DRAINING:
            self.act(agent)
        self.announce(peer_id)
        self.schedule(self.now + RECORD_REFRESH_SECONDS * self.rng.uniform(0.9, 1.1), lambda: self.tick(peer_id))

    def act(self, agent: _Agent) -> None:
        """Carry out what the agent decides now."""
        snapshot = self.snapshot(agent)
        state = AgentState(agent.spec.id, agent.spec.claim, agent.loading(self.now))
        options = {"joins_at_once": self.setup.joins_at_once, "plan": self.planned}
        match self.turn(state, snapshot, self.policy, **options):
            case Claim(blocks, begin_loading):
                agent.spec = replace(agent.spec, claim=MoveClaim(snapshot.now_seconds, blocks))
                if begin_loading:
                    self.load(agent, blocks)
            case Withdraw():
                self.counts["withdrawn" if agent.loaded_at is None else "abandoned"] += 1
                if agent.loaded_at is not None and agent.loaded_at > self.now:
                    self.counts["loaded"] -= int((agent.loaded_at - self.now) / agent.block_seconds)
                agent.spec, agent.loaded_at = replace(agent.spec, claim=None), None
            case BeginLoading(blocks):
                self.load(agent, blocks)
            case MoveTo(blocks):
                self.finish(agent, blocks)

    def load(self, agent: _Agent, blocks: BlockRange) -> None:
        added = len(set(blocks) - set(agent.spec.blocks or ()))
        self.counts["loaded"] += added
        agent.block_seconds = self.population.model.block_bytes / self.policy.load_bytes_per_second
        agent.loaded_at = self.now + added * agent.block_seconds

    def planned(self, snapshot: Swarm, policy: ReplanPolicy) -> tuple[Move, ...]:
        """The upcoming moves of a snapshot; equal snapshots are planned once."""
        key = tuple((peer.id, peer.blocks, peer.state, peer.claim) for peer in snapshot.peers)
        if key not in self.plans:
            if len(self.plans) > 10_000:
                self.plans.clear()
            self.plans[key] = upcoming(snapshot, policy)
        return self.plans[key]

    def finish(self, agent: _Agent, blocks: BlockRange) -> None:
        """Drop the old blocks. This is the moment that must not take a block's last server."""
        others = {
            b
            for other in self.agents.values()
            if other is not agent and other.spec.blocks is not None
            for b in other.spec.blocks
        }
        dropped = set(agent.spec.blocks or ()) - set(blocks) - others
        self.crashed = [(at, r) for at, r in self.crashed if self.now - at < 2 * RECORD_LIFETIME_SECONDS]
        if dropped:
            recently = {b for _, lost in self.crashed for b in lost}
            self.counts["coincidences" if dropped <= recently else "taken"] += 1
        missing = {b for b in blocks if b not in others}
        self.counts["moves"] += 1
        self.counts["repairs"] += bool(agent.spec.blocks is not None and missing - set(agent.spec.blocks))
        agent.spec = replace(agent.spec, blocks=blocks, state=PeerState.SERVING, claim=None)
        agent.loaded_at = None
        self.last_change = self.now
