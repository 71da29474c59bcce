"""The cost of a block on this machine, measured on the path that serves sessions.

Decode takes `a + b * rows + c * context`, prefill `a' + p * tokens` (seconds per block).  Each is a least-squares line
of relative errors through the fastest of a few runs per point: other programs can only make a run slower.  While the
peer serves, `cost_estimate` goes on from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...routing.swarm import ComputeCost
from ..engine.blocks.stage import Stage
from ..engine.trial import StepTrial
from .least_squares import nonnegative_least_squares

ROUNDS = 4
DECODE_POINTS = ((1, 64), (1, 512), (4, 64), (8, 64), (8, 256))
"""(rows, cached tokens of each row)"""
PREFILL_TOKENS = (16, 64, 128)
GPU_PREFILL_TOKENS = (64, 256, 512)
"""A GPU computes dozens of tokens while it reads the weights once; fewer tokens do not show the cost of one."""
_ROUND_STEPS = 30
"""The time of one round over all points, in decode steps of one row. The decode points take 5 such steps, if rows cost
nothing beside the read of the weights, to 22, if nothing is shared. The 208 tokens of the prompts take 21 more, where
each takes a tenth of a step: 26 to 43 in all. If 30 is too few, the budget allows fewer rounds."""
_MIN_BLOCKS = 2
"""The weights of one block might stay in a CPU cache, as they never do when a peer serves."""
_SAME_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class _Point:
    features: tuple[float, ...]
    run: Callable[[], None]


def calibrate(stage: Stage, clock: Callable[[], float], budget_seconds: float) -> ComputeCost:
    """Measure a stage that nothing else uses meanwhile; the timed runs take about `budget_seconds` at most.

    `clock` is a monotonic clock in seconds.
    """
    trial = _warm_up(stage, clock, budget_seconds)
    limit = stage.position_limit
    contexts = _within(limit, [context + 1 for _, context in DECODE_POINTS])
    decode = [
        _Point((1.0, rows, rows * (length - 1)), trial.decode(rows, length - 1))
        for (rows, _), length in zip(DECODE_POINTS, contexts, strict=True)
    ]
    lengths = _within(limit, PREFILL_TOKENS if stage.device.type == "cpu" else GPU_PREFILL_TOKENS)
    prefill = [_Point((1.0, tokens), trial.prefill(tokens)) for tokens in lengths]
    spent_from = clock()
    best = [float("inf")] * (len(decode) + len(prefill))
    # Round by round, so that a moment of other load hits one run of every point and not all runs of one.
    for done in range(ROUNDS):
        if done and (clock() - spent_from) * (done + 1) / done > budget_seconds:
            break
        for index, point in enumerate([*decode, *prefill]):
            best[index] = min(best[index], _timed(point.run, clock))
    blocks = trial.num_blocks
    fixed, per_row, per_token = _fit([point.features for point in decode], best[: len(decode)])
    prefill_fixed, prefill_per_token = _fit([point.features for point in prefill], best[len(decode) :])
    return ComputeCost(*(value / blocks for value in (fixed, per_row, per_token, prefill_fixed, prefill_per_token)))


def still_holds(stage: Stage, known: ComputeCost, clock: Callable[[], float], budget_seconds: float) -> bool:
    """Whether one decode step takes the time that `known` says, within 30 %. Nothing else may use the stage."""
    trial = _warm_up(stage, clock, budget_seconds)
    (length,) = _within(stage.position_limit, [65])
    run = trial.decode(1, length - 1)
    seconds = min(_timed(run, clock) for _ in range(ROUNDS)) / trial.num_blocks
    expected = known.decode_seconds(1, length - 1)
    return abs(seconds - expected) <= _SAME_SHARE * expected


def _warm_up(stage: Stage, clock: Callable[[], float], budget_seconds: float) -> StepTrial:
    """Return a trial with as many blocks as the budget allows, warmed up."""
    total = len(stage.blocks)
    few = StepTrial(stage, min(_MIN_BLOCKS, total))
    run = few.decode(1, 1)
    seconds = min(_timed(run, clock) for _ in range(3))
    affordable = int(budget_seconds / ROUNDS / _ROUND_STEPS / (seconds / few.num_blocks))
    blocks = min(total, max(_MIN_BLOCKS, affordable))
    trial = StepTrial(stage, blocks)
    warm = trial.decode(1, 1)
    warm()
    warm()
    return trial


def _within(limit: int | None, lengths: Sequence[int]) -> list[int]:
    """Scale lengths of texts down together, so that none exceeds the model's position limit."""
    longest = max(lengths)
    if limit is None or longest <= limit:
        return list(lengths)
    return [max(2, length * limit // longest) for length in lengths]


def _timed(run: Callable[[], None], clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return clock() - began


def _fit(features: Sequence[tuple[float, ...]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Fit coefficients >= 0 with the least relative errors; a negative one would be noise: it is 0, others adapt."""
    rows = np.array(features) / np.array(seconds)[:, None]
    scale = rows.max(axis=0)
    coefficients = nonnegative_least_squares(rows / scale, np.ones(len(rows)))
    return tuple(float(value) for value in coefficients / scale)
