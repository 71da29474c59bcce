"""A loop that computes answers nobody: peers and clients leave it within 5 ms, whatever is going on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import torch
from blockswarm.proto.steps import RowSlice, StepPlan
from support.loop_watchdog import watched_loops
from support.swarm import LocalSwarm, local_swarm
from support.tiny_models import write_tiny_checkpoint

HIDDEN = 64
BLOCKS = 6
LONGEST_SECONDS = 0.005


async def converse(swarm: LocalSwarm, prompt: int, seed: int) -> None:
    """A prompt and a few tokens."""
    session = await swarm.session(kv_tokens=prompt + 16, max_rows=1)
    hidden = torch.randn(prompt + 16, HIDDEN, generator=torch.Generator().manual_seed(seed))
    try:
        await session.run(StepPlan((RowSlice(0, 0, prompt, 1),)), hidden[:prompt].numpy().tobytes())
        for position in range(prompt, prompt + 16):
            plan = StepPlan((RowSlice(0, position, 1, 1),))
            await session.run(plan, hidden[position : position + 1].numpy().tobytes())
    finally:
        await session.close()


def test_no_callback_keeps_the_loop(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = write_tiny_checkpoint("llama", tmp_path)

    async def scenario() -> None:
        async with local_swarm(folder, "0:3", "3:6") as swarm:
            await converse(swarm, 8, seed=0)  # what is imported and made on first use
            with watched_loops() as watch:
                await asyncio.gather(*(converse(swarm, 300, seed) for seed in range(1, 7)))
        assert watch.callbacks > 100
        assert watch.longest_seconds < LONGEST_SECONDS, watch.longest

    asyncio.run(scenario())


def test_the_watch_sees_who_computes_in_the_loop() -> None:
    async def busy() -> None:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    with watched_loops() as watch:
        asyncio.run(busy())
    assert watch.longest_seconds >= 0.02
    assert "busy" in watch.longest
