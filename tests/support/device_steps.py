"""Steps of a stage and of an engine, to be computed on a device and on the processor and compared."""

from __future__ import annotations

import asyncio

import torch
from blockswarm.peer.engine.blocks.stage import RowSpan, StageView
from blockswarm.peer.engine.cache.row import RowKV
from blockswarm.peer.engine.engine import Engine, SessionKv
from blockswarm.proto.wire.steps import RowSlice as PlannedRow
from blockswarm.proto.wire.steps import StepPlan
from blockswarm.proto.wire.tensors import encode_tensor
from blockswarm.routing.swarm import BlockRange

BLOCKS = BlockRange(1, 5)
"""Some of the six blocks of a tiny model."""
HIDDEN = 64
TOLERANCE = 2e-5
"""Absolute, on float32 activations of about 1 to 10: sums run in another order where a tensor lies elsewhere."""


def random_hidden(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def steps(view: StageView, device: torch.device) -> torch.Tensor:
    """Three rows: prompts, decoding together, a chunk among tokens, a truncation, a fork and a moved row.

    What came out, (T, 64) on the processor.
    """
    rows = [view.new_row(64) for _ in range(3)]
    outputs = []

    def run(seed: int, *pieces: tuple[RowKV, int, int]) -> None:
        hidden = random_hidden(sum(count for _, _, count in pieces), seed).to(device)
        output = view.forward(hidden, [RowSpan(kv, start, count) for kv, start, count in pieces])
        assert output.device == device
        outputs.append(output.cpu())

    first, second, third = rows
    run(0, (first, 0, 19), (second, 0, 1), (third, 0, 5))
    run(1, (first, 19, 1), (second, 1, 1), (third, 5, 1))
    run(2, (first, 20, 1), (second, 2, 11), (third, 6, 1))
    run(3, (first, 9, 3), (second, 13, 1))
    fork = third.fork()
    run(4, (third, 7, 1), (fork, 7, 2), (second, 14, 1))
    moved = RowKV.import_(view.blocks, 64, third.export())
    run(5, (moved, 8, 1), (third, 8, 1))
    return torch.cat(outputs)


async def engine_steps(engine: Engine) -> bytes:
    """Two sessions, one of which moves to a third; all that they are told."""

    def open_session() -> SessionKv:
        return engine.open(BLOCKS, engine.wire_format("float32"), kv_tokens=64, max_rows=2)

    answers = []
    first, second = open_session(), open_session()
    for start, count, seed in ((0, 9, 0), (9, 1, 1), (10, 1, 2)):
        plan = StepPlan((PlannedRow(0, start, count, count),))
        data = [encode_tensor(random_hidden(count, 10 * seed + session)) for session in range(2)]
        steps_of_both = (engine.step(kv, plan, part) for kv, part in zip((first, second), data, strict=True))
        outputs = await asyncio.gather(*steps_of_both)
        answers += [output.data for output in outputs]
    third = open_session()
    part = await engine.submit(lambda: first.export((), 64))
    await engine.submit(lambda: third.import_(part))
    plan = StepPlan((PlannedRow(0, 11, 1, 1),))
    answers.append((await engine.step(third, plan, encode_tensor(random_hidden(1, 99)))).data)
    return b"".join(answers)
