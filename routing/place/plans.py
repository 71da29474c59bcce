"""Whole placements that the online rule weighs against the present one: from scratch, sticky, and packed.

The plan from scratch is CG-BP's first phase and does not depend on the present ranges.  In the sticky plan a peer keeps
its window unless another window contributes clearly more.  The packed plan puts the peers side by side in the order of
their present ranges.  Plans are (n, 2) arrays of ranges, with 0, 0 for a peer that the plan does not use.
"""

from __future__ import annotations

import numpy as np

from ..perf import FloatArray, IntArray
from .view import PlanningView
from .windows import added_blocks, window_sums

STICKY_TOLERANCE = 0.25
"""In a sticky plan a peer stays if it contributes at least 1 - STICKY_TOLERANCE of the most that it could elsewhere."""


def by_position(ranges: IntArray) -> IntArray:
    """The peers by first block, then by last."""
    return np.lexsort((ranges[:, 1], ranges[:, 0]))


def over(present: IntArray, planned: IntArray) -> IntArray:
    """The planned ranges, and the present ones of peers for which nothing is planned."""
    return np.where(planned[:, 1:] > 0, planned, present)


def planned_ranges(view: PlanningView, *, sticky: bool) -> IntArray:
    """(n, 2): CG-BP's first phase; if `sticky`, with peers that stay where they contribute about as much as elsewhere.

    Peers after the one with which every block has room for R sessions get 0, 0: they are spare and stay.
    """
    num_blocks, concurrency = view.model.num_blocks, view.concurrency
    dummy = float(view.amortised[np.isfinite(view.amortised)].max(initial=0.0)) + 0.001
    tie = 1e-9 * dummy * num_blocks
    capacities = np.zeros(num_blocks, dtype=np.int64)
    backlog = np.full(num_blocks, dummy)  # T_b / R
    sessions = view.model.full_sessions(view.sizes).tolist()
    present_sessions = view.model.full_sessions(view.ranges[:, 1] - view.ranges[:, 0]).tolist()
    planned = np.zeros_like(view.ranges)

    def book(j: int, start: int, stop: int, f: int) -> None:
        newly = np.clip(concurrency - capacities[start:stop], 0, f)
        backlog[start:stop] -= (dummy - min(view.amortised[j], dummy)) * newly / concurrency
        capacities[start:stop] += f
        planned[j] = start, stop

    for j, peer in enumerate(view.peers):
        if peer.blocks_fixed and view.is_placed(j):
            first, last = view.ranges[j].tolist()
            book(j, first, last, present_sessions[j])
    for j in view.order:
        short = np.maximum(concurrency - capacities, 0)
        if not short.any():
            break
        if view.peers[j].blocks_fixed:
            continue
        size, f = int(view.sizes[j]), sessions[j]
        contribution = window_sums(np.minimum(short, f), size)
        first, last = view.ranges[j].tolist()
        if sticky and last > 0:
            here = int(np.minimum(short[first:last], present_sessions[j]).sum())
            if here > 0 and here >= (1.0 - STICKY_TOLERANCE) * contribution.max():
                book(j, first, last, present_sessions[j])
                continue
        sums = np.where(contribution > 0, window_sums(backlog, size), -np.inf)
        starts = np.flatnonzero(sums >= sums.max() - tie)
        if last == 0:  # A joining peer relieves the slowest of the equally good windows.
            relief = window_sums(_block_seconds(view, dummy), size)[starts]
            starts = starts[relief >= relief.max() - tie]
        elif sticky:  # Other peers choose the window that needs least loading.
            loads = added_blocks(view.ranges[j], np.stack([starts, starts + size], axis=1))
            starts = starts[loads == loads.min()]
        book(j, int(starts[0]), int(starts[0]) + size, f)
    return planned


def packed_ranges(view: PlanningView, planned: IntArray) -> IntArray:
    """The same peers side by side in the order of their present ranges, each as near to its range as the others allow.

    As good as the plan from scratch if that is a partition of the blocks, and much cheaper to reach.
    """
    packed = planned.copy()
    moving = [
        j
        for j in by_position(view.ranges).tolist()
        if planned[j, 1] > 0 and view.is_placed(j) and not view.peers[j].blocks_fixed
    ]
    remaining = int(view.sizes[moving].sum())
    end = 0
    for j in moving:
        size = int(view.sizes[j])
        lowest, highest = max(0, view.model.num_blocks - remaining), min(end, view.model.num_blocks - size)
        start = min(max(int(view.ranges[j, 0]), lowest), highest)
        packed[j] = start, start + size
        end = max(end, start + size)
        remaining -= size
    return packed


def _block_seconds(view: PlanningView, dummy: float) -> FloatArray:
    """(L,): amortised time of each block on the fastest peer that hosts it now; `dummy` if nobody does."""
    seconds = np.full(view.model.num_blocks, dummy)
    for (start, stop), amortised in zip(view.ranges.tolist(), view.amortised.tolist(), strict=True):
        window = seconds[start:stop]
        np.minimum(window, amortised, out=window)
    return seconds
