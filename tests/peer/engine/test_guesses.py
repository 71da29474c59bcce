"""Time for guesses: texts go first, and sessions hear when the texts of others need the time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockswarm.peer.engine.cache.session import SessionKv, StepOutput
from blockswarm.peer.engine.scheduler import CROWDED_SHARE, MOST_DEFERRALS, TextTime
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.proto.wire.tensors import encode_tensor
from support.local_engine import HeldThread, LocalEngine, random_hidden
from support.tiny_models import write_tiny_checkpoint


class Session:
    pass


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[LocalEngine]:
    peer = LocalEngine(write_tiny_checkpoint("llama", tmp_path))
    yield peer
    peer.engine.close()


async def step(peer: LocalEngine, kv: SessionKv, start: int, count: int, guessed: int = 0) -> StepOutput:
    plan = StepPlan((RowSlice(0, start, count, count),), guessed=guessed)
    return await peer.engine.step(kv, plan, encode_tensor(random_hidden(count)))


def test_what_others_take_is_a_share_of_the_time() -> None:
    """Two sessions that share steps of 10 ms, one every 40 ms, are computed for a quarter of the time each."""
    time, mine, other = TextTime(), Session(), Session()
    for number in range(200):
        time.note([mine, other], 0.01, 0.04 * number)
    assert time.others(mine, 8.0) == pytest.approx(0.25, rel=0.1)
    assert time.others(Session(), 8.0) == pytest.approx(0.5, rel=0.1)
    assert not time.crowds_out(mine, 8.0)


def test_a_session_that_is_alone_is_never_crowded_out() -> None:
    time, mine = TextTime(), Session()
    for number in range(100):
        time.note([mine], 0.1, 0.1 * number)
        assert not time.crowds_out(mine, 0.1 * number)
    assert time.crowds_out(Session(), 10.0)
    assert time.others(Session(), 10.0) > CROWDED_SHARE


def test_crowds_are_forgotten_when_they_go() -> None:
    time, mine = TextTime(), Session()
    for number in range(100):
        time.note([Session()], 0.1, 0.1 * number)
    assert time.crowds_out(mine, 10.0)
    assert not time.crowds_out(mine, 13.0)


def test_steps_of_guesses_only_change_no_share() -> None:
    time, mine = TextTime(), Session()
    time.note([], 100.0, 1.0)
    assert time.others(mine, 1.0) == 0.0


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
