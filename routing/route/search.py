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

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from ..perf import FloatArray, IntArray, Segment
from ..swarm import BlockRange

_INFINITY = float("inf")


# --- what a chain costs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubCosts:
    """Hub-and-spoke: a hop of k blocks at peer j costs `visit[j] + per_block[j] * k` seconds; arrays (n,)."""

    visit: FloatArray
    per_block: FloatArray

    def chain_seconds(self, chain: Sequence[Segment]) -> float:
        """Cost of a chain."""
        return math.fsum(float(self.visit[j] + self.per_block[j] * len(blocks)) for j, blocks in chain)


@dataclass(frozen=True)
class PushCosts:
    """Push: `enter[first] + trips * between[i, j]... + leave[last] + per_block[j] * k...` seconds; (n,) and (n, n).

    The diagonal of `between` is infinite: a peer does not follow itself.  `trips` > 0.
    """

    enter: FloatArray
    per_block: FloatArray
    leave: FloatArray
    between: FloatArray
    lattice: Lattice
    """Of the spans and `between`."""
    trips: float

    def chain_seconds(self, chain: Sequence[Segment]) -> float:
        """Cost of a chain."""
        peers = [j for j, _ in chain]
        terms = [float(self.per_block[j] * len(blocks)) for j, blocks in chain]
        terms += [self.trips * float(self.between[i, j]) for i, j in itertools.pairwise(peers)]
        return math.fsum([*terms, float(self.enter[peers[0]]), float(self.leave[peers[-1]])])


class Room(Protocol):
    """The peers' free memory over time, as one request sees it."""

    def blocks_within(self, wait_seconds: float) -> IntArray:
        """(n,): how many blocks of the request each peer has room for after waiting at most that long."""
        ...

    def wait_seconds(self, peer: int, blocks: int) -> float:
        """How long until the peer has room for that many blocks; infinite if never."""
        ...


@runtime_checkable
class TabulatedRoom(Room, Protocol):
    """A room that knows the waits of all peers at once: what makes the search fast in large swarms."""

    def waits(self, longest: int) -> FloatArray:
        """(n, longest): `wait_seconds(peer, blocks)` at [peer, blocks - 1]."""
        ...


def _waits(room: Room, most_blocks: IntArray, lengths: IntArray) -> FloatArray:
    """(n, longest): what a tabulated room knows, asked for one by one where a range of that length needs it."""
    longest = int(lengths.max())
    if isinstance(room, TabulatedRoom):
        return room.waits(longest)
    table = np.full((len(lengths), longest), np.inf)
    free, most = np.minimum(room.blocks_within(0.0), lengths), np.minimum(most_blocks, lengths)
    table[np.arange(1, longest + 1) <= free[:, None]] = 0.0
    for j in np.flatnonzero(free < most).tolist():
        blocks = np.arange(free[j] + 1, most[j] + 1).tolist()
        table[j, free[j] : most[j]] = [room.wait_seconds(j, k) for k in blocks]
    return table


# --- segments, and passes over them ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Spans:
    """What every peer hosts, [start, stop) per peer, empty where start == stop; compiled once per placement."""

    num_blocks: int
    start: IntArray
    stop: IntArray

    @classmethod
    def of(cls, num_blocks: int, ranges: Sequence[BlockRange | None]) -> Spans:
        """From one range (or None) per peer."""
        return cls(
            num_blocks,
            np.array([r.start if r else 0 for r in ranges], dtype=np.int64),
            np.array([r.stop if r else 0 for r in ranges], dtype=np.int64),
        )

    @cached_property
    def lattice(self) -> Lattice:
        """For hub costs; compiled once."""
        return Lattice.of(self, None)


@dataclass(frozen=True)
class _Step:
    """One boundary: what begins and what ends there; slices into the lattice's segments, sources and targets."""

    boundary: int
    segments: slice
    heads: IntArray
    """Where each source's segments begin, in `segments`."""
    sources: slice
    targets: slice
    ending: slice
    """The segments that end here, in `by_target`."""
    tails: IntArray
    """Where each target's segments begin, in `ending`."""
    link: FloatArray | None
    """(sources, targets): trips from the targets' to the sources' peers; None for hub costs."""


@dataclass(frozen=True)
class Lattice:
    """Segments arranged for passes over the blocks.

    A walk enters a segment at its source, (entry, peer), and leaves it at its target, (exit, peer); with hub costs
    sources and targets are mere boundaries, as it does not matter there which peer comes before.
    """

    num_blocks: int
    peer: IntArray
    """(A,); the segments are in order of their source."""
    entry: IntArray
    exit: IntArray
    source: IntArray
    """(A,): 0, 1, ..., N - 1 in order of (entry, peer)."""
    target: IntArray
    """(A,): 0, 1, ..., X - 1 in order of (exit, peer)."""
    links: tuple[FloatArray | None, ...]
    """Per boundary, see `_Step`."""

    @classmethod
    def of(cls, spans: Spans, between: FloatArray | None) -> Lattice:
        """Every segment of the spans; O(sum of squared range lengths + pairs of peers that can follow each other)."""
        lengths = spans.stop - spans.start
        parts = [np.zeros((3, 0), dtype=np.int64)]
        for size in np.unique(lengths[lengths > 0]):
            who = np.flatnonzero(lengths == size)
            first, last = np.triu_indices(size)
            entries, exits = spans.start[who][:, None] + first, spans.start[who][:, None] + last + 1
            parts.append(np.stack([np.repeat(who, len(first)), entries.ravel(), exits.ravel()]))
        segments = np.concatenate(parts, axis=1)
        peer, entry, exit_ = segments[:, np.lexsort((segments[0], segments[1]))]
        n = len(lengths)
        place = peer if between is not None else np.zeros_like(peer)
        sources, source = np.unique(entry * n + place, return_inverse=True)
        targets, target = np.unique(exit_ * n + place, return_inverse=True)
        links: list[FloatArray | None] = [None] * spans.num_blocks
        if between is not None:
            first_source, first_target = (
                np.searchsorted(keys, np.arange(spans.num_blocks + 1) * n) for keys in (sources, targets)
            )
            for b in range(spans.num_blocks):
                before = targets[first_target[b] : first_target[b + 1]] % n
                after = sources[first_source[b] : first_source[b + 1]] % n
                links[b] = np.ascontiguousarray(between[before[:, None], after].T)
        return cls(spans.num_blocks, peer, entry, exit_, source, target, tuple(links))

    def only(self, which: IntArray) -> Lattice:
        """The segments at these ascending places."""
        source, target = self.source[which], self.target[which]
        kept_sources, kept_targets = np.zeros(self.num_sources, dtype=bool), np.zeros(self.num_targets, dtype=bool)
        kept_sources[source] = kept_targets[target] = True
        links = list(self.links)
        for step in self.steps:
            if step.link is not None:
                links[step.boundary] = step.link[kept_sources[step.sources]][:, kept_targets[step.targets]]
        return Lattice(
            self.num_blocks,
            self.peer[which],
            self.entry[which],
            self.exit[which],
            (np.cumsum(kept_sources) - 1)[source],
            (np.cumsum(kept_targets) - 1)[target],
            tuple(links),
        )

    def segment(self, index: int) -> Segment:
        """A segment as other modules see it."""
        return int(self.peer[index]), BlockRange(int(self.entry[index]), int(self.exit[index]))

    @cached_property
    def length(self) -> IntArray:
        return self.exit - self.entry

    @cached_property
    def num_sources(self) -> int:
        return int(self.source.max(initial=-1)) + 1

    @cached_property
    def num_targets(self) -> int:
        return int(self.target.max(initial=-1)) + 1

    @cached_property
    def by_target(self) -> IntArray:
        """(A,): the segments in order of their target."""
        return np.argsort(self.target, kind="stable")

    @cached_property
    def heads(self) -> IntArray:
        """(N + 1,): where each source's segments begin, and A."""
        return np.searchsorted(self.source, np.arange(self.num_sources + 1))

    @cached_property
    def tails(self) -> IntArray:
        """(X + 1,): where each target's segments begin in `by_target`, and A."""
        return np.searchsorted(self.target[self.by_target], np.arange(self.num_targets + 1))

    @cached_property
    def steps(self) -> tuple[_Step, ...]:
        """The boundaries in order."""
        boundaries = np.arange(self.num_blocks + 2)
        begin = np.searchsorted(self.entry, boundaries)
        end = np.searchsorted(self.exit[self.by_target], boundaries)
        heads, tails = np.searchsorted(self.heads, begin), np.searchsorted(self.tails, end)
        return tuple(
            _Step(
                b,
                slice(begin[b], begin[b + 1]),
                self.heads[heads[b] : heads[b + 1]] - begin[b],
                slice(heads[b], heads[b + 1]),
                slice(tails[b], tails[b + 1]),
                slice(end[b], end[b + 1]),
                self.tails[tails[b] : tails[b + 1]] - end[b],
                self.links[b] if b < self.num_blocks else None,
            )
            for b in range(self.num_blocks + 1)
        )

    @cached_property
    def inner_steps(self) -> tuple[_Step, ...]:
        """The boundaries within the model where a walk can change peers, in order."""
        return tuple(step for step in self.steps[1:-1] if len(step.heads) and len(step.tails))

    @cached_property
    def work(self) -> int:
        """About how many additions a pass takes per limit."""
        return 8 * len(self.peer) + sum(link.size for link in self.links if link is not None)


@dataclass(frozen=True)
class _Memory:
    """Critical peers: which of them a walk has used is remembered as a mask of `2 ** bits` values."""

    following: IntArray
    """(masks, A): masks after the segment x (targets + 1) + its target; the place after the targets where forbidden."""

    @classmethod
    def of(cls, lattice: Lattice, critical: Sequence[int]) -> _Memory:
        """O(critical * A + 2 ** (most critical peers with a common block) * A)."""
        present = [j for j in critical if (lattice.peer == j).any()]
        if not present:
            return cls(lattice.target[None])
        start = {j: int(lattice.entry[lattice.peer == j].min()) for j in present}
        stop = {j: int(lattice.exit[lattice.peer == j].max()) for j in present}
        taken: list[int] = []  # per bit, where it is free again
        kept = np.zeros(len(lattice.peer), dtype=np.int64)
        own = np.zeros(len(lattice.peer), dtype=np.int64)
        used = np.zeros(len(lattice.peer), dtype=np.int64)
        for j in sorted(present, key=lambda j: (start[j], j)):
            bit = next((b for b, free_at in enumerate(taken) if free_at <= start[j]), len(taken))
            taken[bit : bit + 1] = [stop[j]]
            remembered = lattice.exit < stop[j]
            kept |= ((lattice.entry >= start[j]) & remembered).astype(np.int64) << bit
            mine = lattice.peer == j
            own |= mine.astype(np.int64) << bit
            used |= (mine & remembered).astype(np.int64) << bit
        masks = np.arange(1 << len(taken))[:, None]
        following = ((masks & kept) | used) * (lattice.num_targets + 1) + lattice.target
        return cls(np.where(masks & own, lattice.num_targets, following))


@dataclass(frozen=True)
class _Ends:
    """(n,) trips from the client into each peer and from it back to the client; zero for hub costs."""

    enter: FloatArray
    leave: FloatArray


class _Pass:
    """The cheapest way on from everywhere, for T limits of the wait: `cost` is (T, A), infinite where not allowed.

    O(T * masks * (A + targets x sources at every boundary)).
    """

    def __init__(self, lattice: Lattice, cost: FloatArray, ends: _Ends, critical: Sequence[int] = ()) -> None:
        self.lattice, self.ends = lattice, ends
        self._cost = cost
        self._following = _Memory.of(lattice, critical).following
        limits, masks = len(cost), len(self._following)
        self._ahead = np.full((limits, masks, lattice.num_sources), np.inf)
        self._onward = np.full((limits, masks, lattice.num_targets + 1), np.inf)
        begin, *_, final = lattice.steps
        self._onward[:, :, final.targets] = ends.leave[lattice.peer[lattice.by_target[final.ending][final.tails]]]
        for step in reversed(lattice.inner_steps):
            ahead = self._ahead[:, :, step.sources] = self._before(step)
            if step.link is not None:
                ahead = (ahead[..., None] + step.link).min(axis=2)
            self._onward[:, :, step.targets] = ahead
        self._begin = np.full((limits, 1), np.inf)
        """(T, sources of the first block)"""
        if len(begin.heads):
            self._begin = self._before(begin)[:, 0] + ends.enter[lattice.peer[lattice.heads[begin.sources]]]
        self.total = self._begin.min(axis=1)
        """(T,): C."""

    def _before(self, step: _Step) -> FloatArray:
        """(T, masks, sources): the least cost from each source of a boundary."""
        flat = self._onward.reshape(len(self._cost), -1)
        values = np.take(flat, self._following[:, step.segments], axis=1)
        values += self._cost[:, None, step.segments]
        ahead: FloatArray = np.minimum.reduceat(values, step.heads, axis=2)
        return ahead

    def onward(self, limit: int) -> FloatArray:
        """(A,): the least cost from each segment's end to the end of the walk."""
        onward: FloatArray = self._onward[limit, 0][self.lattice.target]
        return onward

    def walk(self, limit: int) -> list[int]:
        """The segments, by index, of the cheapest walk under that limit, of which there must be one."""
        lattice, onward = self.lattice, self._onward[limit].ravel()
        walk: list[int] = []
        source, mask = int(np.argmin(self._begin[limit])), 0
        while True:
            first, end = lattice.heads[source], lattice.heads[source + 1]
            following = self._following[mask, first:end]
            chosen = int(np.argmin(self._cost[limit, first:end] + onward[following]))
            mask, target = divmod(int(following[chosen]), lattice.num_targets + 1)
            walk.append(int(first) + chosen)
            step = lattice.steps[lattice.exit[walk[-1]]]
            if step.boundary == lattice.num_blocks:
                return walk
            ahead = self._ahead[limit, mask, step.sources]
            if step.link is not None:
                ahead = ahead + step.link[:, target - step.targets.start]
            source = int(step.sources.start + np.argmin(ahead))


def _before_segments(lattice: Lattice, cost: FloatArray, ends: _Ends) -> FloatArray:
    """(A,): the least cost up to entering each segment, for segments of these costs (A,)."""
    reached = np.full(lattice.num_sources, np.inf)
    first = lattice.steps[0].sources
    reached[first] = ends.enter[lattice.peer[lattice.heads[first]]]
    sources, cost = lattice.source[lattice.by_target], cost[lattice.by_target]
    for step in lattice.inner_steps:
        values = reached[sources[step.ending]] + cost[step.ending]
        arrived = np.minimum.reduceat(values, step.tails)
        reached[step.sources] = arrived if step.link is None else (step.link + arrived).min(axis=1)
    return reached[lattice.source]


# --- the exact problem ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
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
    ahead: _Pass

    @cached_property
    def behind(self) -> FloatArray:
        """(A,) trips: the least cost up to entering each segment."""
        return _before_segments(self.ahead.lattice, self.cost, self.ahead.ends)


class ChainSearch:
    """Cheapest chains over fixed spans and costs, for any state of the peers' memory."""

    def __init__(self, spans: Spans, costs: HubCosts | PushCosts) -> None:
        self._spans, self._costs = spans, costs
        if isinstance(costs, HubCosts):
            nothing = np.zeros(len(spans.start))
            self._lattice, self._ends, self._trips = spans.lattice, _Ends(nothing, nothing), 1.0
        else:
            self._lattice, self._trips = costs.lattice, costs.trips
            self._ends = _Ends(costs.enter / costs.trips, costs.leave / costs.trips)
        self._opened: _Opening | None = None

    @cached_property
    def _segment_cost(self) -> FloatArray:
        """(A,) trips."""
        lattice, costs = self._lattice, self._costs
        cost: FloatArray = (costs.per_block / self._trips)[lattice.peer] * lattice.length
        return cost + costs.visit[lattice.peer] if isinstance(costs, HubCosts) else cost

    def cheapest(self, room: Room) -> Choice | None:
        """The chain that minimises sum of costs + largest wait, or None if there is none."""
        opening = self._open(room.blocks_within(_INFINITY))
        if opening.ahead.total[0] == _INFINITY:
            return None
        chain = tuple(self._lattice.segment(index) for index in opening.ahead.walk(0))
        wait = 0.0
        if _recurring([j for j, _ in chain]) or any(room.wait_seconds(j, len(blocks)) for j, blocks in chain):
            waits = _waits(room, opening.room, self._spans.stop - self._spans.start)
            found = _Sweep(self._lattice, self._ends, self._trips, opening, waits).run()
            if found is None:
                return None
            chain, wait = found
        return Choice(chain, self._costs.chain_seconds(chain), wait)

    def _open(self, room: IntArray) -> _Opening:
        if self._opened is None or not np.array_equal(self._opened.room, room):
            lattice = self._lattice
            cost = np.where(lattice.length <= room[lattice.peer], self._segment_cost, np.inf)
            self._opened = _Opening(room, cost, _Pass(lattice, cost[None], self._ends))
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

    def __init__(self, lattice: Lattice, ends: _Ends, trips: float, opening: _Opening, waits: FloatArray) -> None:
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
        """What a chain costs at least that waits at most the limit at the same place and more than the one before."""
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
            self._prune(columns, _before_segments(self._lattice, columns[-1].cost, self._ends))

    def _evaluate(self, low: float, limits: FloatArray) -> list[_Column]:
        cost = np.where(self._wait <= limits[:, None], self._cost, np.inf)
        ahead = _Pass(self._lattice, cost, self._ends, sorted(self._critical))
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
            ahead = _Pass(lattice, cost[None], self._ends)
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
    ahead: _Pass
    index: int


def _least_wait(lattice: Lattice, first_block: FloatArray) -> float:
    """No chain waits less: the largest over blocks of the least wait among their hosts."""
    single = lattice.length == 1
    least = np.full(lattice.num_blocks, np.inf)
    np.minimum.at(least, lattice.entry[single], first_block[lattice.peer[single]])
    return float(least.max())
