"""The search behind the router: the exact cheapest chain when a peer may be entered and left anywhere in its range.

Objective: sum of the hops' costs + the largest wait on the chain (the wait that is felt), the exact myopic optimum
that WS-RR (BPRR paper, arXiv 2512.21884) relaxes to the sum of the waits.  Costs are hub-and-spoke (every peer costs
the client a full round trip) or push (one-way delays client -> p1 -> p2 -> ... -> client).  The wait on a peer is a
step function of how many blocks are used there.  A peer occurs at most once on a chain.

How it is exact.  C(w) is the cost of the cheapest *walk* (peers may recur) whose segments wait at most w: a shortest
path over (boundary) for hub costs, over (peer, boundary) for push costs.  One pass over the blocks computes it for
several limits at once.

* The wait: C does not increase, so a chain that waits exactly w costs at least C(t) for every evaluated t >= w, and
  w + C(t) bounds it from below.  Limits whose bound reaches the best chain found are closed.  Between two rounds, a
  segment is removed for good if no open limit has a complete walk through it that costs less than the best chain found.
* Recurrence: when the best walk of all open limits uses a peer twice, that peer becomes *critical*: from then on the
  passes remember inside its range whether it was used (state-space augmentation, Boland et al., Oper. Res. Lett. 2006),
  so no walk uses it twice.  Peers whose ranges do not overlap share one bit.

Every round closes a limit or adds a critical peer, and nothing optimal is ever dropped (tests compare with brute
force).  Time and memory are exponential in the number of critical peers that share a block: a handful if room is
scarce, but an attacker can make up a swarm with many.  So a search has a budget (`budget.py`).  If the budget ends
first, the search looks for good chains (`beam.py`) and returns the best one, with how much it lies above the least
bound of an open limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..perf import FloatArray, IntArray, Segment
from .beam import promising_chain
from .budget import UNLIMITED, Meter, OverBudgetError
from .costs import HubCosts, PeerRooms, PushCosts, tabulated_waits
from .lattice import Lattice, Spans
from .passes import Ends, Memory, Pass, before_segments

_INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class FoundChain:
    """The best chain, its cost and the largest wait on it, seconds."""

    chain: tuple[Segment, ...]
    cost_seconds: float
    wait_seconds: float
    unproven_seconds: float = 0.0
    """Bound on how much better any other chain may be; 0: this one is proven to be the best."""

    @property
    def total_seconds(self) -> float:
        return self.cost_seconds + self.wait_seconds


@dataclass(frozen=True)
class _Opening:
    """The search without limits of the wait; requests share it as long as the peers' total room is the same."""

    room: IntArray
    cost: FloatArray
    """(A,) trips, infinite where there will never be room."""
    ahead: Pass

    @cached_property
    def behind(self) -> FloatArray:
        """(A,) trips: the least cost of a walk up to the entry of each segment."""
        return before_segments(self.ahead.lattice, self.cost, self.ahead.ends)


class ChainSearch:
    """Cheapest chains over fixed spans and costs, for any state of the peers' room."""

    def __init__(self, spans: Spans, costs: HubCosts | PushCosts, lattice: Lattice | None = None) -> None:
        """`lattice`: the lattice for hub costs, if it was compiled from the spans before."""
        self._spans, self._costs = spans, costs
        if isinstance(costs, HubCosts):
            nothing = np.zeros(len(spans.start))
            self._lattice, self._ends, self._trips = lattice or spans.lattice, Ends(nothing, nothing), 1.0
        else:
            self._lattice, self._trips = costs.lattice, costs.trips
            self._ends = Ends(costs.enter / costs.trips, costs.leave / costs.trips)
        self._opened: _Opening | None = None

    @cached_property
    def _segment_cost(self) -> FloatArray:
        """(A,) trips."""
        lattice, costs = self._lattice, self._costs
        cost: FloatArray = (costs.per_block / self._trips)[lattice.peer] * lattice.length
        return cost if costs.visit is None else cost + (costs.visit / self._trips)[lattice.peer]

    def cheapest(self, rooms: PeerRooms, meter: Meter = UNLIMITED, settle: bool = True) -> FoundChain | None:
        """The chain that minimises sum of costs + largest wait, or None if there is none.

        If the budget ends first, the search takes half of its time again to find a good chain, and raises
        OverBudgetError if it finds none; without `settle` it raises at once.
        """
        opening = self._open(rooms.blocks_within(_INFINITY), meter)
        if opening.ahead.total[0] == _INFINITY:
            return None
        chain = tuple(self._lattice.segment(index) for index in opening.ahead.walk(0))
        wait = unproven = 0.0
        if _recurring([j for j, _ in chain]) or any(rooms.wait_seconds(j, len(blocks)) for j, blocks in chain):
            waits = tabulated_waits(rooms, opening.room, self._spans.stop - self._spans.start)
            sweep = _Sweep(self._lattice, self._ends, self._trips, opening, waits, meter)
            found = sweep.run(settle)
            if found is None:
                return None
            (chain, wait), unproven = found, sweep.unproven_seconds
        return FoundChain(chain, self._costs.chain_seconds(chain), wait, unproven)

    def _open(self, room: IntArray, meter: Meter) -> _Opening:
        if self._opened is None or not np.array_equal(self._opened.room, room):
            lattice = self._lattice
            cost = np.where(lattice.length <= room[lattice.peer], self._segment_cost, np.inf)
            memory = Memory.of(lattice, ())
            meter.check_bytes(memory.bytes_per_limit)
            self._opened = _Opening(room, cost, Pass(memory, cost[None], self._ends, meter))
        return self._opened


def _recurring(peers: Sequence[int]) -> set[int]:
    return {j for j in peers if peers.count(j) > 1}


FIRST_LIMITS = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4)
"""Limits of the first round if waiting can save much, as parts of the unlimited cost above the least wait."""
WORK_PER_ROUND = 4_000_000
"""Additions that a later round may take, see `Lattice.work`: the smaller the graph has become, the more limits."""
MOST_LIMITS = 32
SETTLED_LIMITS = 6
"""Number of limits under which the search looks for a good chain when the budget has ended."""


class _Sweep:
    """The rounds of the module's docstring, for one request."""

    def __init__(
        self, lattice: Lattice, ends: Ends, trips: float, opening: _Opening, waits: FloatArray, meter: Meter
    ) -> None:
        self._lattice, self._ends, self._trips, self._opening = lattice, ends, trips, opening
        self._meter = meter
        self._cost = opening.cost
        """(A,) trips."""
        waits = np.maximum(waits, _least_wait(lattice, waits[:, 0]))
        self._wait = waits[lattice.peer, lattice.length - 1]
        """(A,) seconds; no chain waits less than the least."""
        self._open = np.unique(waits[waits < np.inf])
        """Waits that the best chain may have, ascending."""
        self._limits = np.array([_INFINITY])
        self._bounds = self._trips * opening.ahead.total
        """For each limit, the least cost of a chain that waits at most this limit and more than the previous one."""
        self._best: tuple[tuple[Segment, ...], float] | None = None
        self._ceiling = self._relaxed = _INFINITY
        """The best chain found, and the best walk found, seconds."""
        self._culprits: set[int] = set()
        """The peers that the best walk uses twice."""
        self._critical: set[int] = set()
        self._broken: tuple[list[int], float] | None = None
        """The best walk, if it is no chain, and the limit that it was found for."""
        self._offer(opening.ahead.walk(0), float(self._bounds[0]))

    def run(self, settle: bool) -> tuple[tuple[Segment, ...], float] | None:
        """The best chain and its wait, or None if there is none. Raises OverBudgetError, see `ChainSearch.cheapest`."""
        try:
            self._search()
        except OverBudgetError:
            bounds = self._close()
            if len(bounds):  # else it is proven already which chain is the best, or that there is none
                if not settle:
                    raise
                self._settle(bounds)
                if self._best is None:
                    raise
        return self._best

    def _settle(self, bounds: FloatArray) -> None:
        """Offer good chains under a few of the open limits, those with the best bounds first."""
        few = np.unique(np.linspace(0, len(bounds) - 1, SETTLED_LIMITS).astype(np.int64))
        limits = self._open[few[np.argsort(bounds[few], kind="stable")]].tolist()
        try:
            if self._best is None:
                self._meter.extend(_INFINITY)
                self._look_for_chain(float(self._open[-1]))
            self._meter.extend(1 / 2)
            for limit in limits:
                self._look_for_chain(limit)
        except OverBudgetError:
            return

    def _look_for_chain(self, limit: float) -> None:
        cost, memory = self._within(limit), Memory.of(self._lattice, ())
        onward = Pass(memory, cost[None], self._ends, self._meter).onward(0)
        found = promising_chain(self._lattice, cost, onward, self._ends, self._meter)
        if found is not None:
            self._offer(found.segments, self._trips * found.cost)

    @property
    def unproven_seconds(self) -> float:
        """How much better than the best chain found another one may be, by the bounds of the open limits."""
        return self._ceiling - min(self._close().tolist(), default=self._ceiling)

    def _search(self) -> None:
        low, unlimited = float(self._open[0]), float(self._bounds[0])
        columns = self._evaluate(low, self._open[:1])
        if self._ceiling - low < (1 + FIRST_LIMITS[2]) * unlimited:
            first = _Column(low, _INFINITY, unlimited, self._opening.ahead.onward(0))
            self._prune([first], self._opening.behind)
        else:
            limits = low + unlimited * np.array(FIRST_LIMITS)
            self._round(self._open[np.unique(np.searchsorted(self._open, limits, side="right") - 1)], columns)
        while len(limits := self._next_limits()):
            self._round(limits, [])

    def _close(self) -> FloatArray:
        """Close the limits whose bounds reach the best chain; the bounds of the others."""
        bounds: FloatArray = self._bounds[np.searchsorted(self._limits, self._open)] + self._open
        bounds, self._open = bounds[bounds < self._ceiling], self._open[bounds < self._ceiling]
        return bounds

    def _next_limits(self) -> FloatArray:
        """Some of the limits at which a walk better than the best may exist, and the last open limit."""
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
        """Evaluate these limits, and the last open one if it is larger, then prune; `columns`: those of lower
        limits."""
        columns = columns + self._evaluate(float(self._open[0]), limits)
        if self._broken:
            self._repair(*self._broken)
        self._close()
        if len(self._open) and self._open[-1] > limits[-1]:
            columns += self._evaluate(float(limits[-1]), self._open[-1:])
        columns = [column for column in columns if column.low + column.bound < self._ceiling]
        if columns:
            cost = self._within(columns[-1].limit)
            self._prune(columns, before_segments(self._lattice, cost, self._ends))

    def _within(self, limits: FloatArray | float) -> FloatArray:
        """(A,) or (T, A) trips: the segments' costs, infinite for those that wait longer."""
        return np.where(self._wait <= limits, self._cost, np.inf)

    def _evaluate(self, low: float, limits: FloatArray) -> list[_Column]:
        """The columns of these limits, as many in one pass as the memory allows."""
        memory = Memory.of(self._lattice, self._critical)
        self._meter.check_bytes(memory.bytes_per_limit)
        at_once = int(min(self._meter.budget.nbytes / memory.bytes_per_limit, len(limits)))
        columns: list[_Column] = []
        for begin in range(0, len(limits), at_once):
            columns += self._pass(memory, low, limits[begin : begin + at_once])
            low = columns[-1].limit
        return columns

    def _pass(self, memory: Memory, low: float, limits: FloatArray) -> list[_Column]:
        cost = self._within(limits[:, None])
        ahead = Pass(memory, cost, self._ends, self._meter)
        bounds = self._trips * ahead.total
        lows = np.concatenate(([low], limits[:-1]))
        for column in np.argsort(limits + bounds, kind="stable").tolist():
            if bounds[column] + lows[column] < self._ceiling:
                walk = ahead.walk(column)
                if self._offer(walk, float(bounds[column])):
                    self._broken = walk, float(limits[column])
        pairs = zip(lows.tolist(), limits.tolist(), bounds.tolist(), strict=True)
        columns = [_Column(*numbers, ahead.onward(i)) for i, numbers in enumerate(pairs)]
        limits, seconds = np.concatenate((self._limits, limits)), np.concatenate((self._bounds, bounds))
        order = np.argsort(limits, kind="stable")
        self._limits = limits[order]
        self._bounds = np.maximum.accumulate(seconds[order][::-1])[::-1]
        return columns

    def _offer(self, walk: list[int], cost_seconds: float) -> bool:
        """Record a walk; return whether it is the best walk so far but uses a peer twice."""
        wait = float(self._wait[walk].max())
        total = cost_seconds + wait
        best, culprits = total < self._relaxed, _recurring(self._lattice.peer[walk].tolist())
        if best:
            self._relaxed, self._culprits = total, culprits
        if total < self._ceiling and not culprits:
            self._ceiling = total
            self._best = tuple(self._lattice.segment(index) for index in walk), wait
        return best and bool(culprits)

    def _repair(self, walk: list[int], limit: float) -> None:
        """Offer a good chain in place of a walk: a recurring peer keeps only the segments that contain one block."""
        self._broken = None
        lattice, cost, seconds = self._lattice, self._within(limit), _INFINITY
        while culprits := _recurring(lattice.peer[walk].tolist()):
            for index in walk:
                if lattice.peer[index] in culprits:
                    block = lattice.entry[index]
                    away = (lattice.entry > block) | (lattice.exit <= block)
                    cost[away & (lattice.peer == lattice.peer[index])] = np.inf
            ahead = Pass(Memory.of(lattice, ()), cost[None], self._ends, self._meter)
            seconds = self._trips * float(ahead.total[0])
            if seconds >= self._ceiling:
                return
            walk = ahead.walk(0)
        self._offer(walk, seconds)

    def _prune(self, columns: list[_Column], behind: FloatArray) -> None:
        """Drop the segments through which no open limit has a walk below the best chain; `behind` at the last limit."""
        keep = np.zeros(len(behind), dtype=bool)
        for column in columns:
            through = behind + self._within(column.limit)
            through += column.onward[self._lattice.target]
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
    limit: float
    bound: float
    onward: FloatArray
    """(targets,): the least cost from each target to the end of the walk."""


def _least_wait(lattice: Lattice, first_block: FloatArray) -> float:
    """No chain waits less: the largest over blocks of the least wait among their hosts."""
    single = lattice.length == 1
    least = np.full(lattice.num_blocks, np.inf)
    np.minimum.at(least, lattice.entry[single], first_block[lattice.peer[single]])
    return float(least.max())
