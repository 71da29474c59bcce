"""A peer hosts other blocks from one step to the next, and no session notices.

The truth is the full model. That blocks are computed together is seen in the engine's records and by counting the calls
of the blocks' own modules; that memory is free, by weak references.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import BatchingRoute, Stage
from blockswarm.peer.engine.engine import SessionKv
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.errors import SwarmError, UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.weights.forms import Packing
from blockswarm.routing.swarm import BlockRange
from support.local_engine import TOLERANCE, Client, LocalEngine, Truth, together
from support.tiny_models import write_tiny_checkpoint
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

OLD, NEW = BlockRange(0, 4), BlockRange(2, 6)
TOKENS = list(range(3, 43))
FAMILIES = [
    ("llama", BatchingRoute.PACKED),
    ("gemma3", BatchingRoute.PACKED),
    ("deepseek_v3", BatchingRoute.PACKED),
    ("bloom", BatchingRoute.PADDED),
    ("gpt2", BatchingRoute.SINGLE),
]


class Moving:
    """A peer that hosts OLD and may move, and the full model."""

    def __init__(self, name: str, route: BatchingRoute, folder: Path) -> None:
        self.checkpoint = open_checkpoint(write_tiny_checkpoint(name, folder))
        self.truth = Truth(name)
        self.peer = LocalEngine(folder, route, OLD)
        self.route = route

    async def move(self, blocks: BlockRange) -> None:
        engine = self.peer.engine
        await engine.swap(load_stage(self.checkpoint, blocks, route=self.route, reuse=engine.stage))

    def module(self, block: int) -> nn.Module:
        return self.peer.engine.stage.hosted[block].module

    async def read(self, kv: SessionKv, start: int, stop: int) -> None:
        """Tokens start..stop of the text through the session's blocks, compared with the full model."""
        entering, leaving = self.truth.through(TOKENS[:stop], kv.blocks)
        output = await self.peer.step(kv, entering[start:], (0, start, stop - start))
        wanted = leaving[start:]
        torch.testing.assert_close(output, wanted, atol=TOLERANCE * float(wanted.abs().max()), rtol=0)


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Moving]:
    made = Moving("llama", BatchingRoute.PACKED, tmp_path)
    yield made
    made.peer.engine.close()


def count_calls(module: nn.Module) -> list[int]:
    """Number of tokens of every call from now on."""
    calls: list[int] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args[0] if args else kwargs["hidden_states"]).shape[1]), with_kwargs=True
    )
    return calls


@pytest.mark.parametrize(("name", "route"), FAMILIES)
def test_sessions_of_before_and_after_compute_kept_blocks_together(
    name: str, route: BatchingRoute, tmp_path: Path
) -> None:
    moving = Moving(name, route, tmp_path)

    async def run() -> None:
        before = moving.peer.open(BlockRange(2, 4))
        await moving.read(before, 0, 9)
        await moving.move(NEW)
        assert moving.peer.engine.blocks == NEW
        after, longer = moving.peer.open(BlockRange(2, 4)), moving.peer.open(NEW)
        await moving.read(after, 0, 12)
        await moving.read(longer, 0, 11)
        kept, loaded = count_calls(moving.module(3)), count_calls(moving.module(5))
        (await moving.peer.heard()).clear()
        steps = (moving.read(before, 9, 10), moving.read(after, 12, 13), moving.read(longer, 11, 12))
        assert await together(moving.peer, *steps) == [None] * 3
        (record,) = await moving.peer.heard()
        assert (record.sessions, record.decode_rows, record.blocks) == (3, 3, pytest.approx(8 / 3))
        if route is BatchingRoute.PACKED:
            assert (kept, loaded) == ([3], [1]), "one call for all who go through a block"

    asyncio.run(run())
    moving.peer.engine.close()


def test_kept_blocks_are_the_same_modules_and_only_the_others_are_read(moving: Moving) -> None:
    old = moving.peer.engine.stage
    seen: list[tuple[int, int]] = []
    new = load_stage(
        moving.checkpoint, BlockRange(2, 6), route=moving.route, reuse=old, progress=lambda *done: seen.append(done)
    )
    assert [new.hosted[block].module is old.hosted[block].module for block in (2, 3)] == [True, True]
    total = moving.checkpoint.block_bytes(4) + moving.checkpoint.block_bytes(5)
    assert seen[-1] == (total, total)
    around = load_stage(moving.checkpoint, BlockRange(0, 6), route=moving.route, reuse=new)
    assert [around.hosted[block] is new.hosted[block] for block in NEW] == [True] * 4
    inside = load_stage(moving.checkpoint, BlockRange(3, 4), route=moving.route, reuse=new, progress=pytest.fail)
    assert inside.hosted[3] is new.hosted[3]


@pytest.mark.long
def test_a_session_keeps_blocks_that_are_dropped_until_it_ends(moving: Moving) -> None:
    """And only it does: a session of kept blocks, which opened on the same stage, holds none of the others."""

    async def run() -> None:
        leaving, staying = moving.peer.open(OLD), moving.peer.open(BlockRange(2, 4))
        await moving.read(leaving, 0, 9)
        await moving.read(staying, 0, 9)
        dropped, kept = weakref.ref(moving.module(0)), weakref.ref(moving.module(2))
        calls = count_calls(moving.module(2))
        await moving.move(NEW)
        with pytest.raises(UsageError, match="hosted"):
            moving.peer.open(OLD)
        new = moving.peer.open(NEW)
        await moving.read(new, 0, 9)
        calls.clear()
        steps = (moving.read(kv, 9, 10) for kv in (leaving, staying, new))
        assert await together(moving.peer, *steps) == [None] * 3
        assert calls == [3]
        await moving.peer.engine.release(leaving)
        del leaving, steps
        gc.collect()
        assert dropped() is None
        assert kept() is moving.module(2)
        await moving.read(staying, 10, 20)
        await moving.read(new, 10, 20)

    asyncio.run(run())


@pytest.mark.long
def test_dropped_blocks_are_freed_at_once_where_no_session_has_them(moving: Moving) -> None:
    """Without waiting for the garbage collector: they may be most of the machine's memory."""

    async def run() -> None:
        dropped = weakref.ref(moving.module(0))
        kv = moving.peer.open(OLD)
        await moving.read(kv, 0, 5)
        await moving.peer.engine.release(kv)
        del kv
        gc.collect()
        gc.disable()
        try:
            await moving.move(NEW)
            await moving.peer.engine.submit(lambda: None)
            assert dropped() is None
        finally:
            gc.enable()

    asyncio.run(run())


def test_blocks_that_come_back_are_other_modules_and_right(moving: Moving) -> None:
    """A session that kept the old ones and a new one do not disturb each other, and share what is the same."""

    async def run() -> None:
        first = moving.peer.open(OLD)
        await moving.read(first, 0, 9)
        old = moving.module(0)
        await moving.move(NEW)
        await moving.move(OLD)
        assert moving.module(0) is not old
        second = moving.peer.open(OLD)
        await moving.read(second, 0, 9)
        calls = [count_calls(module) for module in (old, moving.module(0), moving.module(2))]
        assert await together(moving.peer, moving.read(first, 9, 10), moving.read(second, 9, 10)) == [None] * 2
        assert calls == [[1], [1], [2]]

    asyncio.run(run())


@pytest.mark.parametrize(("name", "route"), FAMILIES[:4])
def test_sessions_go_on_while_the_peer_moves_to_and_fro(name: str, route: BatchingRoute, tmp_path: Path) -> None:
    """Prompts, beams, forks and crops under way at the moment of each swap, in sessions of all stages."""
    moving = Moving(name, route, tmp_path)

    async def run() -> None:
        running: list[asyncio.Task[None]] = []
        for seed, blocks in enumerate([OLD, NEW, BlockRange(1, 5), BlockRange(4, 6), BlockRange(0, 6), OLD]):
            await moving.move(blocks)
            clients = [
                Client(moving.peer, moving.truth, part, seed)
                for part in (blocks, BlockRange(blocks.start + 1, blocks.stop))
            ]
            running += [asyncio.ensure_future(client.run(steps=6)) for client in clients]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            opened.append(moving.peer.open(BlockRange(blocks.start + 1, blocks.stop)))
            await moving.read(opened[-1], 0, 9)
        await asyncio.gather(*running)
        await moving.peer.heard()
        moving.peer.records.clear()  # which sessions met so far is a matter of timing
        assert await together(moving.peer, *(moving.read(kv, 9, 10) for kv in opened)) == [None] * len(opened)
        await moving.peer.heard()

    opened: list[SessionKv] = []
    asyncio.run(run())
    moving.peer.engine.close()
    assert max(record.sessions for record in moving.peer.records) == len(opened) > 2


class _Cancelled(Exception):
    pass


def _fail_at(share: float, error: type[Exception]) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise error("half-way")

    return progress


@pytest.mark.long
@pytest.mark.parametrize("packing", [Packing.PLAIN, Packing.PREPACKED])
@pytest.mark.parametrize("error", [MemoryError, OSError, _Cancelled])
def test_a_load_that_fails_half_way_leaves_all_as_it_was(
    packing: Packing, error: type[Exception], tmp_path: Path, only_new_objects: None
) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))
    old = load_stage(checkpoint, OLD, forms=packing)
    assert live_blocks() == 4
    with pytest.raises((error, SwarmError)):
        load_stage(checkpoint, NEW, forms=packing, reuse=old, progress=_fail_at(0.7, error))
    assert live_blocks() == 4
    again = load_stage(checkpoint, NEW, forms=packing, reuse=old)
    assert live_blocks() == 6, "those of both stages, once"
    del old
    assert again.blocks == NEW
    assert live_blocks() == 4


def test_a_file_that_is_gone_leaves_the_old_blocks_serving(moving: Moving, tmp_path: Path) -> None:
    async def run() -> None:
        kv = moving.peer.open(OLD)
        await moving.read(kv, 0, 9)
        last = moving.checkpoint.block_tensors(5)[-1]
        (tmp_path / last.file).unlink()
        with pytest.raises((OSError, SwarmError)):
            await moving.move(NEW)
        assert moving.peer.engine.blocks == OLD
        await moving.read(kv, 9, 20)
        await moving.read(moving.peer.open(OLD), 0, 9)

    asyncio.run(run())


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """The collector sees what is made from now on; blocks of other tests may go at any time, and are many."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live_blocks() -> int:
    gc.collect()
    return sum(type(thing) is LlamaDecoderLayer for thing in gc.get_objects())


def test_only_like_stages_are_joined_and_swapped(moving: Moving) -> None:
    old = moving.peer.engine.stage
    other: Any = {"dtype": torch.bfloat16}
    with pytest.raises(ValueError, match="joined"):
        load_stage(moving.checkpoint, NEW, route=moving.route, reuse=old, **other)
    with pytest.raises(ValueError, match="none of the parts"):
        Stage.joined(BlockRange(3, 5), [old])
    with pytest.raises(ValueError, match="contiguous"):
        Stage(old.shell, {0: old.hosted[0], 2: old.hosted[2]})
    with pytest.raises(ValueError, match="batched"):
        asyncio.run(moving.peer.engine.swap(load_stage(moving.checkpoint, NEW, route=moving.route, **other)))
    assert moving.peer.engine.stage is old


def test_the_pool_is_resized_with_the_blocks(moving: Moving) -> None:
    """Reservations from before still count."""
    engine = moving.peer.engine
    token = engine.stage.kv_bytes_per_token

    async def run() -> None:
        kv = moving.peer.open(OLD, kv_tokens=10)
        await moving.read(kv, 0, 9)
        new = load_stage(moving.checkpoint, NEW, route=moving.route, reuse=engine.stage)
        await engine.swap(new, pool_capacity_bytes=100 * token)
        assert engine.pool.free_bytes == (100 - 10 * len(OLD)) * token
        await engine.release(kv)
        assert engine.pool.free_bytes == 100 * token

    asyncio.run(run())
