"""The measurement finds the cost of a stage whose steps take a known time, and stays within its budget."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import RowSpan, Stage
from blockswarm.peer.engine.cache.row import RowKV
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.offer.calibrate import calibrate, still_holds
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.routing.swarm import BlockRange, ComputeCost
from support.tiny_models import write_tiny_checkpoint

TRUE = ComputeCost(3e-3, 2e-4, 1e-6, 1e-3, 4e-4)
BUDGET_SECONDS = PeerTiming().calibration_seconds


class TimedStage:
    """A stage that computes nothing, while a clock of its own says that it took `cost`, or a little more."""

    def __init__(self, cost: ComputeCost, num_blocks: int, noise: float, position_limit: int | None = None) -> None:
        self.blocks = BlockRange(2, 2 + num_blocks)
        self.hidden_size = 4
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.position_limit = position_limit
        self.seconds = 0.0
        self._cost = cost
        self._noise = noise
        self._rng = random.Random(7)

    def view(self, blocks: BlockRange) -> Any:
        return SimpleNamespace(
            blocks=blocks,
            new_row=lambda max_tokens: RowKV(blocks, max_tokens),
            forward=lambda hidden, rows: self._forward(blocks, hidden, rows),
        )

    def _forward(self, blocks: BlockRange, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
        for row in rows:
            assert self.position_limit is None or row.stop <= self.position_limit
            row.kv.truncate(row.start)
            for block in blocks:
                row.kv.update(torch.zeros(1, 1, row.count, 2), torch.zeros(1, 1, row.count, 2), block)
            row.kv.advance(row.count)
        if all(row.count == 1 for row in rows):
            seconds = self._cost.decode_seconds(len(rows), sum(row.start + 1 for row in rows))
        else:
            seconds = self._cost.prefill_seconds(sum(row.count for row in rows))
        self.seconds += seconds * len(blocks) * (1 + self._rng.expovariate(1) * self._noise)
        return hidden


def stage_of(timed: TimedStage) -> Stage:
    stage: Any = timed
    return stage  # type: ignore[no-any-return]


@pytest.mark.parametrize(("num_blocks", "noise"), [(1, 0.0), (4, 0.0), (16, 0.05), (80, 0.05)])
def test_finds_the_cost(num_blocks: int, noise: float) -> None:
    stage = TimedStage(TRUE, num_blocks, noise)
    found = calibrate(stage_of(stage), lambda: stage.seconds, BUDGET_SECONDS)
    for rows, context in ((1, 64), (1, 400), (4, 800), (8, 2000)):
        assert found.decode_seconds(rows, context) == pytest.approx(TRUE.decode_seconds(rows, context), rel=0.1)
    for tokens in (16, 128):
        assert found.prefill_seconds(tokens) == pytest.approx(TRUE.prefill_seconds(tokens), rel=0.1)


@pytest.mark.parametrize("limit", [64, 128, 512])
def test_no_text_of_a_trial_is_longer_than_those_of_the_model(limit: int) -> None:
    """Models with few positions have a table of them in their blocks, and no row behind its end."""
    stage = TimedStage(TRUE, 4, 0.0, position_limit=limit)
    found = calibrate(stage_of(stage), lambda: stage.seconds, BUDGET_SECONDS)
    assert found.decode_seconds(4, 40) == pytest.approx(TRUE.decode_seconds(4, 40), rel=0.1)
    assert found.prefill_seconds(limit) == pytest.approx(TRUE.prefill_seconds(limit), rel=0.1)
    assert still_holds(stage_of(stage), TRUE, lambda: stage.seconds, BUDGET_SECONDS)


@pytest.mark.long
@pytest.mark.parametrize("factor", [0.01, 1, 10])
def test_keeps_to_its_budget(factor: float) -> None:
    stage = TimedStage(ComputeCost(*(factor * getattr(TRUE, name) for name in ComputeCost.__slots__)), 80, 0.0)
    calibrate(stage_of(stage), lambda: stage.seconds, BUDGET_SECONDS)
    assert stage.seconds < 2 * BUDGET_SECONDS


def test_an_earlier_measurement_holds_while_the_machine_is_as_fast() -> None:
    stage = TimedStage(TRUE, 8, 0.05)
    assert still_holds(stage_of(stage), TRUE, lambda: stage.seconds, BUDGET_SECONDS)
    twice = ComputeCost(*(2 * getattr(TRUE, name) for name in ComputeCost.__slots__))
    assert not still_holds(stage_of(stage), twice, lambda: stage.seconds, BUDGET_SECONDS)


@pytest.mark.long
def test_measures_a_real_stage(tmp_path: Any) -> None:
    """Whatever the figures are: they are a cost, and the real stage takes the trial's rows."""
    torch.set_num_threads(1)
    folder = write_tiny_checkpoint("qwen3", tmp_path)
    stage = load_stage(open_checkpoint(str(folder)), BlockRange(1, 4))
    ticks = iter(range(10**9))
    cost = calibrate(stage, lambda: 1e-3 * next(ticks), BUDGET_SECONDS)  # every step takes one tick
    assert cost.decode_seconds(4, 256) == pytest.approx(1e-3 / 3, rel=0.01)
