"""Many sessions share every step of the engine, and each gets what it would get alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.batch import Leg, error_of, plan_legs
from blockswarm.peer.engine.blocks.stage import BatchingRoute
from blockswarm.peer.engine.engine import EnginePolicy, SessionKv, StepOutput
from blockswarm.peer.engine.step_record import StepRecord
from blockswarm.proto.errors import (
    BadActivations,
    OutOfMemory,
    PeerUnavailable,
    RemoteProtocolError,
    RetryElsewhere,
    SwarmError,
    UsageError,
)
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.proto.wire.tensors import encode_tensor
from blockswarm.routing.swarm import BlockRange
from hypothesis import given
from hypothesis import strategies as st
from support.local_engine import (
    BLOCKS,
    HIDDEN,
    TOLERANCE,
    Client,
    HeldThread,
    LocalEngine,
    Truth,
    random_hidden,
    together,
)
from support.tiny_models import write_tiny_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def peer(llama: Path) -> Iterator[LocalEngine]:
    peer = LocalEngine(llama)
    yield peer
    peer.engine.close()


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("llama", BatchingRoute.PACKED),
        ("gemma3", BatchingRoute.PACKED),
        ("deepseek_v3", BatchingRoute.PACKED),
        ("bloom", BatchingRoute.PADDED),
        ("llama", BatchingRoute.SINGLE),
    ],
)
def test_sessions_of_all_kinds_at_once_get_what_the_full_model_gives(
    name: str, route: BatchingRoute, tmp_path: Path
) -> None:
    """Prompts, decoding, beams, forks and crops, in sessions that enter and leave the peer at different blocks."""
    peer = LocalEngine(write_tiny_checkpoint(name, tmp_path), route)
    peer.engine.adopt_policy(EnginePolicy(16))
    truth = Truth(name)
    ranges = [BLOCKS, BLOCKS, BLOCKS, BlockRange(0, 4), BlockRange(2, 6), BlockRange(1, 3), BlockRange(5, 6)]
    clients = [Client(peer, truth, blocks, seed) for seed, blocks in enumerate(ranges)]

    async def run() -> None:
        await asyncio.gather(*(client.run(steps=8) for client in clients))
        await peer.heard()

    asyncio.run(run())
    peer.engine.close()
    assert max(record.sessions for record in peer.records) > 1
    assert all(record.prefill_tokens <= 16 for record in peer.records)


def test_a_step_of_sessions_with_different_blocks_is_each_on_its_own(peer: LocalEngine) -> None:
    """The stage is cut where one of them enters or leaves, and what is before a cut is not forgotten behind it."""
    ranges = [BLOCKS, BlockRange(0, 3), BlockRange(3, 6), BlockRange(2, 4), BLOCKS]
    steps = [(20, 0), (1, 20), (1, 21), (6, 5), (1, 11)]

    async def run() -> None:
        shared, alone = [peer.open(blocks) for blocks in ranges], [peer.open(blocks) for blocks in ranges]
        peer.engine.adopt_policy(EnginePolicy(100))
        for count, start in steps:
            hidden = random_hidden(count, seed=start)
            expected = [await peer.step(kv, hidden, (0, start, count)) for kv in alone]
            (await peer.heard()).clear()
            outputs = await together(peer, *(peer.step(kv, hidden, (0, start, count)) for kv in shared))
            (record,) = await peer.heard()
            assert (record.sessions, record.blocks) == (5, pytest.approx(4.0))
            for output, wanted in zip(outputs, expected, strict=True):
                torch.testing.assert_close(output, wanted, atol=TOLERANCE, rtol=0)

    asyncio.run(run())


def test_a_step_is_shared_by_all_who_are_ready(peer: LocalEngine) -> None:
    """One read of the weights for everybody; what arrives while it runs is part of the next one."""

    async def run() -> None:
        sessions = [peer.open() for _ in range(5)]
        hidden = random_hidden(40)
        await together(peer, *(peer.step(kv, hidden[:9], (0, 0, 9)) for kv in sessions))
        (await peer.heard()).clear()
        await together(
            peer,
            *(peer.step(kv, hidden[:1], (0, 9, 1)) for kv in sessions[:3]),
            peer.step(sessions[3], hidden[:2], (0, 9, 1), (1, 0, 1)),
            peer.step(sessions[4], hidden, (0, 4, 40)),
        )
        await peer.heard()

    asyncio.run(run())
    (record,) = peer.records
    assert (record.sessions, record.rows, record.decode_rows, record.prefill_tokens) == (5, 6, 5, 40)
    assert record.context_tokens == 4 * 10 + 1 + 44
    assert record.blocks == 6
    assert 0 < record.seconds < 60
    assert 0 < record.longest_wait_seconds < 60


def test_a_long_prompt_costs_a_running_session_one_chunk_per_token(peer: LocalEngine) -> None:
    """A session that is back in time has a token in every step while a prompt of many chunks is computed."""
    peer.engine.adopt_policy(EnginePolicy(16))
    back = threading.Semaphore(0)

    def wait_for_the_session() -> float:
        assert back.acquire(timeout=60)
        return 0.0

    async def run() -> None:
        running, long = peer.open(), peer.open()
        await peer.step(running, random_hidden(1), (0, 0, 1))
        (await peer.heard()).clear()
        peer.engine.adopt_policy(replace(peer.engine.policy, pause=wait_for_the_session))
        async with HeldThread(peer.engine):
            prompt = asyncio.ensure_future(peer.step(long, random_hidden(320), (0, 0, 320)))
            token = asyncio.ensure_future(peer.step(running, random_hidden(1), (0, 1, 1)))
        for length in range(2, 22):
            await token
            token = asyncio.ensure_future(peer.step(running, random_hidden(1), (0, length, 1)))
            await asyncio.sleep(0)  # the step is in the engine
            back.release()
        back.release()
        await asyncio.gather(token, prompt)
        await peer.heard()

    asyncio.run(run())
    assert [(record.decode_rows, record.prefill_tokens) for record in peer.records] == [(1, 16)] * 20 + [(1, 0)]


def test_prompts_are_computed_in_turns(peer: LocalEngine) -> None:
    peer.engine.adopt_policy(EnginePolicy(16))
    finished: list[str] = []

    async def prompt(name: str, count: int) -> None:
        await peer.step(peer.open(), random_hidden(count), (0, 0, count))
        finished.append(name)

    async def run() -> None:
        await together(peer, prompt("long", 160), prompt("short", 32), prompt("middle", 64))

    asyncio.run(run())
    assert finished == ["short", "middle", "long"]


def test_a_step_says_how_long_it_waited_for_others(peer: LocalEngine) -> None:
    """The rest of the time between its arrival and its start is this peer's own: it is announced as a visit's cost."""
    peer.engine.adopt_policy(EnginePolicy(16))
    began: list[float] = []
    peer.on_step = lambda record: began.append(record.seconds)

    async def run() -> tuple[StepOutput, StepOutput]:
        kvs, hidden = [peer.open() for _ in range(2)], encode_tensor(random_hidden(16))
        steps = (peer.engine.step(kv, StepPlan((RowSlice(0, 0, 16, 1),)), hidden) for kv in kvs)
        first, second = await together(peer, *steps)
        await peer.heard()
        return first, second

    first, second = asyncio.run(run())
    assert first.queue_seconds == 0, "nobody was before it"
    assert second.queue_seconds >= began[0] > 0, "it was there when the first one began"
    assert second.started_at >= first.finished_at - 0.001


def test_a_peer_that_computes_no_numbers_fails_itself(peer: LocalEngine) -> None:
    """Sent on, they would be the fault of its honest successors, or tokens out of nothing."""

    async def run() -> None:
        session = peer.open()
        module = next(iter(peer.engine.stage.hosted.values())).module
        broken = module.register_forward_hook(lambda _module, _args, output: torch.full_like(output, float("nan")))
        try:
            with pytest.raises(RetryElsewhere, match="not finite"):
                await peer.step(session, random_hidden(2), (0, 0, 2))
        finally:
            broken.remove()
        assert session.table.lengths == ()

    asyncio.run(run())


def test_an_input_beyond_a_table_of_the_model_is_the_inputs_fault() -> None:
    """Every other peer has the same table: nobody is to be banned for it."""
    assert isinstance(error_of(IndexError("index 600 is out of bounds")), UsageError)
    assert type(error_of(RuntimeError("CUDA error"))) is RetryElsewhere


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_and_touches_nobody_else(peer: LocalEngine, poison: float) -> None:
    hidden = random_hidden(8)
    bad = hidden.clone()
    bad[3, 5] = poison

    async def run() -> None:
        good, evil, alone = peer.open(), peer.open(), peer.open()
        expected = await peer.step(alone, hidden, (0, 0, 8))
        await peer.step(evil, hidden[:3], (0, 0, 3))
        output, error = await together(
            peer, peer.step(good, hidden, (0, 0, 8)), peer.step(evil, bad, (0, 1, 4), (1, 0, 4), source=(0,))
        )
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
        assert isinstance(error, BadActivations)
        assert "finite" in str(error)
        assert evil.table.lengths == (3,)
        await peer.step(evil, hidden[:1], (0, 3, 1))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("rows", "source", "tokens"),
    [
        (((0, 4, 1),), None, 1),  # a gap
        (((2, 0, 1),), None, 1),  # no such row
        (((0, 3, 1),), (0, 1), 1),  # a row from nowhere
        (((0, 3, 98),), None, 98),  # more tokens than reserved
        (((0, 3, 1), (1, 0, 1), (2, 0, 1)), None, 3),  # more rows than reserved
        (((0, 3, 2),), None, 1),  # tokens are missing
        (((0, 3, 1),), None, 2),  # tokens too many
    ],
)
def test_a_step_that_does_not_fit_leaves_the_rows_as_they_were(
    peer: LocalEngine, rows: tuple[tuple[int, int, int], ...], source: tuple[int, ...] | None, tokens: int
) -> None:
    async def run() -> None:
        kv = peer.open(kv_tokens=100, max_rows=2)
        await peer.step(kv, random_hidden(3), (0, 0, 3))
        with pytest.raises(RemoteProtocolError):
            await peer.step(kv, random_hidden(tokens), *rows, source=source)
        assert kv.table.lengths == (3,)
        await peer.step(kv, random_hidden(1), (0, 3, 1))

    asyncio.run(run())


def test_a_row_longer_than_the_models_positions_is_refused(tmp_path: Path) -> None:
    """It would be computed otherwise, and with it the rows of other sessions in the same pass."""
    peer = LocalEngine(write_tiny_checkpoint("gptj", tmp_path, n_positions=16), BatchingRoute.PADDED)

    async def run() -> None:
        kv = peer.open(kv_tokens=100)
        await peer.step(kv, random_hidden(15), (0, 0, 15))
        with pytest.raises(RemoteProtocolError, match="16 positions"):
            await peer.step(kv, random_hidden(2), (0, 15, 2))
        await peer.step(kv, random_hidden(1), (0, 15, 1))

    try:
        asyncio.run(run())
    finally:
        peer.engine.close()


class Fault:
    """The last block fails whenever rows of one session are in a pass, after `passes` passes that work."""

    def __init__(self, peer: LocalEngine, kv: SessionKv, error: Exception, passes: int = 0) -> None:
        self._kv, self._error, self._passes = kv, error, passes
        last = peer.engine.stage.hosted[BLOCKS.stop - 1].module
        self._hook = last.register_forward_hook(self._after, with_kwargs=True)

    def mend(self) -> None:
        self._hook.remove()

    def _after(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        mine = {id(self._kv.row(index)) for index in range(len(self._kv.table.lengths))}
        if any(id(row.kv) in mine for row in kwargs["past_rows"].rows):
            self._passes -= 1
            if self._passes < 0:
                raise self._error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory),
        (RuntimeError("a kernel failed"), RetryElsewhere),
        (ValueError("a defect"), RetryElsewhere),
    ],
)
def test_only_the_session_to_blame_hears_of_a_failed_pass(
    peer: LocalEngine, error: Exception, told: type[SwarmError]
) -> None:
    hidden = random_hidden(8)

    async def run() -> None:
        sessions = [peer.open() for _ in range(4)]
        for kv in sessions:
            await peer.step(kv, hidden[:3], (0, 0, 3))
        expected = await peer.step(peer.open(), hidden, (0, 0, 8))
        fault = Fault(peer, sessions[1], error)
        (await peer.heard()).clear()
        outputs = await together(
            peer,
            peer.step(sessions[0], hidden[3:], (0, 3, 5)),
            peer.step(sessions[1], hidden[2:4], (0, 2, 1), (1, 0, 1)),
            peer.step(sessions[2], hidden[3:4], (0, 3, 1)),
            peer.step(sessions[3], hidden[3:], (0, 3, 5)),
        )
        fault.mend()
        (record,) = await peer.heard()
        assert (record.sessions, record.failed_sessions, record.rows) == (3, 1, 3), "the others' tokens count"
        assert (record.decode_rows, record.prefill_tokens, record.context_tokens) == (1, 10, 8 + 4 + 8)
        assert type(outputs[1]) is told
        for index, stop in ((0, 8), (2, 4), (3, 8)):
            torch.testing.assert_close(outputs[index], expected[3:stop], atol=1e-5, rtol=0)
        assert sessions[1].table.lengths == (2,), "what the step was about to overwrite is gone, no more"
        again = await peer.step(sessions[1], hidden[2:3], (0, 2, 1))
        torch.testing.assert_close(again, expected[2:3], atol=1e-5, rtol=0)

    asyncio.run(run())


def test_a_prompt_that_fails_half_way_is_undone(peer: LocalEngine) -> None:
    peer.engine.adopt_policy(EnginePolicy(16))

    async def run() -> None:
        kv = peer.open()
        await peer.step(kv, random_hidden(20), (0, 0, 20))
        Fault(peer, kv, MemoryError(), passes=2)
        with pytest.raises(OutOfMemory):
            await peer.step(kv, random_hidden(120), (0, 15, 60), (1, 0, 60))
        assert kv.table.lengths == (15,)

    asyncio.run(run())


def test_a_cancelled_step_is_dropped_where_it_stands(peer: LocalEngine) -> None:
    """Waiting, or between two chunks; what comes after it finds the rows in order."""
    peer.engine.adopt_policy(EnginePolicy(16))

    async def run() -> None:
        kv, other = peer.open(), peer.open()
        hidden = random_hidden(320)
        expected = await peer.step(other, hidden[:21], (0, 0, 21))
        await peer.step(kv, hidden[:20], (0, 0, 20))
        async with HeldThread(peer.engine):
            waiting = asyncio.ensure_future(peer.step(kv, hidden[:5], (0, 10, 5)))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        await peer.engine.submit(lambda: None)
        assert kv.table.lengths == (20,), "it had not begun"

        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        peer.on_step = lambda record: loop.call_soon_threadsafe(begun.set)
        half_way = asyncio.ensure_future(peer.step(kv, hidden[20:], (0, 20, 300)))
        await begun.wait()
        half_way.cancel()
        await asyncio.wait([half_way])
        again = await peer.step(kv, hidden[20:21], (0, 20, 1))
        torch.testing.assert_close(again, expected[20:], atol=1e-5, rtol=0)
        assert kv.table.lengths == (21,)

    asyncio.run(run())


def test_a_session_that_ends_during_its_step_is_reset_after_it(peer: LocalEngine) -> None:
    peer.engine.adopt_policy(EnginePolicy(16))

    async def run() -> None:
        for chunks in range(4):
            kv = peer.open()
            step = asyncio.ensure_future(peer.step(kv, random_hidden(320), (0, 0, 320)))
            for _ in range(chunks):
                await peer.engine.submit(lambda: None)
            step.cancel()
            await asyncio.wait([step])
            await peer.engine.submit(kv.reset)
            assert kv.table.lengths == ()

    asyncio.run(run())


def test_a_second_step_of_a_session_is_an_error_of_ours(peer: LocalEngine) -> None:
    async def run() -> None:
        kv = peer.open()
        async with HeldThread(peer.engine):
            first = asyncio.ensure_future(peer.step(kv, random_hidden(2), (0, 0, 2)))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one step at a time"):
                await peer.step(kv, random_hidden(1), (0, 2, 1))
        await first
        await peer.step(kv, random_hidden(1), (0, 2, 1))

    asyncio.run(run())


def test_rows_are_not_touched_while_their_step_is_under_way(peer: LocalEngine) -> None:
    """Nobody does this; if somebody did, it would be heard."""

    async def run() -> None:
        kv = peer.open()
        async with HeldThread(peer.engine):
            step = asyncio.ensure_future(peer.step(kv, random_hidden(2), (0, 0, 2)))
            await asyncio.sleep(0)
            reset = asyncio.ensure_future(peer.engine.submit(kv.reset))
        with pytest.raises(RuntimeError, match="under way"):
            await reset
        await step

    asyncio.run(run())


def test_other_work_and_the_chunks_of_a_prompt_alternate(peer: LocalEngine) -> None:
    """Neither waits for the other to end."""
    peer.engine.adopt_policy(EnginePolicy(16))
    order: list[str] = []
    submitted = threading.Semaphore(0)

    def wait_for_work() -> float:
        assert submitted.acquire(timeout=60)
        return 0.0

    peer.engine.adopt_policy(replace(peer.engine.policy, pause=wait_for_work))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[StepRecord] = asyncio.Queue()

        def observe(record: StepRecord) -> None:
            order.append("chunk")
            loop.call_soon_threadsafe(chunks.put_nowait, record)

        peer.on_step = observe
        prompt = asyncio.ensure_future(peer.step(peer.open(), random_hidden(320), (0, 0, 320)))
        for _ in range(20):
            await chunks.get()
            work = asyncio.ensure_future(peer.engine.submit(lambda: order.append("work")))
            await asyncio.sleep(0)  # it is in the engine
            submitted.release()
            await work
        await prompt

    asyncio.run(run())
    assert order == ["chunk", "work"] * 20


def test_what_submitted_work_raises_arrives(peer: LocalEngine) -> None:
    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            await peer.engine.submit(lambda: 1 // 0)
        assert await peer.engine.submit(lambda: 7) == 7

    asyncio.run(run())


def test_a_release_that_nobody_waits_for_is_done_all_the_same(peer: LocalEngine) -> None:
    """The caller is cancelled while the engine is busy: the next session must not find the room taken."""

    async def run() -> None:
        kv = peer.open()
        await peer.step(kv, random_hidden(5), (0, 0, 5))
        assert peer.engine.pool.reserved_bytes > 0
        async with HeldThread(peer.engine):
            release = asyncio.ensure_future(peer.engine.release(kv))
            await asyncio.sleep(0)
            release.cancel()
            await asyncio.wait([release])
        await peer.engine.submit(lambda: None)
        assert (peer.engine.pool.reserved_bytes, peer.engine.pool.used_bytes) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("when", ["while a prompt is computed", "before it closes", "after it closed"])
def test_a_session_is_released_by_an_engine_that_closes(peer: LocalEngine, when: str) -> None:
    peer.engine.adopt_policy(EnginePolicy(16))

    async def run() -> None:
        kv, other = peer.open(), peer.open()
        await peer.step(kv, random_hidden(5), (0, 0, 5))
        if when == "while a prompt is computed":
            prompt = asyncio.ensure_future(peer.step(other, random_hidden(500), (0, 0, 500)))
            await asyncio.sleep(0)
            releases = [asyncio.ensure_future(peer.engine.release(kv))]
            await asyncio.sleep(0)
            await asyncio.to_thread(peer.engine.close)
            with pytest.raises(PeerUnavailable):
                await prompt
            releases.append(asyncio.ensure_future(peer.engine.release(other)))
        else:
            if when == "after it closed":
                peer.engine.close()
            releases = [asyncio.ensure_future(peer.engine.release(session)) for session in (kv, other)]
            await asyncio.sleep(0)
            await asyncio.to_thread(peer.engine.close)
        await asyncio.wait_for(asyncio.gather(*releases), 60)
        assert (peer.engine.pool.reserved_bytes, peer.engine.pool.used_bytes) == (0, 0)

    asyncio.run(run())


def test_a_session_is_released_by_an_engine_that_failed(peer: LocalEngine) -> None:
    def broken(record: StepRecord) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        kv = peer.open()
        peer.on_step = broken
        peer.engine.adopt_policy(EnginePolicy(16))
        with pytest.raises(RetryElsewhere):
            await peer.step(kv, random_hidden(80), (0, 0, 40), (1, 0, 40))
        peer.on_step = lambda record: None
        await peer.engine.release(kv)
        assert (peer.engine.pool.reserved_bytes, peer.engine.pool.used_bytes) == (0, 0)

    asyncio.run(run())


def test_closing_fails_what_waits_and_what_is_half_way(peer: LocalEngine) -> None:
    peer.engine.adopt_policy(EnginePolicy(16, lambda: 3600.0))

    async def run() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        peer.on_step = lambda record: loop.call_soon_threadsafe(begun.set)
        half_way = asyncio.ensure_future(peer.step(peer.open(), random_hidden(500), (0, 0, 500)))
        await begun.wait()
        waiting = [asyncio.ensure_future(peer.step(peer.open(), random_hidden(1), (0, 0, 1))) for _ in range(3)]
        work = asyncio.ensure_future(peer.engine.submit(lambda: None))
        peer.engine.close()
        await asyncio.sleep(0)
        for task in (half_way, *waiting, work):
            with pytest.raises(PeerUnavailable, match="shutting down"):
                await asyncio.wait_for(task, 60)
        with pytest.raises(PeerUnavailable):
            await peer.engine.submit(lambda: None)
        peer.engine.close()

    asyncio.run(run())


def test_a_pause_for_the_machines_owner_ends_when_the_engine_closes(peer: LocalEngine) -> None:
    paused = threading.Event()

    def pause() -> float:
        paused.set()
        return 3600.0

    peer.engine.adopt_policy(replace(peer.engine.policy, pause=pause))

    async def run() -> None:
        await peer.step(peer.open(), random_hidden(1), (0, 0, 1))
        waiting = asyncio.ensure_future(peer.step(peer.open(), random_hidden(1), (0, 0, 1)))
        assert await asyncio.to_thread(paused.wait, 60)
        peer.engine.close()
        with pytest.raises(PeerUnavailable):
            await waiting

    asyncio.run(run())


def test_a_defect_in_the_engine_leaves_nobody_waiting(peer: LocalEngine, caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: StepRecord) -> None:
        raise ZeroDivisionError

    peer.on_step = broken
    peer.engine.adopt_policy(EnginePolicy(16))

    async def run() -> None:
        kv = peer.open()
        with pytest.raises(RetryElsewhere):
            await peer.step(kv, random_hidden(40), (0, 0, 40))
        peer.on_step = lambda record: None
        await peer.step(kv, random_hidden(40), (0, 0, 40))

    asyncio.run(run())
    assert "the engine failed" in caplog.text


def test_steps_without_tokens_permute_and_truncate(peer: LocalEngine) -> None:
    async def run() -> None:
        kv = peer.open()
        await peer.step(kv, random_hidden(6), (0, 0, 4), (1, 0, 2))
        await peer.step(kv, torch.empty(0, HIDDEN), (0, 1, 0), (1, 4, 0), (2, 0, 0), source=(1, 0))
        assert kv.table.lengths == (1, 4, 0)

    asyncio.run(run())


def test_a_step_in_the_thread_gives_what_the_shared_one_gives(peer: LocalEngine) -> None:
    hidden = random_hidden(12)
    plan = StepPlan((RowSlice(0, 0, 8, 8), RowSlice(1, 0, 4, 4)))

    async def run() -> None:
        sharing, other = peer.open(), peer.open()
        shared = await peer.engine.step(sharing, plan, encode_tensor(hidden))
        direct = await peer.engine.submit(lambda: other.step(plan, encode_tensor(hidden)))
        assert shared.data == direct.data
        assert sharing.table == other.table

    asyncio.run(run())


def journey(blocks: BlockRange, version: str = "") -> dict[int, str]:
    return {block: f"block {block}{version}" for block in blocks}


def test_a_pass_is_cut_where_sessions_enter_and_leave() -> None:
    journeys = [journey(BlockRange(2, 9)), journey(BlockRange(4, 6)), journey(BlockRange(11, 12))]
    assert plan_legs(journeys) == [
        Leg(BlockRange(2, 4), (0,)),
        Leg(BlockRange(4, 6), (0, 1)),
        Leg(BlockRange(6, 9), (0,)),
        Leg(BlockRange(11, 12), (2,)),
    ]


def test_a_pass_is_cut_where_the_same_blocks_are_other_modules() -> None:
    """Blocks 0 to 2 were dropped and loaded again: their modules are others than those of the first session."""
    first = journey(BlockRange(0, 6))
    second = journey(BlockRange(0, 3), " again") | journey(BlockRange(3, 6))
    assert plan_legs([first, second]) == [
        Leg(BlockRange(0, 3), (0,)),
        Leg(BlockRange(0, 3), (1,)),
        Leg(BlockRange(3, 6), (0, 1)),
    ]


@pytest.mark.long
@given(data=st.data(), starts=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_every_session_passes_its_modules_once_and_in_order(data: st.DataObject, starts: list[tuple[int, int]]) -> None:
    journeys = [
        {block: (block, data.draw(st.integers(0, 1))) for block in range(start, start + length)}
        for start, length in starts
    ]
    legs = plan_legs(journeys)
    for index, modules in enumerate(journeys):
        passed = [(block, leg) for leg in legs if index in leg.travellers for block in leg.blocks]
        assert [block for block, _ in passed] == list(modules)
        for block, leg in passed:
            together = {other for other, others in enumerate(journeys) if others.get(block) == modules[block]}
            assert together == set(leg.travellers)
