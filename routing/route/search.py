"""The search behind the router: the exact cheapest chain when a peer may be entered and left anywhere in its range.

Objective: sum of the hops' costs + the largest wait on the chain (the wait that is felt), the exact myopic optimum
that WS-RR (BPRR paper, arXiv 2512.21884) relaxes to the sum of the waits.  Costs are hub-and-spoke (every peer costs
the client a full round trip) or push (one-way delays client -> p1 -> p2 -> ... -> client).  The wait on a peer is a
step function of how many blocks are used there.  A peer occurs at most once on a chain.

How it is exact.  C(w) is the cost of the cheapest *walk* (peers may recur) whose segments wait at most w: a shortest
path over (boundary) for hub costs, over (peer, boundary) for push costs.  One pass over the blocks computes it for
several limits at once.

* The wait: C does not increase, so a chain that waits exactly w costs at least C(t) for every evaluated t >= w, and
  w + C(t) bounds it from below.  Limits whose bound reaches the best chain found are closed.  Between two rounds the
  segments go for good through which no open limit has a walk, there and on, below the best chain found.
* Recurrence: when the best walk of all open limits uses a peer twice, that peer becomes *critical*: from then on the
  passes remember inside its range whether it was used (state-space augmentation, Boland et al., Oper. Res. Lett. 2006),
  so no walk uses it twice.  Peers whose ranges do not meet share one bit.

Every round closes a limit or adds a critical peer, and nothing optimal is ever dropped (tests compare with brute
force).  Time and memory grow with 2 to the number of critical peers that share a block: a handful where room is scarce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..perf import FloatArray, IntArray, Segment
from .costs import HubCosts, PeerRooms, PushCosts, tabulated_waits
from .lattice import Lattice, Spans
from .passes import Ends, Pass, before_segments

_INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class FoundChain:
    """The best chain, its cost and the largest wait on it, seconds."""

    chain: tuple[Segment, ...]
    cost_seconds: float
    wait_seconds: float

    @property
    def total_seconds(self) -> float:
        return self.cost_seconds + self.wait_seconds


@dataclass(frozen=True)
class _Opening:
    """The search without limits of the wait; the same for every request while the peers' total room is."""

    room: IntArray
    cost: FloatArray
    """(A,) trips, infinite where there will never be room."""
    ahead: Pass

    @cached_property
    def behind(self) -> FloatArray:
        """(A,) trips: the least cost up to entering each segment."""
        return before_segments(self.ahead.lattice, self.cost, self.ahead.ends)


class ChainSearch:
    """Cheapest chains over fixed spans and costs, for any state of the peers' memory."""

    def __init__(self, spans: Spans, costs: HubCosts | PushCosts) -> None:
        self._spans, self._costs = spans, costs
        if isinstance(costs, HubCosts):
            nothing = np.zeros(len(spans.start))
            self._lattice, self._ends, self._trips = spans.lattice, Ends(nothing, nothing), 1.0
        else:
            self._lattice, self._trips = costs.lattice, costs.trips
            self._ends = Ends(costs.enter / costs.trips, costs.leave / costs.trips)
        self._opened: _Opening | None = None

    @cached_property
    def _segment_cost(self) -> FloatArray:
        """(A,) trips."""
        lattice, costs = self._lattice, self._costs
        cost: FloatArray = (costs.per_block / self._trips)[lattice.peer] * lattice.length
        return cost + costs.visit[lattice.peer] if isinstance(costs, HubCosts) else cost

    def cheapest(self, rooms: PeerRooms) -> FoundChain | None:
        """The chain that minimises sum of costs + largest wait, or None if there is none."""
        opening = self._open(rooms.blocks_within(_INFINITY))
        if opening.ahead.total[0] == _INFINITY:
            return None
        chain = tuple(self._lattice.segment(index) for index in opening.ahead.walk(0))
        wait = 0.0
        if _recurring([j for j, _ in chain]) or any(rooms.wait_seconds(j, len(blocks)) for j, blocks in chain):
            waits = tabulated_waits(rooms, opening.room, self._spans.stop - self._spans.start)
            found = _Sweep(self._lattice, self._ends, self._trips, opening, waits).run()
            if found is None:
                return None
            chain, wait = found
        return FoundChain(chain, self._costs.chain_seconds(chain), wait)

    def _open(self, room: IntArray) -> _Opening:
        if self._opened is None or not np.array_equal(self._opened.room, room):
            lattice = self._lattice
            cost = np.where(lattice.length <= room[lattice.peer], self._segment_cost, np.inf)
            self._opened = _Opening(room, cost, Pass(lattice, cost[None], self._ends))
        return self._opened


def _recurring(peers: Sequence[int]) -> set[int]:
    return {j for j in peers if peers.count(j) > 1}


FIRST_LIMITS = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4)
"""Limits of the first round where waiting is worth much: that part of the unlimited cost above the least wait."""
WORK_PER_ROUND = 4_000_000
"""Additions that a later round may take, see `Lattice.work`: the smaller the graph has become, the more limits."""
MOST_LIMITS = 32


class _Sweep:
    """The rounds of the module's docstring, for one request."""

    def __init__(self, lattice: Lattice, ends: Ends, trips: float, opening: _Opening, waits: FloatArray) -> None:
        self._lattice, self._ends, self._trips, self._opening = lattice, ends, trips, opening
        self._cost = opening.cost
        """(A,) trips."""
        waits = np.maximum(waits, _least_wait(lattice, waits[:, 0]))
        self._wait = waits[lattice.peer, lattice.length - 1]
        """(A,) seconds; no chain waits less than the least."""
        self._open = np.unique(waits[waits < np.inf])
        """Waits that the best chain may have, ascending."""
        self._limits = np.array([_INFINITY])
        self._bounds = self._trips * opening.ahead.total
        """The least cost of a chain that waits at most the limit at the same place, and more than the one before."""
        self._best: tuple[tuple[Segment, ...], float] | None = None
        self._ceiling = self._relaxed = _INFINITY
        """The best chain found, and the best walk found, seconds."""
        self._culprits: set[int] = set()
        """The peers that the best walk uses twice."""
        self._critical: set[int] = set()
        self._broken: tuple[list[int], FloatArray] | None = None
        """The best walk, if it is no chain, and the segments' costs that it was found for."""
        self._offer(opening.ahead.walk(0), float(self._bounds[0]))

    def run(self) -> tuple[tuple[Segment, ...], float] | None:
        """The best chain and its wait."""
        low, unlimited = float(self._open[0]), float(self._bounds[0])
        columns = self._evaluate(low, self._open[:1])
        if self._ceiling - low < (1 + FIRST_LIMITS[2]) * unlimited:
            self._prune([_Column(low, unlimited, self._opening.cost, self._opening.ahead, 0)], self._opening.behind)
        else:
            limits = low + unlimited * np.array(FIRST_LIMITS)
            self._round(self._open[np.unique(np.searchsorted(self._open, limits, side="right") - 1)], columns)
        while len(limits := self._next_limits()):
            self._round(limits, [])
        return self._best

    def _close(self) -> FloatArray:
        """Close the limits whose bounds reach the best chain; the bounds of the others."""
        bounds: FloatArray = self._bounds[np.searchsorted(self._limits, self._open)] + self._open
        bounds, self._open = bounds[bounds < self._ceiling], self._open[bounds < self._ceiling]
        return bounds

    def _next_limits(self) -> FloatArray:
        """Some of those at which a better walk than the best may be, and the last that is open."""
        bounds = self._close()
        if not len(bounds):
            return bounds
        eager = self._open[bounds < self._relaxed]
        if not len(eager):
            self._critical |= self._culprits
            self._relaxed = self._ceiling
            eager = self._open
        count = min(max(WORK_PER_ROUND // self._lattice.work, 2), MOST_LIMITS)
        chosen = eager[np.linspace(0, len(eager) - 1, count + 1).astype(np.int64)[1:]]
        return np.unique(np.append(chosen, self._open[-1]))

    def _round(self, limits: FloatArray, columns: list[_Column]) -> None:
        """Evaluate these limits, and the last open one if it is beyond, then prune; `columns` are the ones below."""
        columns = columns + self._evaluate(float(self._open[0]), limits)
        if self._broken:
            self._repair(*self._broken)
        self._close()
        if len(self._open) and self._open[-1] > limits[-1]:
            columns += self._evaluate(float(limits[-1]), self._open[-1:])
        columns = [column for column in columns if column.low + column.bound < self._ceiling]
        if columns:
            self._prune(columns, before_segments(self._lattice, columns[-1].cost, self._ends))

    def _evaluate(self, low: float, limits: FloatArray) -> list[_Column]:
        cost = np.where(self._wait <= limits[:, None], self._cost, np.inf)
        ahead = Pass(self._lattice, cost, self._ends, sorted(self._critical))
        bounds = self._trips * ahead.total
        lows = np.concatenate(([low], limits[:-1]))
        for column in np.argsort(limits + bounds, kind="stable").tolist():
            if bounds[column] + lows[column] < self._ceiling:
                walk = ahead.walk(column)
                if self._offer(walk, float(bounds[column])):
                    self._broken = walk, cost[column]
        limits, seconds = np.concatenate((self._limits, limits)), np.concatenate((self._bounds, bounds))
        order = np.argsort(limits, kind="stable")
        self._limits = limits[order]
        self._bounds = np.maximum.accumulate(seconds[order][::-1])[::-1]
        return [_Column(float(lows[i]), float(bounds[i]), cost[i], ahead, i) for i in range(len(lows))]

    def _offer(self, walk: list[int], cost_seconds: float) -> bool:
        """Take note of a walk; whether it is the best so far, but no chain."""
        wait = float(self._wait[walk].max())
        total = cost_seconds + wait
        best, culprits = total < self._relaxed, _recurring(self._lattice.peer[walk].tolist())
        if best:
            self._relaxed, self._culprits = total, culprits
        if total < self._ceiling and not culprits:
            self._ceiling = total
            self._best = tuple(self._lattice.segment(index) for index in walk), wait
        return best and bool(culprits)

    def _repair(self, walk: list[int], cost: FloatArray) -> None:
        """Offer a good chain in place of a walk: a peer that recurs keeps only the segments that hold one block."""
        self._broken = None
        lattice, cost, seconds = self._lattice, cost.copy(), _INFINITY
        while culprits := _recurring(lattice.peer[walk].tolist()):
            for index in walk:
                if lattice.peer[index] in culprits:
                    block = lattice.entry[index]
                    away = (lattice.entry > block) | (lattice.exit <= block)
                    cost[away & (lattice.peer == lattice.peer[index])] = np.inf
            ahead = Pass(lattice, cost[None], self._ends)
            seconds = self._trips * float(ahead.total[0])
            if seconds >= self._ceiling:
                return
            walk = ahead.walk(0)
        self._offer(walk, seconds)

    def _prune(self, columns: list[_Column], behind: FloatArray) -> None:
        """Drop the segments through which no open limit has a walk below the best chain; `behind` at the last limit."""
        keep = np.zeros(len(behind), dtype=bool)
        for column in columns:
            through = behind + column.cost
            through += column.ahead.onward(column.index)
            through *= self._trips
            through += np.maximum(self._wait, column.low)
            keep |= through < self._ceiling
        kept = np.flatnonzero(keep)
        self._lattice, self._cost, self._wait = self._lattice.only(kept), self._cost[kept], self._wait[kept]
        self._open = np.intersect1d(self._open, self._wait)
        self._broken = None  # its segments are counted in the lattice before


@dataclass(frozen=True, slots=True)
class _Column:
    """One evaluated limit: the chains that wait more than `low`, at most the limit, cost at least `bound` seconds."""

    low: float
    bound: float
    cost: FloatArray
    """(A,) trips, infinite for what waits longer than the limit."""
    ahead: Pass
    index: int


def _least_wait(lattice: Lattice, first_block: FloatArray) -> float:
    """No chain waits less: the largest over blocks of the least wait among their hosts."""
    single = lattice.length == 1
    least = np.full(lattice.num_blocks, np.inf)
    np.minimum.at(least, lattice.entry[single], first_block[lattice.peer[single]])
    return float(least.max())
