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
from ..proto.directory.swarm_key import SwarmKey
from ..proto.errors import RetryElsewhere, SwarmError
from ..proto.identity import Identity
from ..proto.model.checkpoint import Checkpoint
from ..proto.network.address import PeerAddress
from ..proto.network.transport import Dialer, serve
from ..proto.wire.handshake import HelloChecker
from ..routing.admit.table import SessionTable
from ..routing.swarm import BlockRange, ComputeCost, PeerSpec, PeerState
from .config import PeerConfig
from .engine.scheduler import EnginePolicy, chunk_tokens_within
from .hosting import BlockSource, Hosted, Hosting
from .join import RememberedPeers, remember_swarm
from .metrics import PeerMetrics, Readings
from .offer.announce import Announcer
from .offer.calibrate import calibrate, still_holds
from .offer.capacity import MemoryOffer, free_memory_bytes
from .offer.cost_estimate import CostEstimate, has_changed
from .offer.cost_store import CostStore, Measured
from .offer.lookups import RecentLookups
from .offer.record import ClientFacts, HostingFacts, IdentityFacts, ReachFacts, RecordFacts, RoomFacts, record_of
from .owner.governor import OwnerLoad, read_cpu
from .placement.agent import Host, PlacementAgent
from .placement.watch import SwarmWatch
from .session.replay_store import ReplayStore
from .session.service import PeerParts, PeerService
from .session.worker import Counters
from .tasks import StopRequest, run_to_end, vital_tasks

if TYPE_CHECKING:
    from ..proto.directory.hivemind.node import HivemindDirectory
    from .engine.blocks.stage import Stage
    from .engine.load import Examined
    from .engine.step_record import StepRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PeerSetup:
    """Everything about a peer that is settled before it serves."""

    config: PeerConfig
    identity: Identity
    swarm_key: SwarmKey | None
    checkpoint: Checkpoint
    model_digest: str
    dialer: Dialer
    directory: HivemindDirectory
    lookups: RecentLookups
    examined: Examined
    offer: MemoryOffer
    source: BlockSource
    announcer: Announcer
    watch: SwarmWatch
    maddrs: tuple[str, ...]
    """Addresses of this peer's node of the DHT."""
    incarnation: int
    clock: Callable[[], float] = time.time
    free_bytes: Callable[[], int] = free_memory_bytes
    """Free memory where the blocks are."""

    @property
    def identity_facts(self) -> IdentityFacts:
        return IdentityFacts(self.identity.peer_id, self.model_digest, self.incarnation, self.config.name)

    def hosting_facts(
        self, blocks: BlockRange | None, block_hashes: tuple[bytes, ...], load_seconds: float = 0.0, rests: bool = False
    ) -> HostingFacts:
        """`rests`: the peer stays where it is for a while, though the operator chose no blocks."""
        offer, asked = self.offer, self.config.blocks
        return HostingFacts(
            blocks=blocks,
            block_hashes=block_hashes,
            numeric_format=self.examined.numeric_format,
            stream_format=self.examined.dtype,
            memory_bytes=offer.total_bytes,
            block_bytes=offer.block_bytes,
            kv_bytes_per_token=offer.kv_bytes_per_token,
            max_blocks=asked.count,
            blocks_fixed=asked.blocks is not None or rests,
            size_fixed=asked.count is not None,
            load_seconds=load_seconds,
        )

    @property
    def measured(self) -> Measured:
        """The conditions under which costs are measured."""
        examined = self.examined
        form = f"{examined.dtype} {examined.packing.value}"
        return Measured(self.model_digest, form, examined.device_description, examined.threads)

    def agent_for(self, host: Host[Hosted], own: Callable[[], PeerSpec]) -> PlacementAgent[Hosted]:
        """The placement agent of this peer, whose blocks are those of `host`; `own` tells the peer as it is now."""
        return PlacementAgent(
            self.identity.peer_id, host, lambda: self.watch.snapshot(own), self.announcer.renew, self.config.timing,
            self.clock, random.Random(self.incarnation),
        )  # fmt: skip


@dataclass(frozen=True)
class ReadyPeer:
    """A peer that serves, as the program describes it."""

    address: PeerAddress
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
    """Serve and announce until `stop`, then drain and say goodbye. Raises VitalTaskEnded if a part of it ends."""
    serving = _Serving(setup, hosted, await _known_cost(setup, hosted.stage))
    del hosted  # when the peer moves, nobody may hold the first blocks
    try:
        await serving.run(on_ready, stop)
    finally:
        serving.close()


async def _known_cost(setup: PeerSetup, stage: Stage) -> ComputeCost:
    """The start-up measurement: an earlier one, if it was made under the same conditions and still holds."""
    store = CostStore(setup.config.data_folder)
    known = store.load(setup.measured)
    if known is not None and await asyncio.to_thread(still_holds, stage, known, time.perf_counter):
        return known
    cost = await asyncio.to_thread(calibrate, stage, time.perf_counter)
    await asyncio.to_thread(store.save, setup.measured, cost)
    return cost


class _Serving:
    """A peer while it serves. Its record, its metrics and its pace follow what the engine does."""

    def __init__(self, setup: PeerSetup, hosted: Hosted, cost: ComputeCost) -> None:
        from .engine.cache.pool import KvPool  # brings torch
        from .engine.engine import Engine

        config = setup.config
        self._setup = setup
        self._timing = config.timing
        self._owner = OwnerLoad(read_cpu, time.monotonic, os.cpu_count() or 1) if config.nice else None
        self._estimate = CostEstimate(cost)
        self._cost = cost
        """The cost that clients plan with: the estimate as it was taken last, see `_take_cost`."""
        pool = KvPool(hosted.room_bytes, config.prefix_cache_bytes)
        policy = self._policy(len(hosted.blocks))
        self._engine = engine = Engine(hosted.stage, pool, policy, [self._observe])
        self._hosting = hosting = Hosting(engine, hosted, setup.offer, setup.source, self._note_swap, setup.free_bytes)
        self._swapped = asyncio.Event()
        token_seconds = cost.decode_seconds() * len(hosted.blocks)
        self._sessions = SessionTable(hosted.room, token_seconds=token_seconds, client_share=config.client_share)
        self._replay = ReplayStore(config.replay_bytes)
        self._metrics = PeerMetrics() if config.metrics_port is not None else None
        self._counters = Counters()
        self._port = 0
        moves = config.blocks.blocks is None
        self._agent = setup.agent_for(hosting, lambda: self._record(PeerState.SERVING).spec) if moves else None
        self._service = PeerService(
            PeerParts(
                identity=setup.identity,
                engine=engine,
                hosting=hosting,
                sessions=self._sessions,
                replay=self._replay,
                hellos=HelloChecker(setup.identity.peer_id, setup.clock, setup.swarm_key, config.allowed_peers),
                dialer=setup.dialer,
                model_digest=setup.model_digest,
                model_name=config.model_name,
                swarm_key=setup.swarm_key,
                lookup=setup.lookups.lookup,
                dht_addresses=lambda: list(setup.maddrs),
                clock=setup.clock,
                timing=config.timing,
                counters=self._counters,
                on_admitted=self._note_admission,
            )
        )

    def close(self) -> None:
        """Stop computing."""
        self._engine.close()

    async def run(self, on_ready: Callable[[ReadyPeer], None], stop: StopRequest) -> None:
        """Serve until `stop`. Whatever was begun is ended, however this ends."""
        announcer = self._setup.announcer
        async with self._listening() as port:
            self._port = port
            announcer.make_record = self._record
            async with self._announced(announcer), vital_tasks(self._vital_work(announcer)):
                with self._served_metrics() as metrics_port:
                    stop.serving = True
                    on_ready(self._ready(port, metrics_port))
                    await stop.gently.wait()
                    await self._drain(announcer)

    def _vital_work(self, announcer: Announcer) -> Mapping[str, Coroutine[Any, Any, None]]:
        """The parts that the peer cannot do without, by their names for people."""
        setup, config = self._setup, self._setup.config
        remembered = RememberedPeers(config.data_folder, setup.model_digest, setup.swarm_key)
        return {
            "announcing the peer": announcer.run(),
            "watching the engine": self._watch(announcer),
            "the node of the DHT": setup.directory.until_closed(),
            "remembering the swarm": remember_swarm(
                setup.directory, setup.lookups, remembered, setup.swarm_key, self._timing
            ),
            "placing the peer": self._keep_placed(),
        }

    async def _keep_placed(self) -> None:
        """Move when that is worth it; a peer whose blocks the operator chose only looks at the others."""
        if self._agent is not None:
            await self._agent.run()
        while True:
            await asyncio.sleep(self._timing.record_refresh_seconds)
            with suppress(SwarmError):
                await self._setup.watch.snapshot(lambda: self._record(PeerState.SERVING).spec)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[int]:
        """The port on which streams are served."""
        config = self._setup.config
        server, port = await serve(self._setup.identity, self._service.handlers, config.host, config.port)
        try:
            yield port
        finally:
            await run_to_end(server.stop(grace=0))

    @asynccontextmanager
    async def _announced(self, announcer: Announcer) -> AsyncIterator[None]:
        """In the directory, until the goodbye; a peer whose record nobody takes serves all the same, and tries on."""
        try:
            try:
                await announcer.change(PeerState.SERVING)
            except RetryElsewhere as error:
                again = self._timing.record_refresh_seconds
                logger.warning("announcing failed (%s), trying again in about %.0f s", error, again)
            yield
        finally:
            await announcer.say_goodbye()

    def _ready(self, port: int, metrics_port: int | None) -> ReadyPeer:
        setup, config = self._setup, self._setup.config
        return ReadyPeer(
            address=PeerAddress(setup.identity.peer_id, config.addresses(port)[0]),
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
        """Let the open sessions end or be handed over."""
        self._service.drain()
        if self._agent is not None:
            await self._agent.stop()
        if self._service.open_sessions:
            logger.info("stopping: %d sessions end first; a second signal stops at once", self._service.open_sessions)
        await announcer.say_goodbye(PeerState.DRAINING)
        try:
            await asyncio.wait_for(self._service.wait_idle(), self._timing.drain_seconds)
        except TimeoutError:
            logger.warning("sessions are still open after %.0f s and are ended", self._timing.drain_seconds)

    # --- what follows the engine ---

    def _policy(self, num_blocks: int) -> EnginePolicy:
        policy = EnginePolicy(chunk_tokens_within(self._cost, num_blocks))
        return policy if self._owner is None else replace(policy, pause=self._owner.pause)

    def _take_cost(self) -> None:
        """Plan with the cost as it is known now: from here on the record states it, and prompts are cut by it."""
        self._cost = self._estimate.cost
        self._engine.adopt_policy(self._policy(len(self._hosting.blocks)))

    def _note_swap(self, hosted: Hosted) -> None:
        self._service.rehost(hosted.room)
        self._take_cost()
        self._swapped.set()

    def _observe(self, step: StepRecord) -> None:
        """In the engine's thread, after every step."""
        if self._metrics is not None:
            self._metrics.observe(step)
        if self._owner is not None:
            step = self._owner.observe(step)  # what is announced is what sessions see
        self._estimate.observe(step, time.monotonic())

    def _note_admission(self, wait_seconds: float) -> None:
        if self._metrics is not None:
            self._metrics.observe_admission(wait_seconds)

    @contextmanager
    def _served_metrics(self) -> Iterator[int | None]:
        """The port on which they are served, if they are."""
        config = self._setup.config
        if self._metrics is None or config.metrics_port is None:
            yield None
            return
        self._metrics.readings = self._readings()
        server = self._metrics.serve(config.metrics_host, config.metrics_port)
        logger.info("metrics are served on http://%s:%d/metrics", config.metrics_host, server.port)
        try:
            yield server.port
        finally:
            server.close()

    async def _watch(self, announcer: Announcer) -> None:
        """Announce other blocks and a cost that has changed, and take the readings for the metrics."""
        timing, loop = self._timing, asyncio.get_running_loop()
        taken_at = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(timing.watch_seconds):
                    await self._swapped.wait()
            if self._metrics is not None:
                self._metrics.readings = self._readings()
            age = loop.time() - taken_at
            changed = age >= timing.min_announce_seconds and has_changed(self._cost, self._estimate.cost)
            if changed or age >= timing.record_refresh_seconds:
                self._take_cost()
                taken_at = loop.time()
            if changed or self._swapped.is_set():
                self._swapped.clear()
                await announcer.renew()

    def _readings(self) -> Readings:
        sessions, counters, pool = self._sessions, self._counters, self._engine.pool
        return {
            "sessions": sessions.sessions,
            "queued_sessions": sessions.waiting,
            "kv_token_blocks_total": sessions.kv_token_blocks_total,
            "kv_token_blocks_reserved": sessions.kv_token_blocks_total - sessions.kv_token_blocks_free,
            "kv_bytes_used": pool.used_bytes,
            "prefix_cache_bytes": pool.prefixes.nbytes,
            "replay_bytes": self._replay.nbytes,
            "seconds_since_announced": self._setup.announcer.seconds_since_announced,
            "isolated": float(self._setup.directory.isolated),
            "decode_seconds_per_block": self._cost.decode_seconds(),
            "steps_pushed": counters.steps_pushed,
            "steps_relayed": counters.steps_relayed,
            "steps_answered": counters.steps_answered,
            "rebuilt_tokens": counters.rebuilt_tokens,
            "admissions": sessions.admissions,
            "refusals": sessions.refusals,
            "prefix_hit_tokens": counters.prefix_hit_tokens,
            "prefix_evicted_pages": pool.prefixes.evicted_pages,
        }

    # --- what the record says ---

    def _record(self, state: PeerState, issued_seconds: float | None = None) -> PeerRecord:
        setup, hosted, agent, sessions = self._setup, self._hosting.now, self._agent, self._sessions
        now = setup.clock() if issued_seconds is None else issued_seconds
        rests = agent is not None and agent.rests
        facts = RecordFacts(
            state=state,
            issued_seconds=now,
            identity=setup.identity_facts,
            hosting=setup.hosting_facts(hosted.blocks, hosted.block_hashes, hosted.load_seconds, rests),
            cost=self._cost,
            room=RoomFacts(sessions.kv_token_blocks_total, sessions.kv_token_blocks_open, sessions.releases(now)),
            reach=ReachFacts.of(setup.config.addresses(self._port), setup.maddrs),
            clients=ClientFacts(sessions.concurrency(now)),
            coordinate=setup.watch.coordinate.value,
            claim=agent.claim if agent is not None else None,
        )
        return record_of(facts)
