"""How long a step of a running session takes before which its attention cache moves to another peer.

Real peers of the model `small` on this machine, two for each half of its blocks, and a session that steps on at a
constant context.  Its client is told that one of its peers is about to leave, as that peer's record would tell it; the
rest is the product.  The session computes without the model's head: a token would take longer, a stall would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.codec import FloatCodec
from blockswarm.client.config import SessionConfig, SessionEvent
from blockswarm.client.swarm.router import ViewRouter
from blockswarm.client.swarm.view import SwarmView
from blockswarm.client.timing import ChainTiming, ClientTiming
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange, PeerId

from .checkpoints import write
from .churn import percentiles
from .placed_swarm import BenchFailed, BenchSwarm, say

CONTEXT_TOKENS = 512
STEPS_BETWEEN = 10
"""Steps that nothing disturbs, before each hand-over."""
GIVE_UP_SECONDS = 120.0
TIMING = ClientTiming(chain=ChainTiming(handover_pause_seconds=0.1))
"""A peer that was left may be chosen again soon."""


class LeavingRouter(ViewRouter):
    """Says of one peer that it is about to leave."""

    left: PeerId | None = None

    def leaving(self, peer: PeerId, blocks: BlockRange) -> bool:
        return peer == self.left


class Steps:
    """A session's steps of one token, each in the place of the one before, and their times in seconds."""

    def __init__(self, config: SessionConfig) -> None:
        self.told: list[tuple[str, float]] = []
        """The kinds of what the session told, and when."""
        self._config = config
        self._hidden = np.random.default_rng(1).standard_normal((CONTEXT_TOKENS, config.codec.token_bytes // 4))

    async def begin(self) -> None:
        def note(event: SessionEvent) -> None:
            self.told.append((event.kind, time.perf_counter()))

        config = SessionConfig(**{**vars(self._config), "on_event": note})
        self.session = ChainSession(config, 2 * CONTEXT_TOKENS, 1)
        prompt = self._hidden.astype(np.float32).tobytes()
        await self.session.run(StepPlan((RowSlice(0, 0, CONTEXT_TOKENS, 1),)), prompt)

    async def step(self) -> float:
        began = time.perf_counter()
        token = self._hidden[:1].astype(np.float32).tobytes()
        await self.session.run(StepPlan((RowSlice(0, CONTEXT_TOKENS, 1, 1),)), token)
        return time.perf_counter() - began

    @property
    def has_handed_over(self) -> bool:
        return "handed-over" in dict(self.told)

    def parts_of(self, seconds: float) -> dict[str, float]:
        """Where the last step of `seconds` went, before which the chain changed: in seconds."""
        told, ended_at = dict(self.told), time.perf_counter()
        report = self.session.report(since=self.session.answered_steps - 1)
        return {
            "last parts of the copy": told["rerouted"] - (ended_at - seconds),
            "new neighbours": told["handed-over"] - told["rerouted"],
            "first step, computing": sum(hop.compute_seconds for hop in report.hops),
            "first step, way and queues": report.return_seconds
            + sum(hop.network_seconds + hop.queue_seconds for hop in report.hops),
        }


async def handovers(folder: Path, count: int) -> dict[str, Any]:
    """The times of the steps before which a cache moved, of those meanwhile, and of others; in milliseconds."""
    model = folder / "small"
    if not model.exists():
        await asyncio.to_thread(write, "small", model)
    swarm = BenchSwarm(folder, "0:8", 4 * CONTEXT_TOKENS, model=model)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(swarm.close)
        for blocks in ("0:8", "8:16", "0:8", "8:16"):
            await swarm.ready(swarm.start(blocks))
        say("the peers serve")
        checkpoint, identity = open_checkpoint(str(model)), Identity.generate()
        digest, dialer = checkpoint.model_digest().hex(), Dialer(rule=EVERY_RANGE)
        stack.push_async_callback(dialer.close)
        view = SwarmView(identity, dialer, swarm.addresses(), digest, checkpoint.num_blocks, None, True)
        stack.push_async_callback(view.close)
        await view.start()
        router, codec = LeavingRouter(view), FloatCodec(checkpoint.config.hidden_size)
        config = SessionConfig(
            identity, dialer, router, digest, checkpoint.num_blocks, "auto", codec, timing=TIMING
        )  # fmt: skip
        steps = Steps(config)
        await steps.begin()
        stack.push_async_callback(steps.session.close)
        return await measured(steps, router, count)


async def measured(steps: Steps, router: LeavingRouter, count: int) -> dict[str, Any]:
    others: list[float] = []
    meanwhile: list[float] = []
    stalls: list[float] = []
    moves: list[float] = []
    parts: list[dict[str, float]] = []
    for number in range(count):
        others += [await steps.step() for _ in range(STEPS_BETWEEN)]
        steps.told.clear()
        router.left = steps.session.chain[number % 2][0]
        began = time.perf_counter()
        while not steps.has_handed_over:
            meanwhile.append(await steps.step())
            if time.perf_counter() > began + GIVE_UP_SECONDS:
                raise BenchFailed(f"no hand-over within {GIVE_UP_SECONDS:.0f} s: {steps.told}")
        moves.append(time.perf_counter() - began)
        stalls.append(meanwhile.pop())
        parts.append(steps.parts_of(stalls[-1]))
        if {"replay", "hop-lost"} & dict(steps.told).keys():
            raise BenchFailed(f"the cache was not handed over: {steps.told}")
        say(f"{number + 1} of {count}: stall {1000 * stalls[-1]:.0f} ms, {moves[-1]:.1f} s in all")
    return {
        "handovers": count,
        "context_tokens": CONTEXT_TOKENS,
        "stall_p50_p95_max_ms": percentiles(stalls),
        "stall_parts_p50_p95_max_ms": {name: percentiles([each[name] for each in parts]) for name in parts[0]},
        "meanwhile_steps": len(meanwhile),
        "meanwhile_p50_p95_max_ms": percentiles(meanwhile),
        "other_steps_p50_p95_max_ms": percentiles(others),
        "move_p50_p95_max_ms": percentiles(moves),
        "load": load(os.getloadavg()),
    }


def load(averages: Sequence[float]) -> float:
    return round(averages[0], 1)
