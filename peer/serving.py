"""A peer that serves: from a loaded engine to the goodbye in the directory."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..proto.directory.records import PeerRecord
from ..proto.directory.swarm_key import SwarmKey
from ..proto.errors import SwarmError
from ..proto.identity import Identity
from ..proto.model.checkpoint import Checkpoint
from ..proto.network.address import PeerAddress
from ..proto.network.transport import Dialer, serve
from ..proto.wire.handshake import PROTOCOL_VERSION, HelloChecker
from ..routing.admit.table import SessionTable
from ..routing.swarm import BlockRange, ComputeCost, PeerSpec, PeerState
from .config import PeerConfig
from .engine.scheduler import EnginePolicy, chunk_tokens_within
from .metrics import PeerMetrics, Readings
from .offer.announce import Announcer, RecentLookups
from .offer.calibrate import calibrate, still_holds
from .offer.cost_estimate import CostEstimate, has_changed
from .offer.cost_store import CostStore, Measured
from .owner.governor import OwnerLoad, read_cpu
from .session.replay_store import ReplayStore
from .session.service import PeerParts, PeerService
from .session.worker import Counters
from .stop import StopRequest

if TYPE_CHECKING:
    from ..proto.directory.hivemind.node import HivemindDirectory
    from .engine.blocks.stage import Stage
    from .engine.load import Examined
    from .engine.step_record import StepRecord

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 120.0
GOODBYE_SECONDS = 3.0
WATCH_SECONDS = 1.0
MIN_ANNOUNCE_SECONDS = 5.0
"""A new cost is not announced sooner after the last announcement."""


@dataclass(frozen=True)
class Node:
    """Who a peer is, and what it was started with."""

    config: PeerConfig
    identity: Identity
    swarm_key: SwarmKey | None
    checkpoint: Checkpoint
    model_digest: str
    dialer: Dialer
    directory: HivemindDirectory
    lookups: RecentLookups
    examined: Examined


@dataclass(frozen=True)
class ReadyPeer:
    """What there is to know about a peer that serves."""

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


async def serve_until(node: Node, stage: Stage, on_ready: Callable[[ReadyPeer], None], stop: StopRequest) -> None:
    """Serve and announce until `stop`, then drain and say goodbye."""
    hashes = await asyncio.to_thread(node.checkpoint.block_hashes, stage.blocks)
    serving = _Serving(node, stage, hashes, await _known_cost(node, stage))
    try:
        await serving.run(on_ready, stop)
    finally:
        serving.close()


async def _known_cost(node: Node, stage: Stage) -> ComputeCost:
    """The start-up measurement: an earlier one, if it was made under the same conditions and still holds."""
    store = CostStore(node.config.data_folder)
    examined = node.examined
    form = f"{examined.dtype} {examined.packing.value}"
    device = examined.device_description
    conditions = Measured(node.model_digest, str(stage.blocks), form, device, examined.threads)
    known = store.load(conditions)
    if known is not None and await asyncio.to_thread(still_holds, stage, known, time.perf_counter):
        return known
    cost = await asyncio.to_thread(calibrate, stage, time.perf_counter)
    await asyncio.to_thread(store.save, conditions, cost)
    return cost


class _Serving:
    """A peer while it serves. Its record, its metrics and its pace follow what the engine does."""

    def __init__(self, node: Node, stage: Stage, block_hashes: tuple[bytes, ...], cost: ComputeCost) -> None:
        from .engine.cache.pool import KvPool  # brings torch
        from .engine.engine import Engine

        config = node.config
        self._node = node
        self._owner = OwnerLoad(read_cpu, time.monotonic, os.cpu_count() or 1) if config.nice else None
        room_bytes = config.kv_tokens * len(stage.blocks) * stage.kv_bytes_per_token
        pool = KvPool(room_bytes, config.prefix_cache_bytes)
        self._engine = engine = Engine(stage, pool, self._policy(cost, stage), [self._observe])
        self._block_hashes = block_hashes
        self._estimate = CostEstimate(cost)
        self._announced_cost = cost
        self._sessions = SessionTable(
            config.kv_tokens * len(engine.blocks), token_seconds=cost.decode_seconds() * len(engine.blocks)
        )
        self._replay = ReplayStore(config.replay_bytes)
        self._metrics = PeerMetrics() if config.metrics_port is not None else None
        self._counters = Counters()
        self._maddrs: tuple[str, ...] = ()
        self._incarnation = time.time_ns()
        self._service = PeerService(
            PeerParts(
                identity=node.identity,
                engine=engine,
                sessions=self._sessions,
                replay=self._replay,
                hellos=HelloChecker(node.identity.peer_id, time.time, node.swarm_key, config.allowed_peers),
                dialer=node.dialer,
                model_digest=node.model_digest,
                model_name=config.model_name,
                swarm_key=node.swarm_key,
                lookup=node.lookups.lookup,
                dht_addresses=lambda: list(self._maddrs),
                counters=self._counters,
                on_admitted=self._note_admission,
            )
        )

    def close(self) -> None:
        """Stop computing."""
        self._engine.close()

    async def run(self, on_ready: Callable[[ReadyPeer], None], stop: StopRequest) -> None:
        node, config = self._node, self._node.config
        self._maddrs = tuple(await node.directory.visible_maddrs())
        server, port = await serve(node.identity, self._service.handlers, config.host, config.port)
        announcer = Announcer(
            node.directory, node.identity, node.swarm_key, lambda state: self._record(state, port), time.time,
            random.Random(self._incarnation), node.lookups.announced,
        )  # fmt: skip
        await announcer.change(PeerState.SERVING)
        background = [
            asyncio.create_task(announcer.run(), name="announce"),
            asyncio.create_task(self._watch(announcer), name="watch"),
        ]
        stop.serving = True
        try:
            with self._served_metrics() as metrics_port:
                on_ready(self._ready(port, metrics_port))
                await stop.gently.wait()
                await self._drain(announcer)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await _announce_quickly(announcer, PeerState.LEAVING)
            await server.stop(grace=0)

    def _ready(self, port: int, metrics_port: int | None) -> ReadyPeer:
        node, config = self._node, self._node.config
        return ReadyPeer(
            address=PeerAddress(node.identity.peer_id, config.addresses(port)[0]),
            blocks=self._engine.blocks,
            num_blocks=node.checkpoint.num_blocks,
            cost=self._announced_cost,
            kv_tokens=config.kv_tokens,
            model_digest=node.model_digest,
            metrics_port=metrics_port,
            numeric_format=node.examined.numeric_format,
            device=node.examined.device_description,
            threads=node.examined.threads,
        )

    async def _drain(self, announcer: Announcer) -> None:
        """Let the open sessions end or be handed over."""
        self._service.drain()
        if self._service.open_sessions:
            logger.info("stopping: %d sessions end first; a second signal stops at once", self._service.open_sessions)
        await _announce_quickly(announcer, PeerState.DRAINING)
        try:
            await asyncio.wait_for(self._service.wait_idle(), DRAIN_SECONDS)
        except TimeoutError:
            logger.warning("sessions are still open after %.0f s and are ended", DRAIN_SECONDS)

    # --- what follows the engine ---

    def _policy(self, cost: ComputeCost, stage: Stage) -> EnginePolicy:
        policy = EnginePolicy(chunk_tokens_within(cost, len(stage.blocks)))
        return policy if self._owner is None else replace(policy, pause=self._owner.pause)

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
        config = self._node.config
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
        """Announce a cost that has changed, and take the readings for the metrics."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._metrics is not None:
                self._metrics.readings = self._readings()
            if has_changed(self._announced_cost, self._estimate.cost):
                await announcer.renew()
                await asyncio.sleep(MIN_ANNOUNCE_SECONDS)

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
            "decode_seconds_per_block": self._announced_cost.decode_seconds(),
            "steps_pushed": counters.steps_pushed,
            "steps_relayed": counters.steps_relayed,
            "steps_answered": counters.steps_answered,
            "rebuilt_tokens": counters.rebuilt_tokens,
            "admissions": sessions.admissions,
            "refusals": sessions.refusals,
            "prefix_hit_tokens": counters.prefix_hit_tokens,
            "prefix_evicted_pages": pool.prefixes.evicted_pages,
        }

    def _record(self, state: PeerState, port: int) -> PeerRecord:
        node, engine, sessions = self._node, self._engine, self._sessions
        now = time.time()
        self._announced_cost = self._estimate.cost
        engine.adopt_policy(self._policy(self._announced_cost, engine.stage))
        spec = PeerSpec(
            id=node.identity.peer_id,
            blocks=engine.blocks,
            cost=self._announced_cost,
            state=state,
            memory_bytes=float(len(engine.blocks) * engine.stage.block_bytes),
            kv_tokens_total=sessions.kv_token_blocks_total,
            kv_tokens_free=sessions.kv_token_blocks_open,
            releases=sessions.releases(now),
            concurrency=sessions.concurrency(now),
            block_hashes=self._block_hashes,
            numeric_format=node.examined.numeric_format,
        )
        return PeerRecord(
            model_digest=node.model_digest,
            spec=spec,
            addresses=node.config.addresses(port),
            dht_maddrs=self._maddrs[:4],
            incarnation=self._incarnation,
            protocol_version=PROTOCOL_VERSION,
            public_name=node.config.name,
        )


async def _announce_quickly(announcer: Announcer, state: PeerState) -> None:
    """A goodbye is a courtesy: the record runs out by itself."""
    try:
        async with asyncio.timeout(GOODBYE_SECONDS):
            await announcer.change(state)
    except (SwarmError, TimeoutError) as error:
        logger.info("could not announce %s: %s", state.value, error)
