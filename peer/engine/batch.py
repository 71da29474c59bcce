"""One forward pass over the tokens of several sessions, each of which may use only a part of the stage's blocks.

Where some of them enter or leave, the stage is cut, and every run of blocks is computed with all tokens that pass it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...proto.errors import OutOfMemory, RetryElsewhere, SwarmError
from ...routing.swarm import BlockRange
from .blocks.stage import RowSpan, Stage
from .cache.row import RowKV

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one session has computed in a pass."""

    blocks: BlockRange
    hidden: torch.Tensor
    """(T, H) in the stage's dtype, on the CPU: the rows' tokens one after the other."""
    rows: tuple[RowSpan, ...]


def compute_shares(stage: Stage, shares: Sequence[Share]) -> list[torch.Tensor | SwarmError]:
    """Every share's output, (T, H) on the CPU, or what went wrong with it; its rows are then as they were.

    If a pass fails, each share is computed on its own: the others do not suffer from the one to blame.
    """
    try:
        return [*_compute(stage, shares)]
    except Exception as error:
        for share in shares:
            for row in share.rows:
                row.kv.truncate(min(row.kv.length, row.start))
        if len(shares) == 1:
            return [error_of(error)]
        logger.warning("a step of %d sessions failed, each is computed on its own: %r", len(shares), error)
    return [output for share in shares for output in compute_shares(stage, [share])]


def error_of(error: Exception) -> SwarmError:
    """What a session is told about a failed computation."""
    if isinstance(error, SwarmError):
        return error
    # torch's allocator of main memory raises a plain RuntimeError.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return OutOfMemory("the peer has no memory for this step")
    logger.error("a session's step failed", exc_info=error)
    return RetryElsewhere("the peer failed to compute the step")


def segments(ranges: Sequence[BlockRange]) -> list[BlockRange]:
    """Ascending runs of blocks that each of the ranges has completely or not at all, and some range has."""
    bounds = sorted({bound for blocks in ranges for bound in (blocks.start, blocks.stop)})
    runs = [BlockRange(start, stop) for start, stop in itertools.pairwise(bounds)]
    return [run for run in runs if any(blocks.covers(run) for blocks in ranges)]


class _PassingRow(RowKV):
    """A row on its way through a stage that is cut: what earlier runs of blocks wrote behind `start` has to stay.

    It is the same row, state and all; only that going back to `start` gives no memory back.
    """

    def __init__(self, row: RowKV) -> None:
        self.__dict__ = row.__dict__

    def truncate(self, length: int) -> None:
        self.length = length


def _compute(stage: Stage, shares: Sequence[Share]) -> list[torch.Tensor]:
    lengths = [len(share.hidden) for share in shares]
    hidden = list(torch.cat([share.hidden for share in shares]).to(stage.device).split(lengths))
    for run in segments([share.blocks for share in shares]):
        active = [index for index, share in enumerate(shares) if share.blocks.covers(run)]
        rows = [
            row if shares[index].blocks.start == run.start else replace(row, kv=_PassingRow(row.kv))
            for index in active
            for row in shares[index].rows
        ]
        output = stage.view(run).forward(torch.cat([hidden[index] for index in active]), rows)
        for index, part in zip(active, output.split([lengths[index] for index in active]), strict=True):
            hidden[index] = part
    return list(torch.cat(hidden).cpu().split(lengths))
