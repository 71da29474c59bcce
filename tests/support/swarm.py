"""Swarms for tests: peers and clients of one process, over real gRPC on loopback, with a directory in memory."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from blockswarm.client.chain.formats import AUTO
from blockswarm.client.chain.prefixes import PageNames
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.codec import FloatCodec
from blockswarm.client.config import SessionConfig, SessionEvent
from blockswarm.client.swarm.router import ViewRouter
from blockswarm.client.swarm.view import SwarmView
from blockswarm.client.timing import ClientTiming
from blockswarm.peer.engine.blocks.stage import Stage
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.offer.lookups import Answer
from blockswarm.peer.session.parts import PeerParts
from blockswarm.peer.session.replay_store import DEFAULT_LIMIT_BYTES, ReplayStore
from blockswarm.peer.session.service import PeerService
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.directory import MemoryDirectory, MemoryStore
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import Checkpoint, open_checkpoint
from blockswarm.proto.network.address import HostPort, PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, Handlers, serve
from blockswarm.proto.wire.frames import ChunkFrame, StepFrame
from blockswarm.proto.wire.handshake import HelloChecker
from blockswarm.proto.wire.messages.limits import MAX_RECORDS_PER_KEY
from blockswarm.routing.admit.table import Reservation, SessionTable
from blockswarm.routing.nearby import Asker
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec, PeerState
from support.relays import LocalRelay

PATIENT = ClientTiming(lookup_seconds=20.0)
"""Peers, clients and tests share one process; on a busy machine an answer took it longer than the usual 5 s."""
USUAL_COST = ComputeCost(1e-3, prefill_per_token=1e-4)


@dataclass
class CountedStream:
    """A stream that a peer serves, and the bytes of tensors that come and go on it."""

    stream: Any
    count: Callable[[int], None]

    async def read(self) -> Any:
        return self._counted(await self.stream.read())

    async def write(self, frame: Any) -> None:
        await self.stream.write(self._counted(frame))

    def _counted(self, frame: Any) -> Any:
        if isinstance(frame, StepFrame | ChunkFrame):
            self.count(len(frame.step.data if isinstance(frame, StepFrame) else frame.data))
        return frame


RECORD_SECONDS = 100.0


class NotingTable(SessionTable):
    """Notes what sessions that would wait ask for."""

    def __init__(self, kv_token_blocks: int) -> None:
        super().__init__(kv_token_blocks)
        self.asked: list[Reservation] = []

    def join(self, reservation: Reservation, now: float) -> bool:
        self.asked.append(reservation)
        return super().join(reservation, now)


@dataclass
class LocalPeer:
    """A peer in this process."""

    identity: Identity
    service: PeerService
    parts: PeerParts
    server: object
    target: str
    blocks: BlockRange
    block_hashes: tuple[bytes, ...]
    cost: ComputeCost
    asked: list[Reservation]
    """By sessions that would wait for room."""
    relays: tuple[LocalRelay, ...] = ()
    """Through which it is reached; it then announces no address."""
    state: PeerState = PeerState.JOINING
    """As it has announced itself last."""
    announced_at: float = -math.inf
    """In Unix seconds; infinite when it is dead."""

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(self.identity.peer_id, self.target)

    async def kill(self) -> None:
        """Stop answering at once, as if the process had died."""
        self.announced_at = math.inf
        await self.server.stop(grace=0)


@dataclass
class LocalSwarm:
    """Peers that share a directory in memory."""

    checkpoint: Checkpoint
    swarm_key: SwarmKey | None = None
    timing: PeerTiming = field(default_factory=PeerTiming)
    """The time-outs of all peers."""
    prefix_bytes: int = 0
    """The limit on attention caches of earlier sessions, on every peer."""
    make_engine: Callable[[Stage, KvPool], Engine] = Engine
    clock: Callable[[], float] = time.time
    """The clock of all peers, as they tell it."""
    tensor_bytes: int = 0
    """Bytes of activations in the frames that all peers have read from streams, or answered on them."""
    store: MemoryStore = field(default_factory=MemoryStore)
    peers: list[LocalPeer] = field(default_factory=list)
    dialers: list[Dialer] = field(default_factory=list)
    views: list[SwarmView] = field(default_factory=list)
    relays: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)
    """Where those are that have been added."""

    @property
    def digest(self) -> str:
        return self.checkpoint.model_digest().hex()

    async def start_peer(
        self,
        blocks: BlockRange,
        *,
        replay_bytes: int = DEFAULT_LIMIT_BYTES,
        kv_tokens: int = 4096,
        identity: Identity | None = None,
        checkpoint: Checkpoint | None = None,
        host: str = "127.0.0.1",
        cost: ComputeCost = USUAL_COST,
        dtype: torch.dtype = torch.float32,
        relays: Sequence[LocalRelay] = (),
    ) -> LocalPeer:
        """`checkpoint`: where its weights come from, if not from that of the swarm.

        With `relays` the peer is reached through these only.
        """
        identity, checkpoint = identity or Identity.generate(), checkpoint or self.checkpoint
        directory = MemoryDirectory(self.store, time.time)
        stage = load_stage(checkpoint, blocks, dtype)
        engine = self.make_engine(stage, KvPool(kv_tokens * len(blocks) * stage.kv_bytes_per_token, self.prefix_bytes))
        sessions = NotingTable(kv_tokens * len(blocks))

        async def lookup(
            name: str, network: str, asker: Asker | None = None, most: int = MAX_RECORDS_PER_KEY, /
        ) -> Answer:
            await self.renew(time.time())
            records = await directory.lookup(name)
            return Answer(records[:most], len(records))

        dialer = Dialer(rule=EVERY_RANGE)
        self.dialers.append(dialer)
        parts = PeerParts(
            identity=identity,
            engine=engine,
            hosting=engine,
            sessions=sessions,
            replay=ReplayStore(replay_bytes),
            hellos=HelloChecker(identity.peer_id, time.time, self.swarm_key),
            dialer=dialer,
            model_digest=self.digest,
            model_name="test",
            swarm_key=self.swarm_key,
            lookup=lookup,
            dht_addresses=list,
            clock=self.clock,
            timing=self.timing,
            relay_addresses=lambda relay: self.relays.get(relay, ()),
        )
        service = PeerService(parts)
        server, port = await serve(identity, self._counting(service.handlers), host, 0)
        hashes = checkpoint.block_hashes(blocks)
        peer = LocalPeer(
            identity, service, parts, server, f"{host}:{port}", blocks, hashes, cost, sessions.asked, tuple(relays)
        )
        self.peers.append(peer)
        for relay in relays:
            await relay.tunnel(identity, HostPort(host, port), self.swarm_key)
        await self._announce(peer, PeerState.SERVING)
        return peer

    async def add_relay(self, relay: LocalRelay) -> None:
        """Have everybody know where a relay is: it announces itself, and hosts nothing."""
        self.relays[relay.address.peer] = (relay.address.target,)
        spec = PeerSpec(relay.address.peer, None, USUAL_COST, PeerState.JOINING)
        record = PeerRecord(self.digest, spec, addresses=(relay.address.target,), incarnation=1, relay_places=8)
        signed = sign_peer_record(relay.identity, record, self.swarm_key, time.time() + RECORD_SECONDS)
        await MemoryDirectory(self.store, time.time).announce(signed)

    def _counting(self, handlers: Handlers) -> Handlers:
        def note(nbytes: int) -> None:
            self.tensor_bytes += nbytes

        return replace(
            handlers,
            session=lambda stream, host: handlers.session(CountedStream(stream, note), host),
            push=lambda stream: handlers.push(CountedStream(stream, note)),
        )

    async def drain(self, peer: LocalPeer) -> None:
        """The peer is about to leave, and the clients have seen that."""
        peer.service.drain()
        await self._announce(peer, PeerState.DRAINING)
        for view in self.views:
            await view.refresh()

    async def renew(self, now: float) -> None:
        """Announce peers anew before their records expire, as real ones do: a busy machine makes any test last long.

        Records that a test has removed stay away.
        """
        kept = {peer_id for records in self.store.records.values() for peer_id in records}
        for peer in self.peers:
            if peer.identity.peer_id in kept and now - peer.announced_at > RECORD_SECONDS / 3:
                await self._announce(peer, peer.state)

    async def _announce(self, peer: LocalPeer, state: PeerState) -> None:
        peer.state, peer.announced_at = state, time.time()
        sessions, refuses = peer.parts.sessions, peer.service.draining
        spec = PeerSpec(
            id=peer.identity.peer_id,
            blocks=peer.blocks,
            cost=peer.cost,
            state=state,
            kv_tokens_total=0 if refuses else sessions.kv_token_blocks_total,
            kv_tokens_free=0 if refuses else sessions.kv_token_blocks_free,
            block_hashes=peer.block_hashes,
            stream_format=peer.parts.engine.stage.stream_format,
        )
        record = PeerRecord(
            self.digest, spec, addresses=() if peer.relays else (peer.target,), incarnation=time.time_ns(),
            relays=tuple(relay.address.peer for relay in peer.relays), device_class="cpu, 1 thread", tokens_served=0,
        )  # fmt: skip
        signed = sign_peer_record(peer.identity, record, self.swarm_key, peer.announced_at + RECORD_SECONDS)
        await MemoryDirectory(self.store, time.time).announce(signed)

    async def client(
        self, *, initial: Sequence[PeerAddress] | None = None, swarm_key: SwarmKey | None = None, push: bool = True,
        events: list[SessionEvent] | None = None, hidden_size: int | None = None, timing: ClientTiming | None = None,
        proven: Mapping[int, bytes] | None = None,
        wire_format: str = AUTO, prefix_cache: bool = False,
    ) -> SessionConfig:  # fmt: skip
        identity, dialer = Identity.generate(), Dialer(rule=EVERY_RANGE)
        self.dialers.append(dialer)
        addresses = initial if initial is not None else [peer.address for peer in self.peers[:2]]
        view = SwarmView(
            identity, dialer, addresses, self.digest, self.checkpoint.num_blocks, swarm_key or self.swarm_key, push,
            timing=timing or PATIENT, proven=proven,
        )  # fmt: skip
        self.views.append(view)
        await view.start()
        size = hidden_size or self.checkpoint.config.hidden_size
        return SessionConfig(
            identity=identity,
            dialer=dialer,
            router=ViewRouter(view),
            model_digest=self.digest,
            num_blocks=self.checkpoint.num_blocks,
            wire_format=wire_format,
            codec=FloatCodec(size),
            page_names=PageNames(identity, self.digest, wire_format, 4 * size) if prefix_cache else None,
            swarm_key=swarm_key or self.swarm_key,
            relay_always=not push,
            on_event=(events.append if events is not None else lambda event: None),
            timing=timing or PATIENT,
        )

    async def session(self, kv_tokens: int = 512, max_rows: int = 4, **options: object) -> ChainSession:
        return ChainSession(await self.client(**options), kv_tokens, max_rows)

    async def close(self) -> None:
        for view in self.views:
            await view.close()
        for peer in self.peers:
            await peer.kill()
            peer.parts.engine.close()
        for dialer in self.dialers:
            await dialer.close()


@asynccontextmanager
async def local_swarm(folder: Path, *ranges: str, **options: object) -> AsyncIterator[LocalSwarm]:
    """A swarm with one peer per range ("0:2") of the checkpoint in `folder`."""
    swarm = LocalSwarm(open_checkpoint(folder), **options)
    try:
        for blocks in ranges:
            await swarm.start_peer(BlockRange.parse(blocks))
        yield swarm
    finally:
        await swarm.close()
