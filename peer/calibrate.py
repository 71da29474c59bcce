"""What a block costs on this machine, measured on the path that serves sessions.

Decode takes `a + b * rows + c * context`, prefill `a' + p * tokens` (seconds per block).  Each is a least-squares line
through the fastest of a few runs per point: neighbours on a machine only ever make a run slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..proto.steps import RowSlice, StepPlan
from ..routing.swarm import ComputeCost
from .engine.engine import Engine

REPEATS = 4
_DECODE_POINTS = ((1, 16), (1, 256), (4, 16))
"""(rows, context of each)"""
_PREFILL_TOKENS = (16, 128)


@dataclass(frozen=True, slots=True)
class _Sample:
    features: tuple[float, ...]
    seconds: float


def calibrate(engine: Engine, clock: Callable[[], float]) -> ComputeCost:
    """Measure the engine's stage; runs in the engine's thread, for a second or less on most machines.

    `clock` is a monotonic clock in seconds.
    """
    wire_format = engine.wire_format("float32")
    max_tokens = max(rows * (context + REPEATS + 1) for rows, context in _DECODE_POINTS) + sum(_PREFILL_TOKENS)
    kv = engine.open(engine.blocks, wire_format, max_tokens, max_rows=max(rows for rows, _ in _DECODE_POINTS))
    blocks = len(engine.blocks)

    def timed(rows: int, start: int, count: int) -> float:
        plan = StepPlan(tuple(RowSlice(row, start, count, answers=0) for row in range(rows)))
        data = bytes(plan.tokens * wire_format.token_bytes)
        began = clock()
        kv.step(plan, data)
        return (clock() - began) / blocks

    def fastest(rows: int, start: int, count: int) -> float:
        return min(timed(rows, start, count) for _ in range(REPEATS))

    timed(1, 0, 8)
    prefill = [_Sample((1.0, tokens), fastest(1, 0, tokens)) for tokens in _PREFILL_TOKENS]
    decode = []
    for rows, context in _DECODE_POINTS:
        kv.reset()
        timed(rows, 0, context)
        decode.append(_Sample((1.0, rows, rows * context), fastest(rows, context, 1)))
    fixed, per_row, per_token = _fit(decode)
    prefill_fixed, prefill_per_token = _fit(prefill)
    return ComputeCost(fixed, per_row, per_token, prefill_fixed, prefill_per_token)


def _fit(samples: Sequence[_Sample]) -> tuple[float, ...]:
    """Coefficients >= 0 that fit the samples; a negative one is noise and becomes 0, with its share in the others."""
    from scipy.optimize import nnls

    features = np.array([sample.features for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    scale = features.max(axis=0)
    coefficients, _ = nnls(features / scale, seconds)
    return tuple(float(value) for value in coefficients / scale)
