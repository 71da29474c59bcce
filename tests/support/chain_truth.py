"""One local cache of all blocks as the truth that a session's answers are compared with."""

from __future__ import annotations

import torch
from blockswarm.client.chain.session import ChainSession
from blockswarm.peer.engine.engine import Engine, SessionKv
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange

HIDDEN = 64
BLOCKS = 6


class Truth:
    """One local cache of all blocks; does what the session should do."""

    def __init__(self, engine: Engine) -> None:
        self._kv: SessionKv = engine.open(BlockRange(0, BLOCKS), engine.wire_format("float32"), 4096, 64)

    def run(self, plan: StepPlan, data: bytes) -> torch.Tensor:
        output = torch.frombuffer(bytearray(self._kv.step(plan, data).data), dtype=torch.float32).view(-1, HIDDEN)
        parts, offset = [], 0
        for piece in plan.rows:
            offset += piece.count
            parts.append(output[offset - piece.answers : offset])
        return torch.cat(parts)


def tokens(count: int, seed: int) -> bytes:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed)).numpy().tobytes()


async def check_step(session: ChainSession, truth: Truth, plan: StepPlan, seed: int) -> None:
    data = tokens(plan.tokens, seed)
    answer = await session.run(plan, data)
    got = torch.frombuffer(bytearray(answer), dtype=torch.float32).view(-1, HIDDEN)
    torch.testing.assert_close(got, truth.run(plan, data), atol=2e-5, rtol=1e-4)


def plan(*rows: tuple[int, int, int], source: tuple[int, ...] | None = None) -> StepPlan:
    """(row, start, count) each; every token is answered."""
    return StepPlan(tuple(RowSlice(row, start, count, count) for row, start, count in rows), source)
