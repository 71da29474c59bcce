"""A guess that cannot be computed is lost, and harms neither the token of the text before it nor anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import BatchingRoute
from blockswarm.peer.engine.cache.session import SessionKv, StepOutput
from blockswarm.peer.engine.scheduler import EnginePolicy
from blockswarm.proto.errors import BadActivations, RetryElsewhere
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.proto.wire.tensors import encode_tensor
from support.local_engine import LocalEngine, together
from support.overflow import bad_hidden, good_hidden, write_overflowing_checkpoint

NAN = float("nan")


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[LocalEngine]:
    peer = LocalEngine(write_overflowing_checkpoint(tmp_path))
    yield peer
    peer.engine.close()


async def step(peer: LocalEngine, kv: SessionKv, start: int, hidden: torch.Tensor, guessed: int = 0) -> StepOutput:
    plan = StepPlan((RowSlice(0, start, len(hidden), len(hidden)),), guessed=guessed)
    return await peer.engine.step(kv, plan, encode_tensor(hidden))


def rows_of(peer: LocalEngine, output: StepOutput) -> torch.Tensor:
    return peer.engine.wire_format("float32").decode(output.data)


def cached(kv: SessionKv) -> list[torch.Tensor]:
    return [tensor for block in kv.row(0).export() for tensor in (block.keys, block.values)]


def assert_finite(kv: SessionKv) -> None:
    assert all(bool(tensor.isfinite().all()) for tensor in cached(kv))


PROMPT, TOKEN = good_hidden(5, seed=1), good_hidden(1, seed=2)
WAYS: dict[str, torch.Tensor] = {
    "overflows": torch.cat([good_hidden(2, seed=3), bad_hidden(), good_hidden(1, seed=4)]),
    "came so": torch.cat([good_hidden(2, seed=3), torch.full((1, 64), NAN), good_hidden(1, seed=4)]),
}
"""Guesses, the third of which is bad."""


def in_a_session(peer: LocalEngine, work: Callable[[SessionKv, torch.Tensor], Awaitable[None]]) -> None:
    """Run `work` in a session with `PROMPT`, with the answer to `TOKEN` behind that."""

    async def run() -> None:
        plain, kv = peer.open(), peer.open()
        for session in (plain, kv):
            await step(peer, session, 0, PROMPT)
        await work(kv, rows_of(peer, await step(peer, plain, 5, TOKEN)))

    asyncio.run(run())


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_guess_does_not_harm_the_token_before_it(peer: LocalEngine, way: str) -> None:
    """In a kernel of attention, no weight times a value that is not finite is no number, also before the guess."""

    async def work(kv: SessionKv, expected: torch.Tensor) -> None:
        output = await step(peer, kv, 5, torch.cat([TOKEN, WAYS[way]]), guessed=4)
        rows = rows_of(peer, output)
        torch.testing.assert_close(rows[:1], expected, atol=1e-5, rtol=0)
        assert rows[3:].isnan().all(), "it and all behind it are lost"
        assert output.lost_guesses == 4 if way == "overflows" else 2
        assert rows[: 5 - output.lost_guesses].isfinite().all()
        assert kv.table.lengths == (10,), "later steps begin behind them"
        assert_finite(kv)

    in_a_session(peer, work)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_a_bad_guess_is_left_after_the_next_step(peer: LocalEngine, way: str) -> None:
    async def work(kv: SessionKv, expected: torch.Tensor) -> None:
        await step(peer, kv, 5, WAYS[way], guessed=4)
        await step(peer, kv, 9, good_hidden(2, seed=5), guessed=2)  # was under way, and is of no use to anybody
        assert_finite(kv)
        assert torch.equal(rows_of(peer, await step(peer, kv, 5, TOKEN)), expected)
        assert kv.table.lengths == (6,)
        assert_finite(kv)

    in_a_session(peer, work)


def test_the_guesses_before_a_bad_one_are_good(peer: LocalEngine) -> None:
    """Where a chunk of them ends before it, as the bad one's chunk is lost from its beginning."""
    peer.engine.adopt_policy(EnginePolicy(2))

    async def work(kv: SessionKv, expected: torch.Tensor) -> None:
        output = await step(peer, kv, 5, torch.cat([TOKEN, WAYS["overflows"]]), guessed=4)
        rows = rows_of(peer, output)
        torch.testing.assert_close(rows[:1], expected, atol=1e-5, rtol=0)
        assert rows[1].isfinite().all()
        assert output.lost_guesses == 3
        assert_finite(kv)

    in_a_session(peer, work)


@pytest.mark.parametrize(
    ("family", "route"),
    [
        ("llama", BatchingRoute.PACKED),
        ("llama", BatchingRoute.PADDED),
        ("llama", BatchingRoute.SINGLE),
        ("gemma2", BatchingRoute.PACKED),  # attention by hand
        ("mixtral", BatchingRoute.PACKED),  # experts are chosen for rows that are not finite, too
    ],
)
def test_other_sessions_in_the_same_step_do_not_notice(family: str, route: BatchingRoute, tmp_path: Path) -> None:
    peer = LocalEngine(write_overflowing_checkpoint(tmp_path, family), route)

    async def work(kv: SessionKv, expected: torch.Tensor) -> None:
        other = peer.open()
        await step(peer, other, 0, PROMPT)
        guesses = WAYS["overflows"]
        mine, theirs = await together(
            peer,
            step(peer, kv, 5, torch.cat([TOKEN, guesses]), guessed=4),
            step(peer, other, 5, torch.cat([TOKEN, guesses[:2]]), guessed=2),
        )
        for output in (mine, theirs):
            torch.testing.assert_close(rows_of(peer, output)[:1], expected, atol=1e-5, rtol=0)
        assert rows_of(peer, theirs).isfinite().all()
        assert mine.lost_guesses == 4
        assert_finite(kv)
        assert torch.equal(rows_of(peer, await step(peer, kv, 5, TOKEN)), expected)

    try:
        in_a_session(peer, work)
    finally:
        peer.engine.close()


def test_a_step_of_bad_guesses_only_is_no_failure(peer: LocalEngine) -> None:
    async def work(kv: SessionKv, expected: torch.Tensor) -> None:
        for guesses in (bad_hidden(2), torch.full((2, 64), NAN)):
            output = await step(peer, kv, 5, guesses, guessed=2)
            assert rows_of(peer, output).isnan().all()
            assert kv.table.lengths == (7,)
            assert_finite(kv)

    in_a_session(peer, work)


def test_a_bad_token_of_a_text_is_a_failure_as_ever(peer: LocalEngine) -> None:
    async def work(kv: SessionKv, expected: torch.Tensor) -> None:
        lengths = kv.table.lengths
        with pytest.raises(RetryElsewhere, match="not finite"):
            await step(peer, kv, 5, torch.cat([bad_hidden(), good_hidden(2)]), guessed=2)
        with pytest.raises(BadActivations):
            await step(peer, kv, 5, torch.cat([torch.full((1, 64), NAN), good_hidden(2)]), guessed=2)
        assert kv.table.lengths == lengths
        assert torch.equal(rows_of(peer, await step(peer, kv, 5, TOKEN)), expected)

    in_a_session(peer, work)


def test_a_row_does_not_begin_with_a_guess(peer: LocalEngine) -> None:
    """No cache knows what its tokens look like before the first one."""

    async def run() -> None:
        kv = peer.open()
        with pytest.raises(BadActivations):
            await step(peer, kv, 0, torch.full((2, 64), NAN), guessed=2)
        with pytest.raises(RetryElsewhere):
            await step(peer, kv, 0, bad_hidden(2), guessed=2)
        output = await step(peer, kv, 0, torch.cat([good_hidden(1), bad_hidden()]), guessed=2)
        assert output.lost_guesses == 1
        assert_finite(kv)

    asyncio.run(run())
