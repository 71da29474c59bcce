"""Many sessions share every step of the engine, and each gets what it would get alone."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.peer.engine import batch
from blockswarm.peer.engine.blocks.stage import BatchingRoute, RowSpan, StageView, load_stage
from blockswarm.peer.engine.engine import Engine, SessionKv
from blockswarm.peer.engine.step_record import StepRecord
from blockswarm.proto.errors import OutOfMemory, PeerUnavailable, RemoteProtocolError, RetryElsewhere, SwarmError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.model.family import find_blocks
from blockswarm.proto.model.tiny import random_model
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.proto.wire.tensors import encode_tensor
from blockswarm.routing.swarm import BlockRange
from support.tiny_models import tiny_model_config, write_tiny_checkpoint

HIDDEN = 64
BLOCKS = BlockRange(0, 6)
TOLERANCE = 2e-5
"""Absolute, on float32 activations of about 1 to 10: sums run in another order when rows are computed together."""


class Peer:
    """An engine, and what its observer heard."""

    def __init__(self, folder: Path, route: BatchingRoute = BatchingRoute.PACKED) -> None:
        self.engine = Engine(load_stage(open_checkpoint(folder), BLOCKS, route=route))
        self.records: list[StepRecord] = []
        self.engine.observer = self.records.append

    def open(self, blocks: BlockRange = BLOCKS, kv_tokens: int = 600, max_rows: int = 6) -> SessionKv:
        return self.engine.open(blocks, self.engine.wire_format("float32"), kv_tokens, max_rows)

    async def heard(self) -> list[StepRecord]:
        """The records of all steps that were answered."""
        await self.engine.submit(lambda: None)
        return self.records

    async def step(
        self, kv: SessionKv, hidden: torch.Tensor, *rows: tuple[int, int, int], source: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        """Rows as (row, start, count)."""
        plan = StepPlan(tuple(RowSlice(row, start, count, count) for row, start, count in rows), source)
        output = await self.engine.step(kv, plan, encode_tensor(hidden))
        assert output.started_at <= output.finished_at
        return self.engine.wire_format("float32").decode(output.data)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def peer(llama: Path) -> Iterator[Peer]:
    peer = Peer(llama)
    yield peer
    peer.engine.close()


class HeldThread:
    """The engine's thread stands still inside, so that what is sent in there is all there when it goes on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._entered, self._leave = threading.Event(), threading.Event()

    async def __aenter__(self) -> None:
        def hold() -> None:
            self._entered.set()
            assert self._leave.wait(60)

        self._task = asyncio.ensure_future(self._engine.submit(hold))
        assert await asyncio.to_thread(self._entered.wait, 60)

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.sleep(0)  # the tasks made inside put what they have into the engine
        self._leave.set()
        await self._task


async def together(peer: Peer, *steps: Awaitable[Any]) -> list[Any]:
    """All at once; exceptions are results."""
    async with HeldThread(peer.engine):
        tasks = [asyncio.ensure_future(step) for step in steps]
    return await asyncio.gather(*tasks, return_exceptions=True)


def random_hidden(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


class Truth:
    """The full model, without a cache: what enters and leaves its blocks when it reads a row from the beginning."""

    def __init__(self, name: str) -> None:
        self._model = random_model(tiny_model_config(name))
        self._entering: dict[int, torch.Tensor] = {}
        self._leaving: dict[int, torch.Tensor] = {}
        for index, block in enumerate(find_blocks(self._model, len(BLOCKS)).blocks):
            block.register_forward_hook(self._watch(index), with_kwargs=True)

    def _watch(self, index: int) -> Callable[..., None]:
        def hook(_: object, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._entering[index] = (args[0] if args else kwargs["hidden_states"])[0]
            self._leaving[index] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    def through(self, tokens: Sequence[int], blocks: BlockRange) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, H) twice: what enters `blocks` and what leaves them."""
        with torch.inference_mode():
            self._model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
        return self._entering[blocks.start], self._leaving[blocks.stop - 1]


class Client:
    """A session that does what sessions do, and compares every answer with the full model's."""

    def __init__(self, peer: Peer, truth: Truth, blocks: BlockRange, seed: int) -> None:
        self._peer, self._truth, self._blocks = peer, truth, blocks
        self._random = random.Random(seed)
        self._kv = peer.open(blocks)
        self._rows: list[list[int]] = []

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await self._step()

    async def _step(self) -> None:
        """Append to some rows, after a fork, reorder or drop of all and a crop of some."""
        draw = self._random
        source = None
        if self._rows and draw.random() < 0.3:
            source = tuple(draw.randrange(len(self._rows)) for _ in range(draw.randint(1, 4)))
            self._rows = [list(self._rows[row]) for row in source]
        if not self._rows or (len(self._rows) < 5 and draw.random() < 0.2):
            self._rows.append([])
        named = [row for row, tokens in enumerate(self._rows) if not tokens or draw.random() < 0.8] or [0]
        pieces, entering, expected = [], [], []
        for row in named:
            tokens = self._rows[row]
            start = max(0, len(tokens) - draw.choice([0, 0, 0, 1, 5]))
            count = draw.choice([1, 1, 1, 1, 3, 20, 70]) if start < 40 else 1
            self._rows[row] = [*tokens[:start], *(draw.randrange(3, 257) for _ in range(count))]
            before, after = self._truth.through(self._rows[row], self._blocks)
            pieces.append((row, start, count))
            entering.append(before[start:])
            expected.append(after[start:])
        output = await self._peer.step(self._kv, torch.cat(entering), *pieces, source=source)
        wanted = torch.cat(expected)
        torch.testing.assert_close(output, wanted, atol=TOLERANCE * float(wanted.abs().max()), rtol=0)
        assert self._kv.table.lengths == tuple(len(tokens) for tokens in self._rows)


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
    peer = Peer(write_tiny_checkpoint(name, tmp_path), route)
    peer.engine.chunk_tokens = 16
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


def test_a_step_of_sessions_with_different_blocks_is_each_on_its_own(peer: Peer) -> None:
    """The stage is cut where one of them enters or leaves, and what is before a cut is not forgotten behind it."""
    ranges = [BLOCKS, BlockRange(0, 3), BlockRange(3, 6), BlockRange(2, 4), BLOCKS]
    steps = [(20, 0), (1, 20), (1, 21), (6, 5), (1, 11)]

    async def run() -> None:
        shared, alone = [peer.open(blocks) for blocks in ranges], [peer.open(blocks) for blocks in ranges]
        peer.engine.chunk_tokens = 100
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


def test_a_step_is_shared_by_all_who_are_ready(peer: Peer) -> None:
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


def test_a_long_prompt_costs_a_running_session_one_chunk_per_token(peer: Peer) -> None:
    """Whoever is back in time has a token in every step while somebody's prompt of many chunks is computed."""
    peer.engine.chunk_tokens = 16
    back = threading.Semaphore(0)

    def wait_for_the_session() -> float:
        assert back.acquire(timeout=60)
        return 0.0

    async def run() -> None:
        running, long = peer.open(), peer.open()
        await peer.step(running, random_hidden(1), (0, 0, 1))
        (await peer.heard()).clear()
        peer.engine.pause = wait_for_the_session
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


def test_prompts_are_computed_in_turns(peer: Peer) -> None:
    peer.engine.chunk_tokens = 16
    finished: list[str] = []

    async def prompt(name: str, count: int) -> None:
        await peer.step(peer.open(), random_hidden(count), (0, 0, count))
        finished.append(name)

    async def run() -> None:
        await together(peer, prompt("long", 160), prompt("short", 32), prompt("middle", 64))

    asyncio.run(run())
    assert finished == ["short", "middle", "long"]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_and_touches_nobody_else(peer: Peer, poison: float) -> None:
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
        assert isinstance(error, RemoteProtocolError)
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
    peer: Peer, rows: tuple[tuple[int, int, int], ...], source: tuple[int, ...] | None, tokens: int
) -> None:
    async def run() -> None:
        kv = peer.open(kv_tokens=100, max_rows=2)
        await peer.step(kv, random_hidden(3), (0, 0, 3))
        with pytest.raises(RemoteProtocolError):
            await peer.step(kv, random_hidden(tokens), *rows, source=source)
        assert kv.table.lengths == (3,)
        await peer.step(kv, random_hidden(1), (0, 3, 1))

    asyncio.run(run())


class Fault:
    """The stage fails whenever rows of one session are in a pass, after `passes` passes that work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kv: SessionKv, error: Exception, passes: int = 0) -> None:
        forward = StageView.forward
        self._kv, self._error, self._passes = kv, error, passes

        def failing(view: StageView, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
            output = forward(view, hidden, rows)
            mine = {id(self._kv.row(index)) for index in range(len(self._kv.table.lengths))}
            if any(id(row.kv) in mine for row in rows):
                self._passes -= 1
                if self._passes < 0:
                    raise self._error
            return output

        monkeypatch.setattr(StageView, "forward", failing)


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
    peer: Peer, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[SwarmError]
) -> None:
    hidden = random_hidden(8)

    async def run() -> None:
        sessions = [peer.open() for _ in range(4)]
        for kv in sessions:
            await peer.step(kv, hidden[:3], (0, 0, 3))
        expected = await peer.step(peer.open(), hidden, (0, 0, 8))
        with monkeypatch.context() as patch:
            Fault(patch, sessions[1], error)
            outputs = await together(
                peer,
                peer.step(sessions[0], hidden[3:], (0, 3, 5)),
                peer.step(sessions[1], hidden[2:4], (0, 2, 1), (1, 0, 1)),
                peer.step(sessions[2], hidden[3:4], (0, 3, 1)),
                peer.step(sessions[3], hidden[3:], (0, 3, 5)),
            )
        assert type(outputs[1]) is told
        for index, stop in ((0, 8), (2, 4), (3, 8)):
            torch.testing.assert_close(outputs[index], expected[3:stop], atol=1e-5, rtol=0)
        assert sessions[1].table.lengths == (2,), "what the step was about to overwrite is gone, no more"
        again = await peer.step(sessions[1], hidden[2:3], (0, 2, 1))
        torch.testing.assert_close(again, expected[2:3], atol=1e-5, rtol=0)

    asyncio.run(run())


def test_a_prompt_that_fails_half_way_is_undone(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    peer.engine.chunk_tokens = 16

    async def run() -> None:
        kv = peer.open()
        await peer.step(kv, random_hidden(20), (0, 0, 20))
        Fault(monkeypatch, kv, MemoryError(), passes=2)
        with pytest.raises(OutOfMemory):
            await peer.step(kv, random_hidden(120), (0, 15, 60), (1, 0, 60))
        assert kv.table.lengths == (15,)

    asyncio.run(run())


def test_a_cancelled_step_is_dropped_where_it_stands(peer: Peer) -> None:
    """Waiting, or between two chunks; what comes after it finds the rows in order."""
    peer.engine.chunk_tokens = 16

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
        peer.engine.observer = lambda record: loop.call_soon_threadsafe(begun.set)
        half_way = asyncio.ensure_future(peer.step(kv, hidden[20:], (0, 20, 300)))
        await begun.wait()
        half_way.cancel()
        await asyncio.wait([half_way])
        again = await peer.step(kv, hidden[20:21], (0, 20, 1))
        torch.testing.assert_close(again, expected[20:], atol=1e-5, rtol=0)
        assert kv.table.lengths == (21,)

    asyncio.run(run())


def test_a_session_that_ends_during_its_step_is_reset_after_it(peer: Peer) -> None:
    peer.engine.chunk_tokens = 16

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


def test_a_second_step_of_a_session_is_an_error_of_ours(peer: Peer) -> None:
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


def test_rows_are_not_touched_while_their_step_is_under_way(peer: Peer) -> None:
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


def test_other_work_and_the_chunks_of_a_prompt_alternate(peer: Peer) -> None:
    """Neither waits for the other to end."""
    peer.engine.chunk_tokens = 16
    order: list[str] = []
    submitted = threading.Semaphore(0)

    def wait_for_work() -> float:
        assert submitted.acquire(timeout=60)
        return 0.0

    peer.engine.pause = wait_for_work

    async def run() -> None:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[StepRecord] = asyncio.Queue()

        def observe(record: StepRecord) -> None:
            order.append("chunk")
            loop.call_soon_threadsafe(chunks.put_nowait, record)

        peer.engine.observer = observe
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


def test_what_submitted_work_raises_arrives(peer: Peer) -> None:
    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            await peer.engine.submit(lambda: 1 // 0)
        assert await peer.engine.submit(lambda: 7) == 7

    asyncio.run(run())


def test_closing_fails_what_waits_and_what_is_half_way(peer: Peer) -> None:
    peer.engine.chunk_tokens = 16
    peer.engine.pause = lambda: 3600.0

    async def run() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        peer.engine.observer = lambda record: loop.call_soon_threadsafe(begun.set)
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


def test_a_pause_for_the_machines_owner_ends_when_the_engine_closes(peer: Peer) -> None:
    paused = threading.Event()

    def pause() -> float:
        paused.set()
        return 3600.0

    peer.engine.pause = pause

    async def run() -> None:
        await peer.step(peer.open(), random_hidden(1), (0, 0, 1))
        waiting = asyncio.ensure_future(peer.step(peer.open(), random_hidden(1), (0, 0, 1)))
        assert await asyncio.to_thread(paused.wait, 60)
        peer.engine.close()
        with pytest.raises(PeerUnavailable):
            await waiting

    asyncio.run(run())


def test_a_defect_in_the_engine_leaves_nobody_waiting(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: StepRecord) -> None:
        raise ZeroDivisionError

    peer.engine.observer = broken
    peer.engine.chunk_tokens = 16

    async def run() -> None:
        kv = peer.open()
        with pytest.raises(RetryElsewhere):
            await peer.step(kv, random_hidden(40), (0, 0, 40))
        peer.engine.observer = None
        await peer.step(kv, random_hidden(40), (0, 0, 40))

    asyncio.run(run())
    assert "the engine failed" in caplog.text


def test_steps_without_tokens_permute_and_truncate(peer: Peer) -> None:
    async def run() -> None:
        kv = peer.open()
        await peer.step(kv, random_hidden(6), (0, 0, 4), (1, 0, 2))
        await peer.step(kv, torch.empty(0, HIDDEN), (0, 1, 0), (1, 4, 0), (2, 0, 0), source=(1, 0))
        assert kv.table.lengths == (1, 4, 0)

    asyncio.run(run())


def test_a_step_in_the_thread_gives_what_the_shared_one_gives(peer: Peer) -> None:
    hidden = random_hidden(12)
    plan = StepPlan((RowSlice(0, 0, 8, 8), RowSlice(1, 0, 4, 4)))

    async def run() -> None:
        one, other = peer.open(), peer.open()
        shared = await peer.engine.step(one, plan, encode_tensor(hidden))
        direct = await peer.engine.submit(lambda: other.step(plan, encode_tensor(hidden)))
        assert shared.data == direct.data
        assert one.table == other.table

    asyncio.run(run())


def test_a_stage_is_cut_where_sessions_enter_and_leave() -> None:
    ranges = [BlockRange(2, 9), BlockRange(4, 6), BlockRange(2, 9), BlockRange(11, 12)]
    assert batch.segments(ranges) == [BlockRange(2, 4), BlockRange(4, 6), BlockRange(6, 9), BlockRange(11, 12)]
