"""A loop that computes answers nobody: peers and clients leave it within milliseconds, whatever is going on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import torch
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from support.loop_watchdog import watched_loops
from support.swarm import LocalSwarm, local_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm

HIDDEN = 64
BLOCKS = 6
LONGEST_SECONDS = 0.05
"""The bound on the processor time of one callback; measured are 5 to 10 ms, on a machine that others use as well."""


async def converse(swarm: LocalSwarm, prompt: int, hidden: bytes) -> None:
    """A prompt and a few tokens."""
    token_bytes = 4 * HIDDEN
    session = await swarm.session(kv_tokens=len(hidden) // token_bytes, max_rows=1)
    try:
        await session.run(StepPlan((RowSlice(0, 0, prompt, 1),)), hidden[: prompt * token_bytes])
        for position in range(prompt, len(hidden) // token_bytes):
            token = hidden[position * token_bytes : (position + 1) * token_bytes]
            await session.run(StepPlan((RowSlice(0, position, 1, 1),)), token)
    finally:
        await session.close()


def test_no_callback_keeps_the_loop(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = write_tiny_checkpoint("llama", tmp_path)
    hidden = torch.randn(316, HIDDEN, generator=torch.Generator().manual_seed(1)).numpy().tobytes()

    async def scenario() -> None:
        async with local_swarm(folder, "0:3", "3:6") as swarm:
            await converse(swarm, 8, hidden[: 12 * 4 * HIDDEN])  # what is imported and made on first use
            with watched_loops() as watch:
                await asyncio.gather(*(converse(swarm, 300, hidden) for _ in range(6)))
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
