"""The search behind the router: the exact cheapest chain when a peer may be entered and left anywhere in its range.

Objective: sum of the hops' costs + the largest wait on the chain (the wait that is felt), the exact myopic optimum
that WS-RR (BPRR paper, arXiv 2512.21884) relaxes to the sum of the waits.  Costs are hub-and-spoke (every peer costs
the client a full round trip) or push (one-way delays client -> p1 -> p2 -> ... -> client).  The wait on a peer is a
step function of how many blocks are used there.  A peer occurs at most once on a chain.

How it is exact.  With the wait limited to w a peer has room for a known number of blocks, and the cheapest *walk*
(peers may recur) is a shortest path over (entry block) for hub costs, (peer, entry block) for push costs.  Best-first
branch and bound over two things closes the two gaps that leaves:

* the limit: a walk of cost c and wait u is a candidate c + u; better ones wait less than u and cost no less than c;
* recurrence: if the walk uses peer i on [b1, e1) and again on [b2, e2), the chain's only segment of i ends by b2, or
  starts at e1 or later, or holds all of [e1 - 1, b2].  Each of the three excludes the walk, together they exclude no
  chain.

A node is dropped only if its lower bound (cost of its walk + the least wait at which every block has a host with
room) reaches the best chain found, so nothing optimal is pruned.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

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
    """Push: `enter[first] + between[i, j]... + leave[last] + per_block[j] * k...` seconds; (n,) and (n, n)."""

    enter: FloatArray
    per_block: FloatArray
    leave: FloatArray
    between: FloatArray

    def chain_seconds(self, chain: Sequence[Segment]) -> float:
        """Cost of a chain."""
        peers = [j for j, _ in chain]
        terms = [float(self.per_block[j] * len(blocks)) for j, blocks in chain]
        terms += [float(self.between[i, j]) for i, j in itertools.pairwise(peers)]
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
        """Every (peer, entry, exit), grouped by (entry, exit); O(sum of squared range lengths)."""
        lengths = self.stop - self.start
        peers, entries, exits = [], [], []
        for size in np.unique(lengths[lengths > 0]):
            who = np.flatnonzero(lengths == size)
            first, last = np.triu_indices(size)
            peers.append(np.repeat(who, len(first)))
            entries.append((self.start[who][:, None] + first).ravel())
            exits.append((self.start[who][:, None] + last + 1).ravel())
        if not peers:
            empty = np.zeros(0, dtype=np.int64)
            return _Segments(empty, empty, empty, empty, empty, empty, empty, ())
        peer, entry, exit_ = (np.concatenate(parts) for parts in (peers, entries, exits))
        key = entry * (self.num_blocks + 1) + exit_
        small = key.astype(np.uint16) if (self.num_blocks + 1) ** 2 < 2**16 else key
        order = np.argsort(small, kind="stable")
        peer, entry, exit_, key = peer[order], entry[order], exit_[order], key[order]
        heads = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
        group_entry = entry[heads]
        bounds = np.searchsorted(group_entry, np.arange(self.num_blocks + 1))
        return _Segments(
            peer=peer,
            entry=entry,
            exit=exit_,
            length=exit_ - entry,
            heads=heads,
            ends=np.append(heads[1:], len(peer)),
            group_exit=exit_[heads],
            by_entry=tuple(int(b) for b in bounds),
        )


@dataclass(frozen=True)
class _Segments:
    peer: IntArray
    entry: IntArray
    exit: IntArray
    length: IntArray
    heads: IntArray
    """Where each (entry, exit) group begins in the arrays above, and `ends` where it ends; (groups,)."""
    ends: IntArray
    group_exit: IntArray
    by_entry: tuple[int, ...]
    """Groups of entry b are by_entry[b] to by_entry[b + 1]."""


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


def _cheapest_hub_walk(spans: Spans, costs: HubCosts, limits: _Limits) -> _Walk | None:
    """Shortest path over block boundaries; O(segments + L^2)."""
    segments = spans.segments
    if not len(segments.peer):
        return None
    cost = costs.visit[segments.peer] + costs.per_block[segments.peer] * segments.length
    allowed = segments.length <= limits.room[segments.peer]
    if limits.start is not spans.start:
        allowed &= segments.entry >= limits.start[segments.peer]
    if limits.stop is not spans.stop:
        allowed &= segments.exit <= limits.stop[segments.peer]
    for peer, low, high in limits.pins:
        covers = (segments.entry <= low) & (segments.exit >= high)
        apart = (segments.exit <= low) | (segments.entry >= high)
        allowed &= np.where(segments.peer == peer, covers, apart)
    cost = np.where(allowed, cost, np.inf)
    cheapest = np.minimum.reduceat(cost, segments.heads)
    distance = np.full(spans.num_blocks + 1, np.inf)
    distance[0] = 0.0
    via = np.zeros(spans.num_blocks + 1, dtype=np.int64)
    entered = np.zeros(spans.num_blocks + 1, dtype=np.int64)
    for entry in range(spans.num_blocks):
        low, high = segments.by_entry[entry], segments.by_entry[entry + 1]
        if low == high or distance[entry] == _INFINITY:
            continue
        exits = segments.group_exit[low:high]
        values = distance[entry] + cheapest[low:high]
        better = np.flatnonzero(values < distance[exits])
        exits = exits[better]
        distance[exits] = values[better]
        via[exits] = better + low
        entered[exits] = entry
    if distance[-1] == _INFINITY:
        return None
    chain: list[Segment] = []
    stop = spans.num_blocks
    while stop > 0:
        group, start = via[stop], int(entered[stop])
        members = slice(segments.heads[group], segments.ends[group])
        chain.append((int(segments.peer[members][np.argmin(cost[members])]), BlockRange(start, stop)))
        stop = start
    return _Walk(float(distance[-1]), tuple(reversed(chain)))


def _cheapest_push_walk(spans: Spans, costs: PushCosts, limits: _Limits) -> _Walk | None:
    """Shortest path over (peer, boundary); O(sum over boundaries of peers before x peers after, + segments)."""
    n, num_blocks = len(spans.start), spans.num_blocks
    # left[b, j]: least cost of having computed blocks 0..b with j last; entry[b, j]: where j was entered for that.
    left = np.full((num_blocks + 1, n), np.inf)
    entry = np.zeros((num_blocks + 1, n), dtype=np.int64)
    came_from = np.full((num_blocks, n), -1, dtype=np.int64)
    for block in range(num_blocks):
        peers, reach = _reach(limits, block)
        if not len(peers):
            continue
        if block == 0:
            entering = costs.enter[peers]
        else:
            before = np.flatnonzero(left[block] < np.inf)
            if not len(before):
                return None
            arriving = left[block][before][:, None] + costs.between[before[:, None], peers]
            arriving[before[:, None] == peers] = np.inf
            chosen = np.argmin(arriving, axis=0)
            entering = arriving[chosen, np.arange(len(peers))]
            came_from[block, peers] = before[chosen]
        longest = int(reach[:, 1].max())
        lengths = np.arange(1, longest + 1)[:, None]
        values = entering + costs.per_block[peers] * lengths
        values[(lengths < reach[:, 0]) | (lengths > reach[:, 1])] = np.inf
        window = slice(block + 1, block + 1 + longest)
        known = left[window, peers]
        better = values < known
        left[window, peers] = np.where(better, values, known)
        entry[window, peers] = np.where(better, block, entry[window, peers])
    final = left[num_blocks] + costs.leave
    last = int(np.argmin(final))
    if final[last] == _INFINITY:
        return None
    chain: list[Segment] = []
    stop = num_blocks
    while True:
        start = int(entry[stop, last])
        chain.append((last, BlockRange(start, stop)))
        if start == 0:
            return _Walk(float(final.min()), tuple(reversed(chain)))
        last, stop = int(came_from[start, last]), start


def _reach(limits: _Limits, block: int) -> tuple[IntArray, IntArray]:
    """The peers that may be entered at `block` and their (least, greatest) number of blocks, (peers, 2)."""
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
    return peers[usable], np.stack([least[usable], most[usable]], axis=1)


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
    bound: float
    sequence: int
    wait_limit: float = field(compare=False)
    limits: _Limits = field(compare=False)
    walk: _Walk = field(compare=False)


class ChainSearch:
    """Cheapest chains over fixed spans and costs, for any state of the peers' memory."""

    def __init__(self, spans: Spans, costs: HubCosts | PushCosts) -> None:
        self.spans = spans
        self.costs = costs
        self._memo: tuple[bytes, _Walk | None] | None = None

    def cheapest(self, room: Room) -> Choice | None:
        """The chain that minimises sum of costs + largest wait, or None if there is none."""
        floor = self._least_wait(room)
        if floor == _INFINITY:
            return None
        sequence = itertools.count()
        best: Choice | None = None
        queue: list[_Node] = []

        def push(wait_limit: float, limits: _Limits, walk: _Walk | None) -> None:
            if walk is None or (best is not None and walk.cost + floor >= best.total_seconds):
                return
            heapq.heappush(queue, _Node(walk.cost + floor, next(sequence), wait_limit, limits, walk))

        everything = self._limits(room, _INFINITY)
        push(_INFINITY, everything, self._memoised_walk(everything))
        tried_floor = False
        while queue:
            node = heapq.heappop(queue)
            if best is not None and node.bound >= best.total_seconds:
                break
            recurring = _recurrence(node.walk.chain)
            if recurring is not None:
                for limits in _split(node.limits, *recurring):
                    push(node.wait_limit, limits, self._walk(limits))
                continue
            wait = max(room.wait_seconds(j, len(blocks)) for j, blocks in node.walk.chain)
            if best is None or node.walk.cost + wait < best.total_seconds:
                best = Choice(node.walk.chain, node.walk.cost, wait)
            if wait <= floor:
                continue
            if not tried_floor:  # an incumbent from the other end narrows the range of waits worth trying
                tried_floor = True
                best = min(best, self._at_floor(room, floor) or best, key=lambda choice: choice.total_seconds)
            below = min(math.nextafter(wait, -_INFINITY), best.total_seconds - node.walk.cost)
            if below >= floor:
                limits = replace(node.limits, room=room.blocks_within(below))
                push(below, limits, self._walk(limits))
        return best

    def _least_wait(self, room: Room) -> float:
        """No chain waits less than this: the largest over blocks of the least wait among their hosts."""
        waits = room.first_block_waits()
        least = np.full(self.spans.num_blocks, np.inf)
        for j in np.argsort(-waits, kind="stable"):
            if waits[j] < _INFINITY:
                least[self.spans.start[j] : self.spans.stop[j]] = waits[j]
        return float(least.max())

    def _at_floor(self, room: Room, floor: float) -> Choice | None:
        walk = self._walk(self._limits(room, floor))
        if walk is None or _recurrence(walk.chain) is not None:
            return None
        return Choice(walk.chain, walk.cost, max(room.wait_seconds(j, len(blocks)) for j, blocks in walk.chain))

    def _limits(self, room: Room, wait_limit: float) -> _Limits:
        return _Limits(room.blocks_within(wait_limit), self.spans.start, self.spans.stop)

    def _walk(self, limits: _Limits) -> _Walk | None:
        if isinstance(self.costs, HubCosts):
            return _cheapest_hub_walk(self.spans, self.costs, limits)
        return _cheapest_push_walk(self.spans, self.costs, limits)

    def _memoised_walk(self, limits: _Limits) -> _Walk | None:
        """The unlimited walk; it is the same for every request while the peers' total room is."""
        key = limits.room.tobytes()
        if self._memo is None or self._memo[0] != key:
            self._memo = (key, self._walk(limits))
        return self._memo[1]


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
