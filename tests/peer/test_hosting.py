"""Other blocks are hosted while sessions run: what they compute, what they keep, and what the peer has room for."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import BatchingRoute, Stage
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.cache.session import SessionKv
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.engine.step_record import StepRecord
from blockswarm.peer.hosting import BlockSource, Hosted, Hosting, rest_after_release
from blockswarm.peer.offer.capacity import MemoryOffer
from blockswarm.peer.session.parts import PeerParts
from blockswarm.peer.session.replay_store import ReplayStore
from blockswarm.peer.session.service import PeerService
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import OutOfMemory, RetryElsewhere, SessionLost
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import Checkpoint, open_checkpoint
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.frames import StepFrame, WireStep, cut_step
from blockswarm.proto.wire.handshake import Grant, HelloChecker, sign_capability, sign_hello
from blockswarm.proto.wire.messages.opening import OpenedFrame, OpenFrame, QueuedFrame
from blockswarm.proto.wire.messages.session import CloseFrame, FailureFrame
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.admit.table import SessionTable
from blockswarm.routing.swarm import BlockRange
from hypothesis import given
from hypothesis import strategies as st
from support.memory_net import CLIENT, MemoryCall, MemoryNet
from support.tiny_models import write_tiny_checkpoint

HIDDEN = 64
DIGEST = "ab" * 32
KV_TOKENS = 100
TIMING = PeerTiming(release_seconds=20.0, watch_seconds=0.02)
BEFORE, AFTER = BlockRange(0, 4), BlockRange(2, 6)
DROPPED, KEPT, NEW = BlockRange(0, 2), BlockRange(2, 4), BlockRange(4, 6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    return open_checkpoint(write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama")))


class LingeringThreads(ThreadPoolExecutor):
    """Threads that hold what they were called with after it has returned, as those of a busy machine do for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[..., Any]] = []

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        self.calls.append(call)
        return super().submit(call, *args, **kwargs)


class World:
    """One peer that hosts BEFORE, its client, and the whole model as the truth."""

    def __init__(self, checkpoint: Checkpoint, timing: PeerTiming) -> None:
        self.checkpoint, self.timing = checkpoint, timing
        self.load_error: Exception | None = None
        """Raised in the middle of a load, when one of its blocks is there."""
        self.free_bytes = 10**9
        self.memory_bytes: int | None = None
        """Where it is set: all memory, of which the blocks take their part as long as anybody has them."""
        self.modules: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self.on_progress: Callable[[], None] = lambda: None
        self.steps: list[StepRecord] = []
        self.swapped: list[str] = []
        self.net = MemoryNet()
        self.identity, self.client = Identity.generate(), Identity.generate()
        self._sessions = 0

    async def start(self) -> None:
        source = BlockSource(self.load, self.checkpoint.block_hashes)
        probe = self.load(BlockRange(0, 1), None, lambda: None)
        self.offer = MemoryOffer.of(len(BEFORE), KV_TOKENS, probe.block_bytes, probe.kv_bytes_per_token)
        first = await source.hosted(BEFORE, self.offer)
        self.engine = Engine(first.stage, KvPool(first.room_bytes, prefix_limit_bytes=0), listeners=[self.steps.append])
        self.hosting = Hosting(self.engine, first, self.offer, source, self.note_swap, self.free_bytes_now, self.timing)
        self.table = SessionTable(first.room)
        self.service = PeerService(
            PeerParts(
                identity=self.identity,
                engine=self.engine,
                hosting=self.hosting,
                sessions=self.table,
                replay=ReplayStore(),
                hellos=HelloChecker(self.identity.peer_id, time.time, None),
                dialer=self.net.dialer(self.identity.peer_id),
                model_digest=DIGEST,
                model_name="test",
                swarm_key=None,
                lookup=lambda name: NotImplemented,
                dht_addresses=list,
            )
        )
        self.net.add(self.identity.peer_id, self.service.handlers)
        whole = load_stage(self.checkpoint, BlockRange(0, 6))
        self.truth = Engine(whole, KvPool(0, prefix_limit_bytes=0))

    def load(self, blocks: BlockRange, reuse: Stage | None, check: Callable[[], None]) -> Stage:
        def progress(done: int, total: int) -> None:
            self.on_progress()
            check()
            if self.load_error is not None:
                raise self.load_error

        stage = load_stage(self.checkpoint, blocks, progress=progress, route=BatchingRoute.PACKED, reuse=reuse)
        self.modules.update(hosted.module for hosted in stage.hosted.values())
        return stage

    def free_bytes_now(self) -> int:
        if self.memory_bytes is None:
            return self.free_bytes
        return self.memory_bytes - len(self.modules) * self.offer.block_bytes

    async def swap(self, blocks: BlockRange) -> None:
        await self.hosting.adopt(await self.hosting.load(blocks))

    def note_swap(self, hosted: Hosted) -> None:
        self.swapped.append(str(hosted.blocks))
        self.service.rehost(hosted.room)

    async def open(self, blocks: BlockRange, kv_tokens: int = KV_TOKENS, wait: bool = False) -> Session:
        """A session whose opening was sent."""
        self._sessions += 1
        session = Session(self, self._sessions, blocks, kv_tokens)
        await session.send_opening(wait)
        return session

    async def close(self) -> None:
        async with asyncio.timeout(60):
            await self.service.wait_idle()
        assert self.table.kv_token_blocks_free == self.table.kv_token_blocks_total == self.hosting.now.room
        assert (self.engine.pool.reserved_bytes, self.engine.pool.used_bytes) == (0, 0)
        assert self.engine.pool.capacity_bytes == self.hosting.now.room_bytes
        self.engine.close()
        self.truth.close()


class Session:
    """A client's session on the peer, and the same one on the whole model."""

    def __init__(self, world: World, number: int, blocks: BlockRange, kv_tokens: int) -> None:
        self.world = world
        self.grant = Grant(
            number.to_bytes(16, "big"), 1, world.client.peer_id, world.identity.peer_id, blocks, kv_tokens, 1, None,
            None, "float32", "float32", time.time() + 100, DIGEST,
        )  # fmt: skip
        truth = world.truth
        self._truth: SessionKv = truth.open(blocks, truth.wire_format("float32"), kv_tokens, 1)
        self._tokens = self._steps = 0
        address = PeerAddress(world.identity.peer_id, "10.0.0.1:1")
        self.call: MemoryCall = world.net.dialer(CLIENT).stub(address).session()

    async def send_opening(self, wait: bool) -> None:
        me, client = self.world.identity.peer_id, self.world.client
        hello = sign_hello(client, me, self.grant.session_id, time.time(), None)
        capability = sign_capability(client, self.grant)
        await self.call.write(OpenFrame(hello, capability, wait_seconds=60.0 if wait else 0.0))

    async def answer(self) -> Any:
        """The next frame but news of the queue."""
        while isinstance(frame := await self.call.read(), QueuedFrame):
            pass
        return frame

    async def opened(self) -> Session:
        frame = await self.answer()
        assert isinstance(frame, OpenedFrame), frame
        return self

    async def refused(self) -> Exception:
        frame = await self.answer()
        assert isinstance(frame, FailureFrame), frame
        return frame.error

    async def step(self, count: int = 1) -> None:
        """Compute some more tokens, and compare."""
        plan = StepPlan((RowSlice(0, self._tokens, count, count),))
        data = torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(self._tokens)).numpy().tobytes()
        self._tokens += count
        self._steps += 1
        (head,) = cut_step(WireStep(1, self._steps, plan, data, 0, 10.0))
        await self.call.write(head)
        frame = await self.answer()
        assert isinstance(frame, StepFrame), frame
        wanted = self._truth.step(plan, data).data
        tensors = (torch.frombuffer(bytearray(packed), dtype=torch.float32) for packed in (frame.step.data, wanted))
        torch.testing.assert_close(*tensors, atol=2e-5, rtol=1e-4)

    async def close(self) -> None:
        await self.call.write(CloseFrame())


def run(
    checkpoint: Checkpoint, scenario: Callable[[World], Coroutine[Any, Any, None]], timing: PeerTiming = TIMING
) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            world = World(checkpoint, timing)
            await world.start()
            await scenario(world)
            await world.close()

    asyncio.run(bounded())


def test_sessions_go_on_over_a_swap_that_keeps_their_blocks_and_one_that_drops_them(checkpoint: Checkpoint) -> None:
    """Kept blocks are the same modules; a session on dropped blocks has them until it ends."""

    async def scenario(world: World) -> None:
        dropped, kept = await world.open(DROPPED, kv_tokens=50), await world.open(KEPT, kv_tokens=50)
        for session in (dropped, kept):
            await session.opened()
            await session.step(5)
        before = world.hosting.now
        await world.swap(AFTER)

        after = world.hosting.now
        assert (after.blocks, world.hosting.blocks, world.engine.blocks) == (AFTER, AFTER, AFTER)
        assert after.block_hashes == checkpoint.block_hashes(AFTER)
        assert world.swapped == [str(AFTER)]
        modules = [[stage.hosted[block].module for block in KEPT] for stage in (before.stage, after.stage)]
        assert all(old is new for old, new in zip(*modules, strict=True))

        new = await (await world.open(NEW, kv_tokens=50)).opened()
        again = await (await world.open(KEPT, kv_tokens=50)).opened()
        for _ in range(3):
            for session in (dropped, kept, new, again):
                await session.step()
        assert isinstance(await (await world.open(DROPPED, kv_tokens=1)).refused(), SessionLost)
        for session in (dropped, kept, new, again):
            await session.close()

    run(checkpoint, scenario)


def test_sessions_of_before_and_after_share_the_steps_of_kept_blocks(checkpoint: Checkpoint) -> None:
    async def scenario(world: World) -> None:
        old = await (await world.open(KEPT)).opened()
        await old.step()
        await world.swap(AFTER)
        new = await (await world.open(KEPT)).opened()
        await new.step()
        for _ in range(20):
            await asyncio.gather(old.step(), new.step())
        assert max(step.sessions for step in world.steps) == 2
        await old.close()
        await new.close()

    run(checkpoint, scenario)


class Defect(Exception):
    """No failure that a load may have."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RetryElsewhere("the hub does not answer"), RetryElsewhere),
        (OSError("the disk"), RetryElsewhere),
        (MemoryError(), OutOfMemory),
        (Defect("in a store"), Defect),
    ],
)
def test_a_load_that_fails_half_way_leaves_the_peer_as_it_was(
    checkpoint: Checkpoint, error: Exception, told: type[Exception]
) -> None:
    async def scenario(world: World) -> None:
        session = await (await world.open(DROPPED)).opened()
        await session.step(5)
        before = world.hosting.now
        world.load_error = error
        with pytest.raises(told):
            await world.swap(AFTER)
        assert world.hosting.now is before
        assert world.engine.stage is before.stage
        assert not world.swapped
        await session.step()
        other = await (await world.open(BEFORE, kv_tokens=50)).opened()
        await other.step()
        await session.close()
        await other.close()
        world.load_error = None
        await world.swap(AFTER)
        await (await (await world.open(NEW)).opened()).close()

    run(checkpoint, scenario)


def test_a_swap_that_is_cancelled_while_it_loads_changes_nothing(checkpoint: Checkpoint) -> None:
    async def scenario(world: World) -> None:
        before = world.hosting.now
        swapping = asyncio.create_task(world.swap(AFTER))
        await asyncio.sleep(0)
        swapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swapping
        assert world.hosting.now is before
        await world.swap(AFTER)

    run(checkpoint, scenario)


def test_a_load_that_nobody_waits_for_any_more_stops(checkpoint: Checkpoint) -> None:
    async def scenario(world: World) -> None:
        begun, cancelled, ended = threading.Event(), threading.Event(), threading.Event()
        pieces: list[int] = []

        def piece_by_piece() -> None:
            pieces.append(1)
            begun.set()
            if not cancelled.wait(60):
                ended.set()

        world.on_progress = piece_by_piece
        swapping = asyncio.create_task(world.swap(AFTER))
        await asyncio.to_thread(begun.wait, 30)
        swapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swapping
        world.on_progress = lambda: None
        cancelled.set()
        await world.swap(AFTER)
        assert len(pieces) <= 2, "one for each thread that reads"
        assert not ended.is_set()

    run(checkpoint, scenario)


def test_blocks_for_which_nothing_can_make_room_are_not_loaded(checkpoint: Checkpoint) -> None:
    async def scenario(world: World) -> None:
        world.free_bytes = -1  # two blocks would be dropped, and three are too many
        with pytest.raises(OutOfMemory, match="2:6 do not fit beside 0:4"):
            await world.swap(AFTER)
        assert not world.swapped
        world.free_bytes = 2 * world.offer.block_bytes
        await world.swap(AFTER)
        assert world.hosting.now.load_seconds > 0, "measured"
        measured = world.hosting.now.load_seconds
        await world.swap(KEPT)
        assert world.hosting.now.load_seconds == measured, "nothing was loaded"

    run(checkpoint, scenario)


@pytest.mark.long
def test_where_old_and_new_blocks_do_not_fit_together_old_ones_go_first(checkpoint: Checkpoint) -> None:
    """As many as necessary, and when their sessions have left; the others go on serving."""

    async def scenario(world: World) -> None:
        asyncio.get_running_loop().set_default_executor(LingeringThreads())
        dropped, kept = await (await world.open(BlockRange(0, 1), 50)).opened(), await (await world.open(KEPT)).opened()
        await dropped.step(3)
        world.memory_bytes = 5 * world.offer.block_bytes
        swapping = asyncio.create_task(world.swap(AFTER))
        while not world.swapped:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert world.swapped == ["1:4"]
        assert world.hosting.now.room == KV_TOKENS * len(BEFORE), "what is freed is wanted for weights"
        for _ in range(5):
            await dropped.step()
            await kept.step()
            await asyncio.sleep(0.01)
        assert not swapping.done(), "a session holds the memory"
        await dropped.close()
        while world.table.sessions > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        gc.collect()  # the peer does that when it asks for free memory
        await swapping
        assert world.swapped == ["1:4", "2:6"]
        await kept.step()
        await kept.close()
        gc.collect()
        assert len(world.modules) == len(AFTER)

    run(checkpoint, scenario)


@pytest.mark.long
@pytest.mark.parametrize("fails", ["load", "release"])
def test_what_was_dropped_for_a_load_that_fails_is_served_again(checkpoint: Checkpoint, fails: str) -> None:
    async def scenario(world: World) -> None:
        world.memory_bytes = 5 * world.offer.block_bytes
        failures = [RetryElsewhere("the hub does not answer")] if fails == "load" else []
        session = await (await world.open(BlockRange(0, 1), 50)).opened() if fails == "release" else None
        world.on_progress = lambda: raise_first(failures)
        with pytest.raises(RetryElsewhere if fails == "load" else OutOfMemory):
            await world.swap(AFTER)
        assert world.swapped == ["1:4", "0:4"]
        if session is not None:
            await session.step()
            await session.close()

    run(checkpoint, scenario, PeerTiming(release_seconds=20.0 if fails == "load" else 0.3, watch_seconds=0.02))


def test_what_cannot_be_served_again_after_a_failed_load_is_not_hosted(checkpoint: Checkpoint) -> None:
    """The record, the answer to an opening and the engine agree on what is left."""

    async def scenario(world: World) -> None:
        world.memory_bytes = 5 * world.offer.block_bytes

        def fail_and_take_the_memory() -> None:
            world.memory_bytes = 3 * world.offer.block_bytes
            raise RetryElsewhere("the hub does not answer")

        world.on_progress = fail_and_take_the_memory
        with pytest.raises(RetryElsewhere, match="does not answer"):
            await world.swap(AFTER)
        left = BlockRange(1, 4)
        assert world.swapped == [str(left)]
        assert world.hosting.blocks == world.engine.blocks == left
        assert world.hosting.now.block_hashes == checkpoint.block_hashes(left)
        assert isinstance(await (await world.open(BEFORE, kv_tokens=1)).refused(), SessionLost)
        await (await (await world.open(left, kv_tokens=50)).opened()).close()

    run(checkpoint, scenario)


def test_the_record_and_the_engine_change_in_one_step_of_the_loop(checkpoint: Checkpoint) -> None:
    """A record made in between would announce blocks that are dropped, and a session on them get a wrong error."""

    async def scenario(world: World) -> None:
        loaded = await world.hosting.load(AFTER)
        go, over = threading.Event(), threading.Event()
        held = asyncio.create_task(world.engine.submit(go.wait))
        adopting = asyncio.create_task(world.hosting.adopt(loaded))
        for _ in range(10):
            await asyncio.sleep(0)  # the swap is in the engine's hands
        last = asyncio.create_task(world.engine.submit(over.set))
        await asyncio.sleep(0)
        go.set()
        assert over.wait(60), "the engine's thread has done its part, and the loop has not heard"
        while not adopting.done():
            assert world.hosting.blocks == world.engine.blocks
            await asyncio.sleep(0)
        await asyncio.gather(held, adopting, last)
        assert world.hosting.blocks == world.engine.blocks == AFTER

    run(checkpoint, scenario)


def raise_first(failures: list[RetryElsewhere]) -> None:
    if failures:
        raise failures.pop()


@pytest.mark.long
@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 5), st.integers(1, 6), st.integers(1, 6))
def test_what_is_left_is_one_run_with_all_that_stays(
    start: int, size: int, first: int, length: int, count: int
) -> None:
    before, after = BlockRange(start, start + size), BlockRange(first, first + length)
    rest = rest_after_release(before, after, count)
    if count >= size or count > len(set(before) - set(after)):
        assert rest is None
    elif rest is not None:
        assert len(rest) == size - count
        assert set(before) & set(after) <= set(rest) <= set(before)
    else:
        assert before.start < after.start, "where both ends go..."
        assert before.stop > after.stop, "...one of them may be too short"


def test_the_room_follows_what_is_hosted(checkpoint: Checkpoint) -> None:
    """Fewer blocks leave more of the offered memory to caches, and the sessions that wait for it are let in."""

    async def scenario(world: World) -> None:
        assert world.table.kv_token_blocks_total == KV_TOKENS * len(BEFORE)
        full = await (await world.open(BEFORE)).opened()
        waiting = await world.open(KEPT, wait=True)
        assert isinstance(await waiting.call.read(), QueuedFrame)
        await world.swap(KEPT)
        room = world.offer.room(len(KEPT))
        assert room > KV_TOKENS * len(BEFORE)
        assert world.table.kv_token_blocks_total == room
        await waiting.opened()
        await waiting.step()
        await full.step()
        await full.close()
        await waiting.close()

    run(checkpoint, scenario)


@pytest.mark.long
def test_waiting_sessions_that_can_no_longer_be_served_are_refused(checkpoint: Checkpoint) -> None:
    """Their blocks are gone, or there is less room in all than they asked for; the others keep their places."""

    async def scenario(world: World) -> None:
        await world.swap(KEPT)
        room = world.table.kv_token_blocks_total
        full = await (await world.open(KEPT, kv_tokens=room // 2)).opened()
        gone = await world.open(BlockRange(2, 3), kv_tokens=10, wait=True)
        large = await world.open(BlockRange(3, 4), kv_tokens=room, wait=True)
        small = await world.open(BlockRange(3, 4), kv_tokens=10, wait=True)
        for session in (gone, large, small):
            assert isinstance(await session.call.read(), QueuedFrame)
        await world.swap(BlockRange(3, 6))
        assert world.table.kv_token_blocks_total < room
        assert world.table.kv_token_blocks_free < 0
        assert world.table.kv_token_blocks_open == 0
        assert isinstance(await gone.refused(), SessionLost)
        assert isinstance(await large.refused(), OutOfMemory)
        await full.step()
        await full.close()
        await small.opened()
        await small.close()

    run(checkpoint, scenario)


def test_more_blocks_than_the_offered_memory_holds_are_not_loaded(checkpoint: Checkpoint) -> None:
    async def scenario(world: World) -> None:
        world.load_error = AssertionError("nothing is loaded")
        with pytest.raises(OutOfMemory, match="no room for 6 blocks"):
            await world.swap(BlockRange(0, 6))

    run(checkpoint, scenario)
