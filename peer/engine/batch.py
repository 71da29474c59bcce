"""One forward pass over the tokens of several sessions, each with its own range of blocks.

A session may use a part of the hosted blocks, and of the blocks that were hosted when it opened.  Sessions with the
same module for a block compute it together, whatever stage they opened on: the pass is cut where sessions enter or
leave, and each run of blocks is computed with all tokens that go through it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...proto.errors import OutOfMemory, RetryElsewhere, SwarmError, UsageError
from ...routing.swarm import BlockRange
from .blocks.rows import RowSpan
from .blocks.view import StageView

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One session's part of a pass."""

    view: StageView
    """The session's blocks."""
    hidden: torch.Tensor
    """(T, H) in the view's dtype, on the CPU: the tokens of all rows, concatenated."""
    rows: tuple[RowSpan, ...]


Compute = Callable[[Sequence[Share]], list[torch.Tensor | SwarmError]]
"""One forward pass, see `compute_shares`."""


def compute_shares(shares: Sequence[Share]) -> list[torch.Tensor | SwarmError]:
    """The output of every share, (T, H) on the CPU, or its error; the rows of a failed share are as they were.

    If a pass fails, each share is computed on its own, so that only the session at fault gets the error.
    """
    try:
        return [*_compute(shares)]
    except Exception as error:
        for share in shares:
            for row in share.rows:
                row.kv.truncate(min(row.kv.length, row.start))
        if len(shares) == 1:
            return [error_of(error)]
        logger.warning("a step of %d sessions failed, each is computed on its own: %r", len(shares), error)
    return [output for share in shares for output in compute_shares([share])]


def error_of(error: Exception) -> SwarmError:
    """The error to tell a session whose computation failed."""
    if isinstance(error, SwarmError):
        return error
    # torch's allocator of main memory raises a plain RuntimeError.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return OutOfMemory("the peer has no memory for this step")
    if isinstance(error, IndexError):
        # A table of positions or of tokens is too short for this input, at every other peer as well.
        logger.info("a session's step does not fit the model: %s", error)
        return UsageError(
            f"the input goes beyond a table of the model ({error})",
            hint="Ask for fewer tokens: the model has no more positions.",
        )
    logger.error("a session's step failed", exc_info=error)
    return RetryElsewhere("the peer failed to compute the step")


@dataclass(frozen=True, slots=True)
class Leg:
    """A run of blocks that is computed in one go for all travellers with the same modules there."""

    blocks: BlockRange
    travellers: tuple[int, ...]
    """Indices into `journeys` of `plan_legs`."""


def plan_legs(journeys: Sequence[Mapping[int, Hashable]]) -> list[Leg]:
    """Cut journeys (block -> its module) into the fewest legs; the legs of each traveller are in ascending order.

    O(blocks * journeys). Pure.
    """
    legs: list[Leg] = []
    latest: dict[tuple[int, ...], int] = {}
    for block in sorted(set().union(*journeys)):
        together: dict[Hashable, list[int]] = {}
        for index, modules in enumerate(journeys):
            if block in modules:
                together.setdefault(modules[block], []).append(index)
        for travellers in map(tuple, together.values()):
            position = latest.get(travellers)
            if position is not None and legs[position].blocks.stop == block:
                legs[position] = Leg(BlockRange(legs[position].blocks.start, block + 1), travellers)
            else:
                latest[travellers] = len(legs)
                legs.append(Leg(BlockRange(block, block + 1), travellers))
    return legs


def _compute(shares: Sequence[Share]) -> list[torch.Tensor]:
    lengths = [len(share.hidden) for share in shares]
    hidden = list(torch.cat([share.hidden for share in shares]).to(shares[0].view.device).split(lengths))
    by_view: dict[StageView, list[int]] = {}
    for index, share in enumerate(shares):
        by_view.setdefault(share.view, []).append(index)
    views = list(by_view)
    for leg in plan_legs([view.modules for view in views]):
        active = sorted(index for traveller in leg.travellers for index in by_view[views[traveller]])
        rows = [
            row if shares[index].view.blocks.start == leg.blocks.start else replace(row, under_way=True)
            for index in active
            for row in shares[index].rows
        ]
        output = views[leg.travellers[0]].part(leg.blocks).forward(torch.cat([hidden[index] for index in active]), rows)
        for index, part in zip(active, output.split([lengths[index] for index in active]), strict=True):
            hidden[index] = part
    return list(torch.cat(hidden).cpu().split(lengths))
