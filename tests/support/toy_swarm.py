"""Clients and peers of one process without network, weights or waiting: their real code with the toy engine, in-memory
streams and virtual time. Every peer hosts all blocks, and has room for a few of them: chains enter and leave anywhere.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from blockswarm.client.chain.session import ChainSession
from blockswarm.client.config import SessionConfig, SessionEvent
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.router import ViewRouter
from blockswarm.client.swarm.view import SwarmView
from blockswarm.client.timing import ClientTiming
from blockswarm.peer.session.parts import PeerParts
from blockswarm.peer.session.replay_store import ReplayStore
from blockswarm.peer.session.service import PeerService
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.errors import PeerBusy, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.handshake import HelloChecker
from blockswarm.proto.wire.messages.calls import PingReply
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.admit.queue import MAX_WAITING, AdmissionQueue
from blockswarm.routing.admit.table import SessionTable
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec
from support.memory_net import MemoryNet
from support.toy_engine import ToyCodec, ToyEngine, ToyKv, pack, unpack
from support.virtual_time import VirtualTimeLoop

NUM_BLOCKS = 6
WHOLE = BlockRange(0, NUM_BLOCKS)
DIGEST = "ab" * 32
ANNOUNCE_SECONDS = 20.0
TOKEN_SECONDS = 0.5
"""The pause of a session's user after each token."""


class Peer:
    """A peer that hosts every block, and has room for a few of them: a chain enters and leaves anywhere."""

    def __init__(self, world: World, table: SessionTable) -> None:
        self.identity = Identity.generate()
        self._world = world
        self.table = table
        engine = ToyEngine(WHOLE)
        self.parts = PeerParts(
            identity=self.identity,
            engine=engine,
            hosting=engine,
            sessions=self.table,
            replay=ReplayStore(1 << 20),
            hellos=HelloChecker(self.identity.peer_id, world.clock, None),
            dialer=world.net.dialer(self.identity.peer_id),
            model_digest=DIGEST,
            model_name="toy",
            swarm_key=None,
            lookup=lambda name: NotImplemented,
            dht_addresses=list,
            clock=world.clock,
        )
        self.service = PeerService(self.parts)
        world.net.add(self.identity.peer_id, self.service.handlers)

    def announcement(self) -> KnownPeer:
        now = self._world.clock()
        spec = PeerSpec(
            self.identity.peer_id,
            WHOLE,
            ComputeCost(0.01),
            kv_tokens_total=self.table.kv_token_blocks_total,
            kv_tokens_free=self.table.kv_token_blocks_open,
            releases=self.table.releases(now),
            block_hashes=(b"8" * 8,) * len(WHOLE),
        )
        record = PeerRecord(DIGEST, spec, addresses=("10.0.0.1:1",), incarnation=1)
        encoded = sign_peer_record(self.identity, record, None, now + 100).encode()
        address = PeerAddress(self.identity.peer_id, "10.0.0.1:1")
        return KnownPeer(record, encoded, address, 0.05, 0.0, PingReply())


class View(SwarmView):
    """The client's view, fed from what the peers of this test announced last."""

    def __init__(self, world: World) -> None:
        dialer = world.net.dialer(PeerId("viewer"))
        super().__init__(Identity.generate(), dialer, (), DIGEST, NUM_BLOCKS, None, clock=world.clock)  # type: ignore[arg-type]
        self._world = world
        self.seen_at = -ClientTiming().refresh_seconds

    async def refresh(self) -> None:
        await asyncio.sleep(0.1)
        await self.see(dict(self._world.announced))
        self.seen_at = self._world.loop.time()


@dataclass
class Visit:
    """One session, from the client's wish to how it ended."""

    started_at: float
    outcome: str = "stuck"
    admitted_after: float | None = None
    events: list[SessionEvent] = field(default_factory=list)


class World:
    def __init__(
        self, rooms: Sequence[int], clients: int, patience_seconds: float, seed: int, max_waiting: int = MAX_WAITING
    ) -> None:
        """One peer for each of `rooms` (KV tokens x blocks), each with a queue for `max_waiting` sessions."""
        self.loop = VirtualTimeLoop()
        self.errors: list[object] = []
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(context))
        self.net = MemoryNet()
        self.rng = random.Random(seed)
        self.visits: list[Visit] = []
        self.announced: dict[PeerId, KnownPeer] = {}

        async def start() -> None:
            self.peers = [Peer(self, SessionTable(room, queue=AdmissionQueue(max_waiting))) for room in rooms]
            self.clients = [(PeerId(f"client {n}"), Identity.generate(), View(self)) for n in range(clients)]

        self.patience_seconds = patience_seconds
        self.loop.run(start())

    def clock(self) -> float:
        return 1_800_000_000.0 + self.loop.time()

    async def announce(self) -> None:
        while True:
            self.announced = {peer.identity.peer_id: peer.announcement() for peer in self.peers}
            await asyncio.sleep(ANNOUNCE_SECONDS)

    def config(self, client: int, visit: Visit) -> SessionConfig:
        name, identity, view = self.clients[client]
        return SessionConfig(
            identity=identity,
            dialer=self.net.dialer(name),
            router=ViewRouter(view, clock=self.clock),
            model_digest=DIGEST,
            num_blocks=NUM_BLOCKS,
            wire_format="float32",
            codec=ToyCodec(),
            on_event=visit.events.append,
            clock=self.clock,
            patience_seconds=self.patience_seconds,
        )

    async def visit(self, client: int, at: float, tokens: int, vanish_after: float | None) -> None:
        """One session that fills its reservation, unless its client vanishes."""
        await asyncio.sleep(at)
        view = self.clients[client][2]
        if self.loop.time() - view.seen_at >= ClientTiming().refresh_seconds:
            await view.refresh()
        visit = Visit(self.loop.time())
        self.visits.append(visit)
        name = PeerId(f"{self.clients[client][0]}, session {len(self.visits)}")
        config = replace(self.config(client, visit), dialer=self.net.dialer(name))
        session = ChainSession(config, tokens, 1)
        try:
            async with asyncio.timeout(vanish_after):
                await self.talk(session, tokens, visit)
                visit.outcome = "tokens"
        except TimeoutError:
            visit.outcome = "vanished"
            if self.rng.random() < 0.5:  # the process dies: nobody closes anything
                self.net.vanish(name)
                await session.close()  # what is left of it here; nobody hears of it any more
                return
        except PeerBusy as error:
            visit.outcome = "busy"
            assert error.retry_after_seconds > 0  # noqa: PT017
        except SwarmError as error:
            visit.outcome = repr(error)
        await session.close()

    async def talk(self, session: ChainSession, tokens: int, visit: Visit) -> None:
        truth, position, prompt = ToyKv(WHOLE, tokens, 1), 0, tokens // 2
        for count in (prompt, *(1 for _ in range(tokens - prompt))):
            plan, data = StepPlan((RowSlice(0, position, count, 1),)), pack(range(position, position + count))
            answer = await session.run(plan, data)
            assert unpack(answer) == unpack(truth.step(plan, data).data)[-1:]
            if visit.admitted_after is None:
                visit.admitted_after = self.loop.time() - visit.started_at
            position += count
            await asyncio.sleep(TOKEN_SECONDS)

    def play(self, sessions: int, seconds: float, vanishing: float) -> Counter[str]:
        """Play `sessions` sessions that begin within `seconds`; a share of `vanishing` of the clients go away."""

        async def everybody() -> None:
            announcing = asyncio.create_task(self.announce())
            await asyncio.sleep(0)
            async with asyncio.TaskGroup() as group:
                for number in range(sessions):
                    gone = self.rng.choice([0.05, 0.3, 1.0, 5.0, 20.0, 45.0]) * self.rng.random()
                    group.create_task(
                        self.visit(
                            number % len(self.clients),
                            self.rng.uniform(0, seconds),
                            self.rng.randint(4, 16),
                            gone if self.rng.random() < vanishing else None,
                        )
                    )
            announcing.cancel()
            await asyncio.sleep(100)

        self.loop.run(everybody())
        return Counter(visit.outcome for visit in self.visits)

    def check_nothing_is_left(self) -> None:
        assert not self.errors, self.errors[:2]
        for peer in self.peers:
            table = peer.table
            assert (table.sessions, table.waiting) == (0, 0)
            assert table.kv_token_blocks_free == table.kv_token_blocks_total
            assert not peer.service.open_ids
            assert peer.service.waiting_sessions == 0
            assert peer.parts.replay.nbytes == 0
            assert peer.parts.names.nbytes == 0
        left = [task for task in asyncio.all_tasks(self.loop) if not task.done()]
        assert not left, left
        self.loop.close()
