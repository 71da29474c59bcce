"""A peer's service over in-memory streams with a real engine: what is over before something else is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import Stage
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine, SessionKv
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.session.parts import PeerParts
from blockswarm.peer.session.replay_store import ReplayStore
from blockswarm.peer.session.service import PeerService
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.frames import StepFrame, WireStep, cut_step
from blockswarm.proto.wire.handshake import Grant, HelloChecker, sign_capability, sign_hello
from blockswarm.proto.wire.messages.opening import OpenedFrame, OpenFrame, QueuedFrame
from blockswarm.proto.wire.messages.session import CloseFrame, FailureFrame
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.admit.table import SessionTable
from blockswarm.routing.swarm import BlockRange, Coordinate, PeerId
from support.directories import until
from support.memory_net import CLIENT, MemoryCall, MemoryNet
from support.tiny_models import write_tiny_checkpoint

BLOCKS = BlockRange(0, 2)
ROOM_TOKENS = 100
HIDDEN = 64
DIGEST = "ab" * 32


class WatchedEngine(Engine):
    """Counts the sessions that are being released, and can be kept busy."""

    releasing = 0

    async def release(self, kv: SessionKv) -> None:
        self.releasing += 1
        await super().release(kv)


class World:
    """One peer with room for one session of ROOM_TOKENS tokens."""

    def __init__(self, stage: Stage) -> None:
        pool = KvPool(ROOM_TOKENS * len(BLOCKS) * stage.kv_bytes_per_token, prefix_limit_bytes=0)
        self.engine = WatchedEngine(stage, pool)
        self.table = SessionTable(ROOM_TOKENS * len(BLOCKS))
        self.identity, self.client = Identity.generate(), Identity.generate()
        self.net = MemoryNet()
        self.places: list[tuple[PeerId, Coordinate]] = []
        """Places that clients have told."""
        self.service = PeerService(
            PeerParts(
                identity=self.identity,
                engine=self.engine,
                hosting=self.engine,
                sessions=self.table,
                replay=ReplayStore(),
                hellos=HelloChecker(self.identity.peer_id, time.time, None),
                dialer=self.net.dialer(self.identity.peer_id),
                model_digest=DIGEST,
                model_name="test",
                swarm_key=None,
                lookup=lambda name: NotImplemented,
                dht_addresses=list,
                on_client=lambda client, place: self.places.append((client, place)),
                timing=PeerTiming(previous_stream_seconds=0.5, write_seconds=0.2),
            )
        )
        self.net.add(self.identity.peer_id, self.service.handlers)

    async def open(
        self, number: int, wait: bool = False, epoch: int = 1, place: Coordinate | None = None
    ) -> MemoryCall:
        """A stream with its opening sent."""
        me, client = self.identity.peer_id, self.client
        grant = Grant(
            number.to_bytes(16, "big"), epoch, client.peer_id, me, BLOCKS, ROOM_TOKENS, 1, None, None, "float32",
            "float32", time.time() + 100, DIGEST,
        )  # fmt: skip
        hello = sign_hello(client, me, grant.session_id, time.time(), None)
        capability = sign_capability(client, grant)
        call = self.net.dialer(CLIENT).stub(PeerAddress(me, "10.0.0.1:1")).session()
        await call.write(OpenFrame(hello, capability, wait_seconds=60.0 if wait else 0.0, place=place))
        return call

    def close(self) -> None:
        self.engine.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    torch.set_num_threads(1)
    return load_stage(open_checkpoint(write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))), BLOCKS)


@pytest.fixture
def world(stage: Stage) -> Iterator[World]:
    made = World(stage)
    yield made
    made.close()


def run(work: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(bounded())


def test_the_place_of_a_client_is_told_once_its_session_is_admitted(world: World) -> None:
    """Peers announce centroids of these; one that only waits for room was not served here."""
    here = Coordinate((0.125, 0.0, -0.5), 0.25)

    async def scenario() -> None:
        first = await world.open(1, place=here)
        assert isinstance(await first.read(), OpenedFrame)
        waiting = await world.open(2, wait=True, place=here)
        assert isinstance(await waiting.read(), QueuedFrame)
        assert world.places == [(world.client.peer_id, here)]

    run(scenario())


async def take_a_step(call: MemoryCall) -> None:
    plan = StepPlan((RowSlice(0, 0, 1, 1),))
    (head,) = cut_step(WireStep(1, 1, plan, torch.zeros(1, HIDDEN).numpy().tobytes(), 0, 10.0))
    await call.write(head)
    assert isinstance(await call.read(), StepFrame)


async def close_and_break(world: World, call: MemoryCall) -> None:
    """The client closes as it should, and its stream breaks while the peer clears the session away."""
    before = world.engine.releasing
    await call.write(CloseFrame())
    await until(lambda: world.engine.releasing > before)
    call.break_with("the client is gone")


async def break_twice(world: World, call: MemoryCall) -> None:
    """The stream breaks, and the server is stopped on top of that."""
    before = world.engine.releasing
    call.break_with("the client is gone")
    await until(lambda: world.engine.releasing > before)
    assert call.task is not None
    call.task.cancel()


@pytest.mark.parametrize("leave", [close_and_break, break_twice])
def test_room_is_handed_on_only_after_the_engine_has_freed_the_cache(world: World, leave: Any) -> None:
    async def scenario() -> None:
        first = await world.open(1)
        assert isinstance(await first.read(), OpenedFrame)
        await take_a_step(first)
        reserved = world.engine.pool.reserved_bytes
        assert reserved == world.engine.pool.capacity_bytes
        second = await world.open(2, wait=True)
        assert isinstance(await second.read(), QueuedFrame)

        busy = threading.Event()
        working = asyncio.create_task(world.engine.submit(lambda: busy.wait(60)))
        await asyncio.sleep(0)
        await leave(world, first)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.engine.pool.reserved_bytes == reserved
        assert (world.table.sessions, world.table.waiting) == (1, 1), "the first session still holds its room"
        idle = asyncio.create_task(world.service.wait_idle())
        await asyncio.sleep(0)
        assert not idle.done()

        busy.set()
        assert isinstance(await second.read(), OpenedFrame)
        assert world.engine.pool.reserved_bytes == 0
        await working
        await second.write(CloseFrame())
        await idle
        assert world.table.kv_token_blocks_free == world.table.kv_token_blocks_total

    run(scenario())


def test_a_later_epoch_takes_the_place_of_a_stream_that_is_dead_and_does_not_show_it(world: World) -> None:
    """The client's connection is half-open: here nothing tells, and the client comes again over another one."""

    async def scenario() -> None:
        dead = await world.open(1)
        assert isinstance(await dead.read(), OpenedFrame)
        again = await world.open(1, epoch=2)
        assert isinstance(await again.read(), OpenedFrame)
        assert world.table.sessions == 1
        told = await dead.read()
        assert isinstance(told, FailureFrame)
        assert "anew" in told.message
        await again.write(CloseFrame())
        await world.service.wait_idle()

    run(scenario())


def test_a_later_epoch_takes_the_place_of_a_stream_that_waits_and_is_dead(world: World) -> None:
    async def scenario() -> None:
        holder = await world.open(1)
        assert isinstance(await holder.read(), OpenedFrame)
        dead = await world.open(2, wait=True)
        assert isinstance(await dead.read(), QueuedFrame)
        again = await world.open(2, wait=True, epoch=2)
        assert isinstance(await again.read(), QueuedFrame)
        assert (world.table.sessions, world.table.waiting) == (1, 1)
        told = await dead.read()
        assert isinstance(told, FailureFrame)
        assert "anew" in told.message
        await holder.write(CloseFrame())
        while isinstance(frame := await again.read(), QueuedFrame):
            pass
        assert isinstance(frame, OpenedFrame)
        await again.write(CloseFrame())
        await world.service.wait_idle()

    run(scenario())


def test_an_earlier_epoch_does_not_take_the_place_of_a_stream_that_waits(world: World) -> None:
    """A hello that somebody has copied and sends again must not end what its client has begun since."""

    async def scenario() -> None:
        holder = await world.open(1)
        assert isinstance(await holder.read(), OpenedFrame)
        waiting = await world.open(2, wait=True, epoch=2)
        assert isinstance(await waiting.read(), QueuedFrame)
        late = await world.open(2, wait=True, epoch=1)
        told = await late.read()
        assert isinstance(told, FailureFrame)
        assert "open on this peer already" in told.message
        await holder.write(CloseFrame())
        while isinstance(frame := await waiting.read(), QueuedFrame):
            pass
        assert isinstance(frame, OpenedFrame)
        await waiting.write(CloseFrame())
        await world.service.wait_idle()

    run(scenario())


class Deaf:
    """A stream whose other side says what it wants and takes nothing."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    async def read(self) -> Any:
        return self._frame

    async def write(self, frame: Any) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("call", ["session", "push"])
def test_a_stream_that_is_refused_and_takes_nothing_ends(world: World, call: str) -> None:
    """Nothing of it stays, and its handler ends without an error: gRPC would log one as a defect of ours."""
    where = ("10.0.0.1",) if call == "session" else ()
    run(getattr(world.service, call)(Deaf(QueuedFrame(1, 1.0)), *where))
