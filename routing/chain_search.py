"""The search behind the router: the exact cheapest chain when a peer may be entered and left anywhere in its range.

Objective: sum of the hops' costs + the largest wait on the chain (the wait that is felt), the exact myopic optimum
that WS-RR (BPRR paper, arXiv 2512.21884) relaxes to the sum of the waits.  Costs are hub-and-spoke (every peer costs
the client a full round trip) or push (one-way delays client -> p1 -> p2 -> ... -> client).  The wait on a peer is a
step function of how many blocks are used there.  A peer occurs at most once on a chain.

How it is exact.  With the wait limited to w a peer has room for a known number of blocks, and the cheapest *walk*
(peers may recur) is a shortest path over (entry block) for hub costs, (peer, entry block) for push costs.  Best-first
branch and bound over two things closes the two gaps that leaves:

* the limit: a walk of cost c and wait u is a candidate c + u; better ones wait less than u and cost no less than c,
  and what waits more than half of that is bounded from below apart from the rest;
* recurrence: if the walk uses peer i on [b1, e1) and again on [b2, e2), the chain's only segment of i ends by b2, or
  starts at e1 or later, or holds all of [e1 - 1, b2].  Each of the three excludes the walk, together they exclude no
  chain.

A node holds the chains that wait more than `low`, at most `high`; its lower bound is the cost of the cheapest walk
under `high`, plus `low`.  It is dropped only when that reaches the best chain found.  Segments are dropped for good
when the cheapest way to the entry, the segment, and the cheapest way on from the exit cost, without any waits, as
much as the best chain found.  So nothing optimal is pruned (tests compare with brute force).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .perf import FloatArray, IntArray, Segment
from .swarm import BlockRange

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

    def first_block_waits(self) -> FloatArray:
        """(n,): `wait_seconds(peer, 1)` of every peer."""
        ...


# --- the relaxed problem: cheapest walks ----------------------------------------------------------------------


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
    def segments(self) -> _Segments:
        """Every (peer, entry, exit), ordered by (entry, exit); O(sum of squared range lengths)."""
        lengths = self.stop - self.start
        peers, entries, exits = [], [], []
        for size in np.unique(lengths[lengths > 0]):
            who = np.flatnonzero(lengths == size)
            first, last = np.triu_indices(size)
            peers.append(np.repeat(who, len(first)))
            entries.append((self.start[who][:, None] + first).ravel())
            exits.append((self.start[who][:, None] + last + 1).ravel())
        if not peers:
            nothing = np.zeros(0, dtype=np.int64)
            return _Segments(nothing, nothing, nothing)
        peer, entry, exit_ = (np.concatenate(parts) for parts in (peers, entries, exits))
        key = entry * (self.num_blocks + 1) + exit_
        small = key.astype(np.uint16) if (self.num_blocks + 1) ** 2 < 2**16 else key
        return _Segments(peer, entry, exit_).only(np.argsort(small, kind="stable"))


@dataclass(frozen=True)
class _Segments:
    """Segments (peer, entry, exit) in order of (entry, exit); parallel arrays."""

    peer: IntArray
    entry: IntArray
    exit: IntArray

    def only(self, which: NDArray[Any]) -> _Segments:
        """The segments at these places (indices or a mask), in that order."""
        return _Segments(self.peer[which], self.entry[which], self.exit[which])

    @cached_property
    def length(self) -> IntArray:
        return self.exit - self.entry

    @cached_property
    def heads(self) -> IntArray:
        """Where each group of equal (entry, exit) begins."""
        changes = (self.entry[1:] != self.entry[:-1]) | (self.exit[1:] != self.exit[:-1])
        return np.concatenate(([0], np.flatnonzero(changes) + 1))

    @cached_property
    def groups_by_entry(self) -> tuple[tuple[int, int, int], ...]:
        """(entry, first group, last group + 1), in order of entry."""
        entries = self.entry[self.heads]
        firsts = np.flatnonzero(np.concatenate(([True], entries[1:] != entries[:-1])))
        return tuple(zip(entries[firsts].tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(entries)], strict=True))


@dataclass(frozen=True)
class _Limits:
    """Which segments a walk may use: at most `room` blocks per peer, inside [start, stop); a pinned peer computes
    all of its pin [low, high) in one segment and nobody else computes any of it."""

    room: IntArray
    start: IntArray
    stop: IntArray
    pins: tuple[tuple[int, int, int], ...] = ()
    """(peer, low, high)."""


@dataclass(frozen=True, slots=True)
class _Walk:
    cost: float
    chain: tuple[Segment, ...]


class _HubWalks:
    """Shortest paths over block boundaries; O(segments + L^2) each."""

    def __init__(self, spans: Spans, segments: _Segments, cost: FloatArray) -> None:
        self._spans = spans
        self._segments = segments
        self._cost = cost
        self._detours: tuple[bytes, FloatArray] | None = None

    @classmethod
    def of(cls, spans: Spans, costs: HubCosts) -> _HubWalks:
        """Over every segment of the spans."""
        segments = spans.segments
        return cls(spans, segments, costs.visit[segments.peer] + costs.per_block[segments.peer] * segments.length)

    def cheapest(self, limits: _Limits) -> _Walk | None:
        """The cheapest walk within the limits, or None."""
        segments = self._segments
        if not len(segments.peer):
            return None
        cost = np.where(self._allowed(limits), self._cost, np.inf)
        distance, via = _boundary_distances(segments, cost, self._spans.num_blocks)
        if distance[-1] == _INFINITY:
            return None
        chain: list[Segment] = []
        stop = self._spans.num_blocks
        while stop > 0:
            group = int(via[stop])
            head = int(segments.heads[group])
            end = int(segments.heads[group + 1]) if group + 1 < len(segments.heads) else len(cost)
            chosen = head + int(np.argmin(cost[head:end]))
            start = int(segments.entry[chosen])
            chain.append((int(segments.peer[chosen]), BlockRange(start, stop)))
            stop = start
        return _Walk(float(distance[-1]), tuple(reversed(chain)))

    def below(self, ceiling: float, limits: _Limits) -> _HubWalks:
        """The same over the segments that some walk of cost < `ceiling` within `limits` uses."""
        useful = np.flatnonzero(self._cheapest_through(limits) < ceiling)
        return _HubWalks(self._spans, self._segments.only(useful), self._cost[useful])

    def _cheapest_through(self, limits: _Limits) -> FloatArray:
        """Per segment the cost of the cheapest walk within `limits` that uses it; kept for the next request."""
        key = limits.room.tobytes()
        if self._detours is None or self._detours[0] != key:
            segments, num_blocks = self._segments, self._spans.num_blocks
            cost = np.where(self._allowed(limits), self._cost, np.inf)
            ahead, _ = _boundary_distances(segments, cost, num_blocks)
            order = np.lexsort((num_blocks - segments.entry, num_blocks - segments.exit))
            mirrored = _Segments(segments.peer, num_blocks - segments.exit, num_blocks - segments.entry).only(order)
            behind, _ = _boundary_distances(mirrored, cost[order], num_blocks)
            self._detours = key, ahead[segments.entry] + cost + behind[num_blocks - segments.exit]
        return self._detours[1]

    def _allowed(self, limits: _Limits) -> NDArray[np.bool_]:
        segments = self._segments
        allowed = segments.length <= limits.room[segments.peer]
        if limits.start is not self._spans.start:
            allowed &= segments.entry >= limits.start[segments.peer]
        if limits.stop is not self._spans.stop:
            allowed &= segments.exit <= limits.stop[segments.peer]
        for peer, low, high in limits.pins:
            covers = (segments.entry <= low) & (segments.exit >= high)
            apart = (segments.exit <= low) | (segments.entry >= high)
            allowed &= np.where(segments.peer == peer, covers, apart)
        return allowed


def _boundary_distances(segments: _Segments, cost: FloatArray, num_blocks: int) -> tuple[FloatArray, IntArray]:
    """Least cost from boundary 0 to every boundary, and the group of segments that each was reached by."""
    distance = np.full(num_blocks + 1, np.inf)
    distance[0] = 0.0
    via = np.zeros(num_blocks + 1, dtype=np.int64)
    cheapest = np.minimum.reduceat(cost, segments.heads)
    exits = segments.exit[segments.heads]
    for entry, first, end in segments.groups_by_entry:
        here = distance[entry]
        if here == _INFINITY:
            continue
        reached = exits[first:end]
        values = here + cheapest[first:end]
        known = distance[reached]
        better = values < known
        distance[reached] = np.where(better, values, known)
        via[reached] = np.where(better, np.arange(first, end), via[reached])
    return distance, via


class _PushWalks:
    """Shortest paths over (peer, boundary); O(sum over boundaries of peers before x peers after, + segments)."""

    def __init__(self, spans: Spans, costs: PushCosts) -> None:
        self._spans = spans
        self._between = costs.between
        self._trips = costs.trips
        # In units of one trip, so that the (n, n) matrix need not be scaled for every request.
        self._enter, self._leave, self._per_block = (
            part / costs.trips for part in (costs.enter, costs.leave, costs.per_block)
        )

    def cheapest(self, limits: _Limits) -> _Walk | None:
        """The cheapest walk within the limits, or None."""
        num_blocks = self._spans.num_blocks
        if not len(limits.room):
            return None
        # left[b, j]: least cost of having computed blocks 0..b with j last; entry[b, j]: where j was entered for that.
        left = np.full((num_blocks + 1, len(limits.room)), np.inf)
        entry = np.zeros(left.shape, dtype=np.int64)
        for block in range(num_blocks):
            peers, least, most = _reach(limits, block)
            if not len(peers):
                continue
            near = slice(int(peers[0]), int(peers[-1]) + 1)  # peers are in order of their ranges: few others between
            inside = peers - near.start
            if block == 0:
                entering = self._enter[peers]
            else:
                before = np.flatnonzero(left[block] < np.inf)
                if not len(before):
                    continue
                leaving = slice(int(before[0]), int(before[-1]) + 1)
                arriving = left[block, leaving][:, None] + self._between[leaving, near]
                entering = arriving.min(axis=0)[inside]
            lengths = np.arange(1, int(most.max()) + 1)[:, None]
            values = entering + self._per_block[peers] * lengths
            values[(lengths < least) | (lengths > most)] = np.inf
            window = slice(block + 1, block + 1 + len(lengths))
            known = left[window, near][:, inside]
            better = values < known
            left[window, near][:, inside] = np.where(better, values, known)
            entry[window, near][:, inside] = np.where(better, block, entry[window, near][:, inside])
        final = left[num_blocks] + self._leave
        last = int(np.argmin(final))
        if final[last] == _INFINITY:
            return None
        chain: list[Segment] = []
        stop = num_blocks
        while stop > 0:
            start = int(entry[stop, last])
            chain.append((last, BlockRange(start, stop)))
            last, stop = int(np.argmin(left[start] + self._between[:, last])), start
        return _Walk(float(final.min()) * self._trips, tuple(reversed(chain)))

    def below(self, ceiling: float, limits: _Limits) -> _PushWalks:
        """The same: nothing is dropped here, the walk does not enumerate segments."""
        return self


def _reach(limits: _Limits, block: int) -> tuple[IntArray, IntArray, IntArray]:
    """The peers that may be entered at `block`, and their least and greatest number of blocks."""
    peers = np.flatnonzero((limits.start <= block) & (block < limits.stop) & (limits.room > 0))
    least = np.ones(len(peers), dtype=np.int64)
    most = np.minimum(limits.stop[peers] - block, limits.room[peers])
    for peer, low, high in limits.pins:
        pinned = peers == peer
        if block > low:
            most[pinned] = 0  # too late to cover the pin
        else:
            least[pinned] = np.maximum(least[pinned], high - block)
        if block < low:
            most[~pinned] = np.minimum(most[~pinned], low - block)
        elif block < high:
            most[~pinned] = 0
    usable = least <= most
    return peers[usable], least[usable], most[usable]


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


@dataclass(order=True)
class _Node:
    """The chains within `limits` that wait more than `low` (or exactly 0) and at most `high`."""

    bound: float
    sequence: int
    low: float = field(compare=False)
    high: float = field(compare=False)
    limits: _Limits = field(compare=False)
    walk: _Walk = field(compare=False)


class ChainSearch:
    """Cheapest chains over fixed spans and costs, for any state of the peers' memory."""

    def __init__(self, spans: Spans, costs: HubCosts | PushCosts) -> None:
        self._spans = spans
        self._costs = costs
        self._memo: tuple[bytes, _Walk | None] | None = None

    @cached_property
    def _all_walks(self) -> _HubWalks | _PushWalks:
        if isinstance(self._costs, HubCosts):
            return _HubWalks.of(self._spans, self._costs)
        return _PushWalks(self._spans, self._costs)

    def cheapest(self, room: Room) -> Choice | None:
        """The chain that minimises sum of costs + largest wait, or None if there is none."""
        everything = _Limits(room.blocks_within(_INFINITY), self._spans.start, self._spans.stop)
        unlimited = self._memoised(everything)
        if unlimited is None:
            return None
        if _recurrence(unlimited.chain) is None and _largest_wait(room, unlimited.chain) == 0.0:
            return Choice(unlimited.chain, unlimited.cost, 0.0)
        return _Descent(self._all_walks, room, least_wait(self._spans, room)).run(everything, unlimited)

    def _memoised(self, limits: _Limits) -> _Walk | None:
        """The unlimited walk; it is the same for every request while the peers' total room is."""
        key = limits.room.tobytes()
        if self._memo is None or self._memo[0] != key:
            self._memo = (key, self._all_walks.cheapest(limits))
        return self._memo[1]


def least_wait(spans: Spans, room: Room) -> float:
    """No chain waits less than this: the largest over blocks of the least wait among their hosts."""
    waits = room.first_block_waits()
    least = np.full(spans.num_blocks, np.inf)
    for j in np.argsort(-waits, kind="stable"):
        if waits[j] < _INFINITY:
            least[spans.start[j] : spans.stop[j]] = waits[j]
    return float(least.max())


def _largest_wait(room: Room, chain: Sequence[Segment]) -> float:
    return max(room.wait_seconds(j, len(blocks)) for j, blocks in chain)


class _Descent:
    """The branch and bound of the module's docstring, for one request."""

    def __init__(self, walks: _HubWalks | _PushWalks, room: Room, floor: float) -> None:
        self._walks = walks
        self._room = room
        self._floor = floor
        self._best: Choice | None = None
        self._queue: list[_Node] = []
        self._sequence = itertools.count()

    def run(self, everything: _Limits, unlimited: _Walk) -> Choice | None:
        if self._floor == _INFINITY:
            return None
        self._offer(unlimited)
        at_floor = replace(everything, room=self._room.blocks_within(self._floor))
        cheapest_at_floor = self._walks.cheapest(at_floor)
        if cheapest_at_floor is not None:
            self._offer(cheapest_at_floor)
        if self._best is not None:
            self._walks = self._walks.below(self._best.total_seconds - self._floor, everything)
        self._push(self._floor, self._floor, at_floor, cheapest_at_floor)
        self._push(self._floor, _INFINITY, everything, unlimited)
        while self._queue:
            node = heapq.heappop(self._queue)
            if node.bound >= self._ceiling:
                break
            self._expand(node)
        return self._best

    @property
    def _ceiling(self) -> float:
        return self._best.total_seconds if self._best is not None else _INFINITY

    def _offer(self, walk: _Walk) -> None:
        """A walk without recurrence is a chain."""
        if _recurrence(walk.chain) is None:
            wait = _largest_wait(self._room, walk.chain)
            if walk.cost + wait < self._ceiling:
                self._best = Choice(walk.chain, walk.cost, wait)

    def _push(self, low: float, high: float, limits: _Limits, walk: _Walk | None) -> None:
        if walk is not None and walk.cost + low < self._ceiling:
            self._offer(walk)
            heapq.heappush(self._queue, _Node(walk.cost + low, next(self._sequence), low, high, limits, walk))

    def _expand(self, node: _Node) -> None:
        recurring = _recurrence(node.walk.chain)
        if recurring is not None:
            for limits in _split(node.limits, *recurring):
                self._push(node.low, node.high, limits, self._walks.cheapest(limits))
            return
        # What costs at least as much and waits at least as long is no better; nor what waits beyond the ceiling.
        high = min(_largest_wait(self._room, node.walk.chain), self._ceiling - node.walk.cost)
        high = math.nextafter(high, -_INFINITY)
        if high <= node.low:
            return
        middle = (node.low + high) / 2
        upper = replace(node.limits, room=self._room.blocks_within(high))
        above = self._walks.cheapest(upper)
        self._push(middle, high, upper, above)
        if above is not None:
            lower = replace(node.limits, room=self._room.blocks_within(middle))
            self._push(node.low, middle, lower, self._walks.cheapest(lower))


def _recurrence(chain: Sequence[Segment]) -> tuple[int, int, int] | None:
    """The first peer used twice, as (peer, end of its first segment, start of its second), or None."""
    ends: dict[int, int] = {}
    for j, blocks in chain:
        if j in ends:
            return j, ends[j], blocks.start
        ends[j] = blocks.stop
    return None


def _split(limits: _Limits, peer: int, first_end: int, second_start: int) -> Iterable[_Limits]:
    """The three cases of the module's docstring: none allows the walk, together they allow every chain."""
    stop = limits.stop.copy()
    stop[peer] = min(stop[peer], second_start)
    yield replace(limits, stop=stop)
    start = limits.start.copy()
    start[peer] = max(start[peer], first_end)
    yield replace(limits, start=start)
    if second_start - first_end + 2 <= limits.room[peer]:
        yield replace(limits, pins=(*limits.pins, (peer, first_end - 1, second_start + 1)))
