"""Online re-planning: a snapshot of the swarm in, the one move worth making now out, or none.

CG-BP (`cgbp.py`) places from scratch, but peers must not reload everything whenever others come and go.  `decide` keeps
CG-BP's greedy order and windows, but lets a peer stay if it contributes about as much where it is:

1. Join: a peer without blocks gets the window with most uncovered blocks, else the one of CG-BP's greedy step.
2. Repair: while some block has no server, the move that covers most of the uncovered blocks and loads least.
3. Improve: the plan is CG-BP's greedy pass in which a peer keeps its window unless another contributes more.  It is
   begun if the time that it saves over the horizon exceeds the time that loading takes; its moves are made one by one.

Plans are compared by their cost over the horizon, loading included: the mean of the time of requests among as many
others as R is planned for (`loaded.py`) and of the time promised to the farthest client (Theorem 2's setting).  The
cheapest chain alone would not show that fast peers host too many blocks to have room for a second session.

Rest: a plan is a fixed point.  In the sticky one a peer's window depends on the windows planned for peers before it and
on its own present one; the one from scratch does not depend on the present at all; the packed one depends on the order
of the present ranges, which its steps keep where they can.  So carrying out part of a plan does not change the rest, it
takes at most n moves, and a step lowers the plan's cost by what it loaded, which is more than any other plan gains
unless the step changed that plan.  It is not proven that no other plan takes over half-way, again and again: in the
tests' random histories n moves were enough once every peer was placed and every block served, and 2 n with uncovered
blocks, whose repairs need not be final.

Every peer computes the same decision from the same snapshot: clients, load and R are functions of the snapshot, and
ties are broken by position.  A move never takes a block from one server to none; between peers with different, old
snapshots `judge_claim` (claims.py) sees to that.

Symbols: R concurrency, m_j sizes, t~_j amortised, f_j sessions, C_b capacity, V_c clients (`algorithms.md` section 4).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..perf import IntArray
from ..swarm import MoveClaim, Swarm
from .moves import Move, Reason, ReplanPolicy
from .plans import by_position, over, packed_ranges, planned_ranges
from .view import PlanningView
from .windows import added_blocks, least_served_window, most_uncovered_window, safe_starts, window_sums


def decide(swarm: Swarm, policy: ReplanPolicy | None = None) -> Move | None:
    """The one move worth making now, or None if the swarm rests.

    Plans do not include draining and leaving peers; claimed moves count as made.  Only peers that serve, are not
    fixed and have no claim are moved.  O(n L) with n peers and L blocks.
    """
    return next(moves_of(PlanningView.of(swarm, policy or ReplanPolicy()), swarm.now_seconds), None)


def upcoming(swarm: Swarm, policy: ReplanPolicy | None = None, limit: int = 8) -> tuple[Move, ...]:
    """The move worth making now, and those that follow while it is in progress: at most one per peer, `limit` in all.

    All peers compute the same list, so each may claim its own entry at once: many peers that join need not queue.
    """
    view = PlanningView.of(swarm, policy or ReplanPolicy())
    return tuple(itertools.islice(moves_of(view, swarm.now_seconds), limit))


def moves_of(view: PlanningView | None, now_seconds: float) -> Iterator[Move]:
    """The entries of `upcoming` without a limit, computed lazily; none if there is no view."""
    while view is not None and (move := joining_move(view) or _repair(view) or _improve(view)) is not None:
        yield move
        claimed = replace(view.peers[view.index[move.peer]], claim=MoveClaim(now_seconds, move.after))
        view = view.with_peers({move.peer: claimed})


# --- 1. join ---------------------------------------------------------------------------------------------------


def joining_move(view: PlanningView) -> Move | None:
    """The first peer in greedy order that hosts nothing gets the window with most uncovered blocks, or its planned one
    if that is as good.  If all blocks are covered, it gets its planned window, or if it is spare the least served."""
    first = next((j for j in view.order if view.unplaced(j)), None)
    if first is None:
        return None
    start, stop = planned_ranges(view, sticky=True)[first].tolist()
    uncovered = view.uncovered()
    if uncovered.any():
        size = int(view.sizes[first])
        covers = window_sums(uncovered, size)
        if stop == 0 or covers[start] < covers.max():
            start = most_uncovered_window(uncovered, size)
    elif stop == 0:
        start = least_served_window(view.capacities(view.ranges), int(view.sizes[first]))
    return view.move(first, start, Reason.JOIN)


# --- 2. repair -------------------------------------------------------------------------------------------------


def _repair(view: PlanningView) -> Move | None:
    """The safe move that covers most uncovered blocks; then the least load, the slowest peer, the first window."""
    missing = view.uncovered()
    if not missing.any():
        return None
    best: tuple[int, int] | None = None
    move: Move | None = None
    for j in reversed(view.order):
        hosted = view.hosted(j)
        if hosted is None or not view.movable(j):
            continue
        size = int(view.sizes[j])
        starts = np.arange(view.model.num_blocks - size + 1)
        covers = np.where(safe_starts(view.holders - 1, hosted, size), window_sums(missing, size), 0)
        covered = int(covers.max())
        added = added_blocks(view.ranges[j], np.stack([starts, starts + size], axis=1))
        loads = np.where(covers == covered, added, size + 1)
        start = int(np.argmin(loads))
        key = (-covered, int(loads[start]))
        if covered > 0 and (best is None or key < best):
            best, move = key, view.move(j, start, Reason.REPAIR)
    return move


# --- 3. improve ------------------------------------------------------------------------------------------------


def _improve(view: PlanningView) -> Move | None:
    """The first feasible move of the plan that costs least over the horizon, loading included, if any plan pays."""
    anew = planned_ranges(view, sticky=False)
    scratch, packed = over(view.ranges, anew), over(view.ranges, packed_ranges(view, anew))
    if view.uncovered().any():
        return _cover_by_plan(view, scratch, packed)
    # What the horizon costs, in seconds, under every plan: one currency for all, so that a step of the best plan makes
    # it better by what it loaded, and no later choice leads back.
    reference, now = view.cost_seconds(scratch), view.cost_seconds(view.ranges)
    unit = view.policy.horizon_seconds / reference if math.isfinite(reference) else 1.0
    best_cost, best = unit * now, view.ranges
    for plan in (over(view.ranges, planned_ranges(view, sticky=True)), packed, scratch):
        load_seconds = view.load_seconds(plan)
        if (plan == view.ranges).all() or load_seconds >= best_cost:
            continue
        seconds = reference if plan is scratch else view.cost_seconds(plan)
        if seconds <= (1.0 - view.policy.min_gain) * now and unit * seconds + load_seconds < best_cost:
            best_cost, best = unit * seconds + load_seconds, plan
    return _packing_step(view, best) if best is packed else _first_step(view, best)


def _cover_by_plan(view: PlanningView, scratch: IntArray, packed: IntArray) -> Move | None:
    """Where blocks are uncovered that no single move can cover: a step towards a placement that covers all, whatever it
    loads.  The one from scratch does not depend on the present ranges, and who is in place there stays: every step
    leads on."""
    out_of_place = (view.ranges != scratch).any(axis=1)
    if math.isfinite(view.cost_seconds(scratch)) and (move := _first_step(view, scratch)) is not None:
        return move
    return _packing_step(view, packed, out_of_place) if math.isfinite(view.cost_seconds(packed)) else None


def _first_step(view: PlanningView, plan: IntArray) -> Move | None:
    """The first of the plan's moves, in greedy order, that can be made safely now."""
    return next(_steps(view, plan), None)


def _packing_step(view: PlanningView, packed: IntArray, allowed: NDArray[np.bool_] | None = None) -> Move | None:
    """The same of a packed plan: a move that leaves the order of the peers, and with it the plan, as it is; else the
    first after which the peers can still be packed as well and with as little loading."""
    order = by_position(view.ranges)
    fallback = None
    for move in _steps(view, packed):
        j = view.index[move.peer]
        if allowed is None or allowed[j]:
            after = view.ranges.copy()
            after[j] = packed[j]
            if (by_position(after) == order).all():
                return move
            fallback = fallback or (move, replace(view, ranges=after))
    if fallback is None:
        return None
    move, then = fallback
    repacked = over(then.ranges, packed_ranges(then, planned_ranges(then, sticky=False)))
    as_well = then.cost_seconds(repacked) <= view.cost_seconds(packed)
    return move if as_well and then.load_seconds(repacked) <= view.load_seconds(packed) else None


def _steps(view: PlanningView, plan: IntArray) -> Iterator[Move]:
    """The plan's moves that can be made safely now, in greedy order."""
    changed = (plan != view.ranges).any(axis=1)
    for j in view.order:
        start, stop = plan[j].tolist()
        if changed[j] and view.movable(j) and view.is_safe(j, start, stop):
            yield view.move(j, start, Reason.IMPROVE, stop)
