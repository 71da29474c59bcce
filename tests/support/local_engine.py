"""An engine of tiny models with all that tests want to see of it, and the full model as the truth."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from blockswarm.peer.engine.blocks.stage import BatchingRoute
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine, SessionKv
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.engine.step_record import StepListener, StepRecord
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.model.family import find_blocks
from blockswarm.proto.model.tiny import random_model
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.proto.wire.tensors import encode_tensor
from blockswarm.routing.swarm import BlockRange
from support.tiny_models import tiny_model_config

HIDDEN = 64
BLOCKS = BlockRange(0, 6)
TOLERANCE = 2e-5
"""Absolute, on float32 activations of about 1 to 10: sums run in another order when rows are computed together."""


class LocalEngine:
    """An engine, and what its listeners heard."""

    def __init__(
        self, folder: Path, route: BatchingRoute = BatchingRoute.PACKED, blocks: BlockRange = BLOCKS, **more: Any
    ) -> None:
        """`more` is for the engine."""
        self.records: list[StepRecord] = []
        self.on_step: StepListener = lambda record: None
        """Told of every step beside `records`."""
        stage = load_stage(open_checkpoint(folder), blocks, route=route)
        listeners = [self.records.append, lambda record: self.on_step(record)]
        self.engine = Engine(stage, KvPool(0, prefix_limit_bytes=0), listeners=listeners, **more)

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


async def together(peer: LocalEngine, *steps: Awaitable[Any]) -> list[Any]:
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

    def __init__(self, peer: LocalEngine, truth: Truth, blocks: BlockRange, seed: int) -> None:
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
