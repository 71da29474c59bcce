"""A peer that serves: from a loaded engine to the goodbye in the directory."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..proto.directory.records import PeerRecord
from ..proto.errors import RetryElsewhere, SwarmError
from ..proto.network.address import Reach
from ..proto.network.crowding import PortRoom, connections_within, descriptor_limit
from ..proto.network.options import PortLimits
from ..proto.network.server import Server, until_ended
from ..proto.network.transport import introduction, serve
from ..proto.wire.handshake import HelloChecker
from ..routing.admit.table import SessionTable
from ..routing.swarm import BlockRange, ComputeCost, PeerState, Swarm
from .engine.scheduler import EnginePolicy, chunk_tokens_within
from .hosting import Hosted, Hosting
from .join import RememberedPeers, remember_swarm
from .metrics import PeerMetrics, Readings, readings_of
from .offer.announce import Announcer
from .offer.calibrate import calibrate, still_holds
from .offer.client_places import ClientPlaces
from .offer.cost_estimate import CostEstimate, has_changed
from .offer.cost_store import CostStore
from .offer.record import ClientFacts, ReachFacts, RecordFacts, RoomFacts, record_of
from .owner.governor import OwnerLoad, read_cpu
from .placement.leaving import until_replaced
from .reach.parts import PeerReach, ReachNeeds
from .reach.ports import Ports, RememberedPorts
from .reach.reach import Listening, through_relay
from .reach.verdict import ReachVerdict
from .session.edge.handshakes import Handshakes
from .session.parts import PeerParts
from .session.replay_store import ReplayStore
from .session.service import PeerService
from .session.work.seams import Counters
from .setup import PeerSetup
from .tasks import StopRequest, run_to_end, vital_tasks

if TYPE_CHECKING:
    from .engine.blocks.stage import Stage
    from .engine.step_record import StepRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadyPeer:
    """A peer that serves, as the program describes it."""

    address: Reach
    verdict: ReachVerdict
    """Whether other peers have reached it at an address of its own."""
    blocks: BlockRange
    num_blocks: int
    cost: ComputeCost
    kv_tokens: int
    model_digest: str
    metrics_port: int | None
    numeric_format: str
    device: str
    """For people: "cpu", or "cuda:0" and the GPU's name."""
    threads: int


async def serve_until(
    setup: PeerSetup, hosted: Hosted, on_ready: Callable[[ReadyPeer], None], stop: StopRequest
) -> None:
    """Serve and announce until `stop`, then drain and say goodbye. Raises VitalTaskEnded if a vital task ends."""
    cost = await _known_cost(setup, hosted.stage)
    serving = _Serving(setup, hosted, cost)
    del hosted  # a reference would keep the first blocks in memory after the peer has moved
    try:
        await serving.run(on_ready, stop)
        seen = replace(cost, visit=serving.visit_seconds)
        await asyncio.to_thread(CostStore(setup.config.data_folder).save, setup.measured, seen)
    finally:
        serving.close()


async def _known_cost(setup: PeerSetup, stage: Stage) -> ComputeCost:
    """Return the cost that was measured earlier under the same conditions, if it still holds; else measure it now.

    The cost of a visit cannot be measured before serving: it is that of the earlier run, else 0.
    """
    store = CostStore(setup.config.data_folder)
    known = store.load(setup.measured)
    budget_seconds = setup.config.timing.calibration_seconds
    if known is not None and await asyncio.to_thread(still_holds, stage, known, time.perf_counter, budget_seconds):
        return known
    logger.info("measuring the blocks")
    cost = await asyncio.to_thread(calibrate, stage, time.perf_counter, budget_seconds)
    cost = replace(cost, visit=known.visit if known is not None else 0.0)
    await asyncio.to_thread(store.save, setup.measured, cost)
    return cost


class _Serving:
    """A peer while it serves. Its record, its metrics and its pace follow what the engine does."""

    def __init__(self, setup: PeerSetup, hosted: Hosted, cost: ComputeCost) -> None:
        from .engine.cache.pool import KvPool  # brings torch
        from .engine.engine import Engine

        config = setup.config
        self._setup = setup
        self._timing = timing = config.timing
        self._owner = OwnerLoad(read_cpu, time.monotonic, os.cpu_count() or 1, timing) if config.nice else None
        self._estimate = CostEstimate(cost, timing.cost_half_life_seconds)
        self._cost = cost
        """The announced cost, which clients plan with: the estimate at the last `_take_cost`."""
        pool = KvPool(hosted.room_bytes, config.prefix_cache_bytes)
        policy = self._policy(len(hosted.blocks))
        self._engine = engine = Engine(hosted.stage, pool, policy, [self._observe], timing.steps)
        self._hosting = hosting = Hosting(
            engine, hosted, setup.offer, setup.source, self._note_swap, setup.free_bytes, timing
        )
        self._swapped = asyncio.Event()
        token_seconds = cost.decode_seconds() * len(hosted.blocks)
        self._sessions = SessionTable(
            hosted.room, token_seconds=token_seconds, client_share=config.client_share, timing=timing.admission
        )
        self._replay = ReplayStore(config.replay_bytes)
        hellos = HelloChecker(setup.identity.peer_id, setup.clock, setup.swarm_key, config.allowed_peers)
        self._reach = PeerReach(self._reach_needs(hellos), self._swapped.set)
        self._metrics = PeerMetrics() if config.metrics_port is not None else None
        self._counters = Counters()
        self._clients = ClientPlaces(timing.client_memory_seconds)
        moves = config.blocks.blocks is None
        self._agent = setup.agent_for(hosting, lambda: self._record(PeerState.SERVING).spec) if moves else None
        self._service = PeerService(
            PeerParts(
                identity=setup.identity,
                engine=engine,
                hosting=hosting,
                sessions=self._sessions,
                replay=self._replay,
                hellos=hellos,
                dialer=setup.dialer,
                model_digest=setup.model_digest,
                model_name=config.model_name,
                swarm_key=setup.swarm_key,
                lookup=setup.lookups.lookup,
                dht_addresses=lambda: list(setup.maddrs),
                clock=setup.clock,
                timing=config.timing,
                counters=self._counters,
                on_client=lambda client, place: self._clients.note(client, place, time.monotonic()),
                on_visit=lambda seconds: self._estimate.observe_visit(seconds, time.monotonic()),
                on_admitted=self._metrics.observe_admission if self._metrics is not None else lambda wait_seconds: None,
                on_failure=self._metrics.observe_failure if self._metrics is not None else lambda code: None,
                relay_addresses=setup.lookups.addresses_of,
            )
        )

    def _reach_needs(self, hellos: HelloChecker) -> ReachNeeds:
        setup, config = self._setup, self._setup.config
        return ReachNeeds(
            own=setup.identity.peer_id,
            listening=Listening(config.reach, config.host, config.addresses, bool(config.announce)),
            quota=config.relay,
            initial_peers=config.initial_peers,
            others=setup.others,
            dialer=setup.dialer,
            introduce=introduction(setup.identity, setup.swarm_key, setup.clock),
            hellos=hellos,
            handshake=Handshakes(config.timing.handshake_seconds).handshake,
            clock=time.monotonic,
            rng=random.Random(setup.incarnation),
            timing=config.timing,
            first=setup.first_verdict,
        )

    @property
    def visit_seconds(self) -> float:
        """The current estimate of the cost of a visit."""
        return self._estimate.cost.visit

    def close(self) -> None:
        """Stop computing."""
        self._engine.close()

    async def run(self, on_ready: Callable[[ReadyPeer], None], stop: StopRequest) -> None:
        """Serve until `stop`. Whatever was begun is ended on every way out."""
        announcer = self._setup.announcer
        async with self._listening() as (server, port):
            await self._reach.ways.start(port)
            announcer.make_record = self._record
            async with self._leaving(announcer), vital_tasks(self._vital_work(announcer, server, port)):
                await self._reach.ways.until_reachable()
                await self._announce(announcer)
                with self._served_metrics() as metrics_port:
                    stop.serving = True
                    on_ready(self._ready(metrics_port))
                    await stop.gently.wait()
                    await self._drain(announcer)
                    logger.info("%s", self._service.usage.summary)

    def _vital_work(self, announcer: Announcer, server: Server, port: int) -> Mapping[str, Coroutine[Any, Any, None]]:
        """The tasks that the peer cannot do without, by their names in messages."""
        setup, config = self._setup, self._setup.config
        remembered = RememberedPeers(config.data_folder, setup.model_digest, setup.swarm_key)
        return {
            "answering calls": until_ended(server, self._setup.config.host, port),
            "announcing the peer": announcer.run(),
            "watching the engine": self._watch(announcer),
            "the node of the DHT": setup.directory.until_closed(),
            "remembering the swarm": remember_swarm(
                setup.directory, setup.lookups, remembered, setup.swarm_key, self._timing
            ),
            "placing the peer": self._keep_placed(),
            "keeping the peer reachable": self._reach.run(),
            "counting connections": PortRoom(port, connections_within(descriptor_limit()) * 3 // 4).keep(),
        }

    async def _keep_placed(self) -> None:
        """Move when it is worth it; a peer whose blocks the operator chose only watches the others."""
        if self._agent is not None:
            await self._agent.run()
        while True:
            await asyncio.sleep(self._timing.record_refresh_seconds)
            with suppress(SwarmError):
                await self._look(PeerState.SERVING)

    async def _look(self, state: PeerState) -> Swarm:
        """Return a snapshot of the swarm with this peer in `state`. Raises SwarmError."""
        return await self._setup.watch.snapshot(lambda: self._record(state).spec)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[tuple[Server, int]]:
        """Start the server of streams, remember its port and yield both; stop the server at the end of the block."""
        config = self._setup.config
        handlers = self._reach.serving(self._service.handlers)
        limits = PortLimits(connections_within(descriptor_limit()))
        server, port = await serve(self._setup.identity, handlers, config.host, config.port, limits=limits)
        remembered = RememberedPorts(config.data_folder, self._setup.identity.peer_id)
        await asyncio.to_thread(remembered.save, Ports(port, self._setup.dht_port))
        try:
            yield server, port
        finally:
            await run_to_end(server.stop(grace=0))

    async def _announce(self, announcer: Announcer) -> None:
        """Announce that the peer serves; if nobody takes the record, it serves all the same, and tries again later."""
        try:
            await announcer.change(PeerState.SERVING)
        except RetryElsewhere as error:
            again = self._timing.record_refresh_seconds
            logger.warning("announcing failed (%s), trying again in about %.0f s", error, again)

    @staticmethod
    @asynccontextmanager
    async def _leaving(announcer: Announcer) -> AsyncIterator[None]:
        """Say goodbye in the directory at the end of the block."""
        try:
            yield
        finally:
            await announcer.say_goodbye()

    def _ready(self, metrics_port: int | None) -> ReadyPeer:
        setup, config = self._setup, self._setup.config
        address = self._reach.address
        assert address is not None, "a peer that announces itself as serving has an address"
        return ReadyPeer(
            address=address,
            verdict=self._reach.ways.verdict,
            blocks=self._hosting.blocks,
            num_blocks=setup.checkpoint.num_blocks,
            cost=self._cost,
            kv_tokens=config.kv_tokens,
            model_digest=setup.model_digest,
            metrics_port=metrics_port,
            numeric_format=setup.examined.numeric_format,
            device=setup.examined.device_description,
            threads=setup.examined.threads,
        )

    async def _drain(self, announcer: Announcer) -> None:
        """Let others take over what only this peer serves, then let the open sessions end or be handed over."""
        if self._agent is not None:
            await self._agent.stop()
        await announcer.say_goodbye(PeerState.DRAINING)
        await until_replaced(self._setup.identity.peer_id, lambda: self._look(PeerState.DRAINING), self._timing)
        self._service.drain()
        await announcer.say_goodbye(PeerState.DRAINING)  # without room now
        if self._service.open_sessions:
            logger.info("stopping: %d sessions end first; a second signal stops at once", self._service.open_sessions)
        try:
            await asyncio.wait_for(self._service.wait_idle(), self._timing.drain_seconds)
        except TimeoutError:
            logger.warning("sessions are still open after %.0f s and are ended", self._timing.drain_seconds)

    # --- what follows the engine ---

    def _policy(self, num_blocks: int) -> EnginePolicy:
        policy = EnginePolicy(chunk_tokens_within(self._cost, num_blocks, self._timing.steps.stall_seconds))
        return policy if self._owner is None else replace(policy, pause=self._owner.pause)

    def _take_cost(self) -> None:
        """Adopt the current estimate: from here on the record states it, and prompts are cut by it."""
        self._cost = self._estimate.cost
        self._engine.adopt_policy(self._policy(len(self._hosting.blocks)))

    def _note_swap(self, hosted: Hosted) -> None:
        self._service.rehost(hosted.room)
        self._setup.checkpoint.keep(hosted.blocks)
        self._take_cost()
        self._swapped.set()

    def _observe(self, step: StepRecord) -> None:
        """Called in the engine's thread after every step."""
        self._counters.tokens_served += step.decode_rows + step.prefill_tokens
        if self._metrics is not None:
            self._metrics.observe(step)
        if self._owner is not None:
            step = self._owner.observe(step)  # announce the speed that sessions see
        self._estimate.observe(step, time.monotonic())

    @contextmanager
    def _served_metrics(self) -> Iterator[int | None]:
        """Serve the metrics if the operator asked for them, and yield their port."""
        config = self._setup.config
        if self._metrics is None or config.metrics_port is None:
            yield None
            return
        self._take_readings()
        server = self._metrics.serve(config.metrics_host, config.metrics_port)
        logger.info("metrics are served on http://%s:%d/metrics", config.metrics_host, server.port)
        try:
            yield server.port
        finally:
            server.close()

    async def _watch(self, announcer: Announcer) -> None:
        """Announce changes of the blocks and of the cost, and take the readings for the metrics."""
        timing, loop = self._timing, asyncio.get_running_loop()
        taken_at = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(timing.watch_seconds):
                    await self._swapped.wait()
            self._take_readings()
            age = loop.time() - taken_at
            changed = age >= timing.min_announce_seconds and has_changed(self._cost, self._estimate.cost)
            if changed or age >= timing.record_refresh_seconds:
                self._take_cost()
                taken_at = loop.time()
            if changed or self._swapped.is_set():
                self._swapped.clear()
                await announcer.renew()

    def _take_readings(self) -> None:
        if self._metrics is not None:
            self._metrics.readings = {**self._readings(), **self._reach.readings}
            self._metrics.describe(self._setup.announcer.state, self._setup.described(self._hosting.blocks))

    def _readings(self) -> Readings:
        return readings_of(
            self._sessions, self._counters, self._engine.pool, self._replay.nbytes, self._cost,
            self._setup.announcer.seconds_since_announced, self._setup.directory.isolated,
        )  # fmt: skip

    # --- what the record says ---

    def _record(self, state: PeerState, issued_seconds: float | None = None) -> PeerRecord:
        setup, hosted, agent, sessions = self._setup, self._hosting.now, self._agent, self._sessions
        ways = self._reach.ways
        now = setup.clock() if issued_seconds is None else issued_seconds
        if state is PeerState.SERVING and not ways.reachable:
            state = PeerState.JOINING  # nobody can reach it, so nobody may count on it
        rests = agent is not None and agent.rests
        facts = RecordFacts(
            state=state,
            issued_seconds=now,
            identity=setup.identity_facts,
            hosting=setup.hosting_facts(hosted.blocks, hosted.block_hashes, hosted.load_seconds, rests),
            cost=self._cost,
            room=RoomFacts(0, 0, ())
            if self._service.draining
            else RoomFacts(sessions.kv_token_blocks_total, sessions.kv_token_blocks_open, sessions.releases(now)),
            reach=ReachFacts.of(ways.addresses, setup.maddrs, ways.relays, self._reach.relay_places),
            clients=ClientFacts(sessions.concurrency(now), self._clients.centroids(time.monotonic())),
            coordinate=through_relay(setup.watch.coordinate.value, ways.detour_seconds),
            claim=agent.claim if agent is not None else None,
            tokens_served=self._counters.tokens_served,
        )
        return record_of(facts)
