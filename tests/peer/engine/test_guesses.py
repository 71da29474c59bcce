"""Time for guesses: texts go first, and sessions hear when the texts of others need the time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.batch import Share, compute_shares
from blockswarm.peer.engine.cache.session import SessionKv, StepOutput
from blockswarm.peer.engine.jobs import text_and_guesses
from blockswarm.peer.engine.scheduler import MOST_DEFERRALS, EnginePolicy
from blockswarm.peer.engine.step_record import StepRecord
from blockswarm.proto.errors import SwarmError
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.proto.wire.tensors import encode_tensor
from support.local_engine import HeldThread, LocalEngine, random_hidden
from support.tiny_models import write_tiny_checkpoint


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[LocalEngine]:
    peer = LocalEngine(write_tiny_checkpoint("llama", tmp_path))
    yield peer
    peer.engine.close()


async def step(peer: LocalEngine, kv: SessionKv, start: int, count: int, guessed: int = 0) -> StepOutput:
    plan = StepPlan((RowSlice(0, start, count, count),), guessed=guessed)
    return await peer.engine.step(kv, plan, encode_tensor(random_hidden(count)))


@pytest.mark.parametrize(
    ("left", "takes", "guesses_left", "expected"),
    [
        ([1], [(0, 1)], 0, (1, 0)),
        ([9], [(0, 9)], 8, (1, 8)),
        ([9], [(0, 1)], 8, (1, 0)),
        ([8], [(0, 8)], 8, (0, 8)),
        ([3, 9], [(0, 3), (1, 7)], 8, (4, 6)),
        ([3, 9], [(0, 3)], 8, (3, 0)),
    ],
)
def test_the_tokens_of_a_take_are_texts_before_they_are_guesses(
    left: list[int], takes: list[tuple[int, int]], guesses_left: int, expected: tuple[int, int]
) -> None:
    assert text_and_guesses(left, takes, guesses_left) == expected


def test_texts_go_before_guesses_and_these_wait_for_a_bounded_number_of_steps(peer: LocalEngine) -> None:
    """Another session's text decodes as fast as it can: some of its steps go first, then the guesses share one."""
    order: list[str] = []

    async def scenario() -> None:
        guessing, text = peer.open(), peer.open()
        await step(peer, guessing, 0, 3)
        await step(peer, text, 0, 1)

        async def guess() -> None:
            await step(peer, guessing, 3, 5, guessed=5)
            order.append("guesses")

        async def decode() -> None:
            for length in range(1, 2 * MOST_DEFERRALS + 2):
                await step(peer, text, length, 1)
                order.append("text")

        async with HeldThread(peer.engine):
            tasks = [asyncio.ensure_future(guess()), asyncio.ensure_future(decode())]
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert 1 <= order.index("guesses") <= MOST_DEFERRALS + 1


def test_steps_that_took_guesses_are_no_deferrals(peer: LocalEngine) -> None:
    """However many of the guesses were computed while nobody else had text, the next text goes before the rest."""
    peer.engine.adopt_policy(EnginePolicy(32))
    pieces, rest = MOST_DEFERRALS + 1, 2
    texts: list[asyncio.Task[StepOutput]] = []
    put = threading.Event()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        guessing, other = peer.open(), peer.open()
        await step(peer, guessing, 0, 1)
        await step(peer, other, 0, 1)
        (await peer.heard()).clear()

        def begin_text() -> None:
            texts.append(loop.create_task(step(peer, other, 1, 1)))
            loop.call_soon(loop.call_soon, put.set)  # when the task has put its step into the engine

        def after_step(_: StepRecord) -> None:
            if len(peer.records) == pieces:
                loop.call_soon_threadsafe(begin_text)
                assert put.wait(60)

        peer.on_step = after_step
        await step(peer, guessing, 1, 32 * (pieces + rest), guessed=32 * (pieces + rest))
        await asyncio.gather(*texts)
        steps = [(record.decode_rows, record.prefill_tokens) for record in await peer.heard()]
        assert steps == [(0, 32)] * pieces + [(1, 0)] + [(0, 32)] * rest

    asyncio.run(scenario())


def test_a_token_of_a_text_shares_the_step_of_others_and_its_guesses_come_behind(peer: LocalEngine) -> None:
    async def scenario() -> None:
        first, second = peer.open(), peer.open()
        await step(peer, first, 0, 1)
        await step(peer, second, 0, 1)
        before = len(await peer.heard())
        async with HeldThread(peer.engine):
            tasks = [asyncio.ensure_future(step(peer, first, 1, 4, guessed=3))]
            tasks.append(asyncio.ensure_future(step(peer, second, 1, 1)))
        await asyncio.gather(*tasks)
        steps = [(record.decode_rows, record.prefill_tokens) for record in (await peer.heard())[before:]]
        assert steps == [(2, 0), (0, 3)]

    asyncio.run(scenario())


def test_where_nobody_else_has_text_nothing_is_cut(peer: LocalEngine) -> None:
    async def scenario() -> None:
        first, second = peer.open(), peer.open()
        await step(peer, first, 0, 1)
        await step(peer, second, 0, 1)
        before = len(await peer.heard())
        await step(peer, first, 1, 4, guessed=3)
        async with HeldThread(peer.engine):  # guesses of both
            tasks = [asyncio.ensure_future(step(peer, first, 5, 3, guessed=3))]
            tasks.append(asyncio.ensure_future(step(peer, second, 1, 3, guessed=3)))
        await asyncio.gather(*tasks)
        assert [record.prefill_tokens for record in (await peer.heard())[before:]] == [4, 6]

    asyncio.run(scenario())


@pytest.mark.long
def test_a_session_hears_when_others_need_the_time_and_one_alone_never_does(peer: LocalEngine) -> None:
    async def scenario() -> None:
        mine, other = peer.open(), peer.open()
        assert not (await step(peer, mine, 0, 1)).crowded
        for length in range(1, 400):
            assert not (await step(peer, other, 0, 500)).crowded, "it takes the time itself"
            if (await step(peer, mine, length, 1)).crowded:
                return
        raise AssertionError("the other session's prompts take nearly all of the time")

    asyncio.run(scenario())


def test_a_session_hears_that_the_text_of_another_has_waited_for_its_guesses(tmp_path: Path) -> None:
    """A text that comes while guesses are computed waits until they are: a second in the first ones is too much."""
    slow = SlowComputing()
    peer = LocalEngine(write_tiny_checkpoint("llama", tmp_path), compute=slow.compute, clock=slow.clock)

    async def scenario() -> tuple[bool, bool]:
        guessing, other = peer.open(), peer.open()
        assert not (await step(peer, guessing, 0, 1)).crowded
        await step(peer, other, 0, 1)
        slow.next_seconds = 1.0
        guesses = asyncio.ensure_future(step(peer, guessing, 1, 4, guessed=4))
        assert await asyncio.to_thread(slow.computing.wait, 60)
        text = asyncio.ensure_future(step(peer, other, 1, 1))
        await asyncio.sleep(0)  # it puts what it has into the engine
        slow.arrived.set()
        await guesses
        other_hears = (await text).crowded
        return (await step(peer, guessing, 1, 1)).crowded, other_hears

    try:
        assert asyncio.run(scenario()) == (True, False)
    finally:
        peer.engine.close()


class SlowComputing:
    """Computes as engines do; a step that is said to take long lasts until something has arrived, and then as long."""

    def __init__(self) -> None:
        self.next_seconds = 0.0
        self.computing, self.arrived = threading.Event(), threading.Event()
        self._skipped = 0.0

    def clock(self) -> float:
        return time.monotonic() + self._skipped

    def compute(self, shares: Sequence[Share]) -> list[torch.Tensor | SwarmError]:
        if self.next_seconds:
            self.computing.set()
            assert self.arrived.wait(60)
            self._skipped += self.next_seconds
            self.next_seconds = 0.0
        return compute_shares(shares)
