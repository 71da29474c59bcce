"""Real peers in this process, from their first look at the swarm to the goodbye: placed and moved by their agents."""

from __future__ import annotations

import asyncio
import random
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from blockswarm.client.codec import FloatCodec
from blockswarm.client.config import SessionConfig, SessionEvent
from blockswarm.client.swarm.router import ViewRouter
from blockswarm.client.swarm.view import SwarmView
from blockswarm.client.timing import ChainTiming, ClientTiming
from blockswarm.peer.config import BlockRequest, PeerConfig
from blockswarm.peer.engine.blocks.stage import Stage
from blockswarm.peer.engine.load import Examined, examine_model, load_examined
from blockswarm.peer.hosting import BlockSource
from blockswarm.peer.node import first_blocks
from blockswarm.peer.offer.announce import Announcer
from blockswarm.peer.offer.capacity import MemoryOffer
from blockswarm.peer.offer.cost_store import CostStore
from blockswarm.peer.offer.lookups import RecentLookups
from blockswarm.peer.placement.watch import SwarmWatch
from blockswarm.peer.serving import ReadyPeer, serve_until
from blockswarm.peer.setup import PeerSetup
from blockswarm.peer.tasks import StopRequest
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.directory import MemoryDirectory, MemoryStore
from blockswarm.proto.directory.records import open_peer_record
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.directory.swarm_key import swarm_key_name
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import Checkpoint, open_checkpoint
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer
from blockswarm.routing.place.moves import ClaimTiming
from blockswarm.routing.swarm import ComputeCost, PeerSpec, PeerState

REFRESH_SECONDS = 0.4
TIMING = PeerTiming(
    watch_seconds=0.05, lookup_max_age_seconds=0.0, join_turn_seconds=0.1,
    overdue_ping_seconds=2.0, drain_seconds=10.0, failed_move_seconds=2.0,
    claims=ClaimTiming(
        refresh_seconds=REFRESH_SECONDS, record_lifetime_seconds=4.0, clock_tolerance_seconds=0.01,
        claim_lifetime_seconds=10.0, peer_memory_seconds=6.0,
    ),
)  # fmt: skip
"""A swarm in which a refresh takes a fraction of a second."""
CLIENT_TIMING = ClientTiming(
    refresh_seconds=0.2,
    ban_seconds=0.5,
    claim_stands_seconds=REFRESH_SECONDS,
    chain=ChainTiming(handover_pause_seconds=0.2, last_part_seconds=60.0, doubtful_parts=1_000_000),
)
"""A cache is copied however slow the machine is, which would make a replay the better choice for a while."""
COST = ComputeCost(1e-3, 1e-4, 0.0, 1e-3, 1e-4)


class PlacedDirectory(MemoryDirectory):
    """In memory, with what a peer asks of its own node."""

    met_maddrs: tuple[str, ...] = ()

    def __init__(self, store: MemoryStore, peer: PlacedPeer) -> None:
        super().__init__(store, time.time)
        self._peer = peer

    async def announce(self, record: SignedRecord) -> None:
        if not self._peer.is_silent:
            await super().announce(record)

    async def visible_maddrs(self) -> tuple[str, ...]:
        return ()

    async def until_closed(self) -> None:
        await asyncio.Event().wait()


@dataclass
class PlacedPeer:
    """A peer, its task, and how it is stopped."""

    identity: Identity
    stop: StopRequest
    task: asyncio.Task[None] | None = None
    ready: asyncio.Future[ReadyPeer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    before_load: Callable[[], None] = lambda: None
    """Called in the loading thread, between pieces; what it raises is how the load fails."""
    free_bytes: int = 10**12
    is_silent: bool = False
    """Nothing that it announces arrives."""

    @property
    def id(self) -> str:
        return self.identity.peer_id

    stages: list[weakref.ref[Stage]] = field(default_factory=list)

    def modules(self) -> list[weakref.ref[torch.nn.Module]]:
        """Those of the blocks that were loaded last."""
        stage = self.stages[-1]()
        assert stage is not None
        return [weakref.ref(hosted.module) for hosted in stage.hosted.values()]

    async def kill(self) -> None:
        """End without a word to anybody."""
        assert self.task is not None
        self.is_silent = True
        self.task.cancel()
        await asyncio.wait([self.task])


@dataclass
class PlacedSwarm:
    """The peers of one model, and what the directory says of them."""

    folder: Path
    checkpoint: Checkpoint
    examined: Examined
    store: MemoryStore = field(default_factory=MemoryStore)
    peers: list[PlacedPeer] = field(default_factory=list)
    views: list[SwarmView] = field(default_factory=list)
    dialers: list[Dialer] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return self.checkpoint.model_digest().hex()

    def start(self, blocks: str, *, kv_tokens: int = 2048, timing: PeerTiming = TIMING) -> PlacedPeer:
        """Begin to start a peer with `--blocks BLOCKS`."""
        peer = PlacedPeer(Identity.generate(), StopRequest())
        peer.task = asyncio.create_task(self._run(peer, BlockRequest.parse(blocks), kv_tokens, timing))
        self.peers.append(peer)
        return peer

    async def _run(self, peer: PlacedPeer, blocks: BlockRequest, kv_tokens: int, timing: PeerTiming) -> None:
        folder = self.folder / peer.id
        examined, checkpoint, digest = self.examined, self.checkpoint, self.digest
        config = PeerConfig(
            model="model", blocks=blocks, initial_peers=(), identity_path=folder / "key",
            host="127.0.0.1", port=0, announce=(), dht_port=0, swarm_key_path=None, allowed_peers=frozenset(),
            kv_tokens=kv_tokens, replay_bytes=1 << 24, prefix_cache_bytes=0, device="cpu", dtype="auto",
            quantize="none", threads=1, nice=False, data_folder=folder, metrics_host="127.0.0.1", metrics_port=None,
            name="", revision=None, timing=timing,
        )  # fmt: skip

        def load(blocks, reuse, check):  # type: ignore[no-untyped-def]
            def progress(*_: object) -> None:
                check()
                peer.before_load()

            stage = load_examined(checkpoint, blocks, examined, progress, reuse)
            peer.stages.append(weakref.ref(stage))
            return stage

        dialer, directory = Dialer(rule=EVERY_RANGE), PlacedDirectory(self.store, peer)
        lookups = RecentLookups(directory, digest, None, time.time, timing)
        count = len(blocks.blocks) if blocks.blocks is not None else blocks.count or 3
        offer = MemoryOffer.of(count, kv_tokens, examined.block_bytes, examined.kv_bytes_per_token)
        rng = random.Random(len(self.peers))
        announcer = Announcer(directory, peer.identity, None, time.time, rng, lookups.announced, timing)
        watch = SwarmWatch(
            peer.identity.peer_id, checkpoint.num_blocks, lookups.records, None, dialer, time.time, rng, timing
        )
        setup = PeerSetup(
            config, peer.identity, None, checkpoint, digest, dialer, directory, lookups, examined, offer,
            BlockSource(load, checkpoint.block_hashes), announcer, watch, (), time.time_ns(),
            free_bytes=lambda: peer.free_bytes,
        )  # type: ignore[arg-type]  # fmt: skip
        CostStore(folder).save(setup.measured, COST)
        try:
            await serve_until(setup, await first_blocks(setup), peer.ready.set_result, peer.stop)
        finally:
            await lookups.close()
            await dialer.close()

    async def specs(self) -> dict[str, PeerSpec]:
        """The peers that have not left, as the directory has them."""
        records = await MemoryDirectory(self.store, time.time).lookup(swarm_key_name(self.digest, None))
        specs = [open_peer_record(record, None).spec for record in records]
        return {spec.id: spec for spec in specs if spec.state is not PeerState.LEAVING}

    async def placement(self) -> dict[str, str]:
        """The blocks of the peers that serve."""
        specs = (await self.specs()).values()
        return {spec.id: str(spec.blocks) for spec in specs if spec.state is PeerState.SERVING}

    async def servers(self) -> list[int]:
        """By block, how many peers say that they serve it."""
        serving = [s.blocks for s in (await self.specs()).values() if s.state is PeerState.SERVING and s.blocks]
        return [sum(block in blocks for blocks in serving) for block in range(self.checkpoint.num_blocks)]

    async def until(self, condition: Callable[[dict[str, PeerSpec]], bool], seconds: float = 60.0) -> None:
        """Wait until the records of the peers say so; a peer that fails is an error at once."""
        async with asyncio.timeout(seconds):
            while not condition(await self.specs()):
                for peer in self.peers:
                    if peer.task is not None and peer.task.done() and not peer.task.cancelled():
                        peer.task.result()
                await asyncio.sleep(0.02)

    async def until_covered(self, seconds: float = 60.0) -> None:
        def covered(specs: dict[str, PeerSpec]) -> bool:
            serving = [s.blocks for s in specs.values() if s.state is PeerState.SERVING and s.blocks and not s.claim]
            return len({block for blocks in serving for block in blocks}) == self.checkpoint.num_blocks

        await self.until(covered, seconds)

    async def client(self, on_event: Callable[[SessionEvent], None] = lambda event: None) -> SessionConfig:
        identity, dialer = Identity.generate(), Dialer(rule=EVERY_RANGE)
        self.dialers.append(dialer)
        addresses = [peer.ready.result().address for peer in self.peers if peer.ready.done()]
        view = SwarmView(
            identity, dialer, addresses, self.digest, self.checkpoint.num_blocks, None, timing=CLIENT_TIMING
        )
        self.views.append(view)
        await view.start()
        return SessionConfig(
            identity=identity, dialer=dialer, router=ViewRouter(view),
            model_digest=self.digest, num_blocks=self.checkpoint.num_blocks, wire_format="auto",
            codec=FloatCodec(self.checkpoint.config.hidden_size), swarm_key=None, relay_always=False,
            on_event=on_event, timing=CLIENT_TIMING,
        )  # fmt: skip

    async def close(self) -> None:
        for view in self.views:
            await view.close()
        for dialer in self.dialers:
            await dialer.close()
        tasks = [peer.task for peer in self.peers if peer.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def placed_swarm(folder: Path, checkpoint_folder: Path) -> AsyncIterator[PlacedSwarm]:
    """No peers yet. `folder` is for their own files."""
    checkpoint = open_checkpoint(checkpoint_folder)
    examined = examine_model(checkpoint, "cpu", "float32", "none", 1, time.perf_counter)
    swarm = PlacedSwarm(folder, checkpoint, examined)
    try:
        yield swarm
    finally:
        await swarm.close()
