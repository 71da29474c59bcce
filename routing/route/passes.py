"""One pass over a lattice: the cheapest walk under each of several limits of the wait, in one sweep over the blocks.

A walk remembers which *critical* peers it has used (state-space augmentation, Boland et al., Oper. Res. Lett. 2006), so
that it uses none of them twice.  Critical peers whose ranges do not overlap share one bit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ..perf import FloatArray, IntArray
from .budget import UNLIMITED, Meter
from .lattice import Lattice, Step

SUMS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Memory:
    """Critical peers: a mask of `2 ** bits` values remembers which of them a walk has used."""

    lattice: Lattice
    bits: int
    """The most critical peers with a common block."""
    kept: IntArray
    """(A,): the bits that a walk keeps after a segment..."""
    own: IntArray
    """...the bit of its peer..."""
    used: IntArray
    """...and that bit only if the peer could be entered again after the segment."""

    @classmethod
    def of(cls, lattice: Lattice, critical: Collection[int]) -> Memory:
        """O(critical * A)."""
        nothing = np.zeros(0, dtype=np.int64)
        if not critical:
            return cls(lattice, 0, nothing, nothing, nothing)
        kept, own, used = np.zeros((3, len(lattice.peer)), dtype=np.int64)
        present = [j for j in critical if (lattice.peer == j).any()]
        start = {j: int(lattice.entry[lattice.peer == j].min()) for j in present}
        stop = {j: int(lattice.exit[lattice.peer == j].max()) for j in present}
        taken: list[int] = []  # per bit, where it is free again
        for j in sorted(present, key=lambda j: (start[j], j)):
            bit = next((b for b, free_at in enumerate(taken) if free_at <= start[j]), len(taken))
            taken[bit : bit + 1] = [stop[j]]
            remembered = lattice.exit < stop[j]
            kept |= ((lattice.entry >= start[j]) & remembered).astype(np.int64) << bit
            mine = lattice.peer == j
            own |= mine.astype(np.int64) << bit
            used |= (mine & remembered).astype(np.int64) << bit
        return cls(lattice, len(taken), kept, own, used)

    @property
    def masks(self) -> int:
        return 1 << self.bits

    def following(self, mask: IntArray, segments: slice) -> IntArray:
        """Mask after each segment x (targets + 1) + its target; if it is forbidden, the index after all targets."""
        if not self.bits:
            return self.lattice.target[segments].reshape(*mask.shape[:-1], -1)
        nowhere = self.lattice.num_targets
        following = mask & self.kept[segments]
        following |= self.used[segments]
        following *= nowhere + 1
        following += self.lattice.target[segments]
        following[(mask & self.own[segments]) != 0] = nowhere
        return following

    @property
    def bytes_per_limit(self) -> int:
        """Approximate memory that a pass with these masks takes for one limit of the wait."""
        lattice = self.lattice
        states = lattice.num_sources + lattice.num_targets + 3 * lattice.widest_step
        return 8 * (3 * len(lattice.peer) + self.masks * states)


@dataclass(frozen=True)
class Ends:
    """(n,) trips from the client into each peer and from it back to the client; zero for hub costs."""

    enter: FloatArray
    leave: FloatArray


class Pass:
    """The cheapest rest of a walk from every point, for T limits of the wait.

    `cost` is (T, A), infinite for segments that are not allowed.  O(T * masks * (A + targets x sources at every
    boundary)).  Raises OverBudgetError when the time is over.
    """

    def __init__(self, memory: Memory, cost: FloatArray, ends: Ends, meter: Meter = UNLIMITED) -> None:
        self.lattice = lattice = memory.lattice
        self._memory, self._cost, self.ends = memory, cost, ends
        self._masks = np.arange(memory.masks)[:, None]
        limits = len(cost)
        self._ahead = np.full((limits, memory.masks, lattice.num_sources), np.inf)
        self._onward = np.full((limits, memory.masks, lattice.num_targets + 1), np.inf)
        begin, *_, final = lattice.steps
        self._onward[:, :, final.targets] = ends.leave[lattice.peer[lattice.by_target[final.ending][final.tails]]]
        for step in reversed(lattice.inner_steps):
            meter.check()
            ahead = self._ahead[:, :, step.sources] = self._before(step)
            self._onward[:, :, step.targets] = ahead if step.link is None else cheapest_links(ahead, step.link)
        self._begin = np.full((limits, 1), np.inf)
        """(T, sources of the first block)"""
        if len(begin.heads):
            self._begin = self._before(begin)[:, 0] + ends.enter[lattice.peer[lattice.heads[begin.sources]]]
        self.total = self._begin.min(axis=1)
        """(T,): C."""

    def _before(self, step: Step) -> FloatArray:
        """(T, masks, sources): the least cost from each source of a boundary."""
        flat = self._onward.reshape(len(self._cost), -1)
        values = flat.take(self._memory.following(self._masks, step.segments), axis=1)
        values += self._cost[:, None, step.segments]
        ahead: FloatArray = np.minimum.reduceat(values, step.heads, axis=2)
        return ahead

    def onward(self, limit: int) -> FloatArray:
        """(targets,): the least cost from each target to the end of the walk."""
        return self._onward[limit, 0, :-1].copy()  # not a view, which would keep the whole pass

    def walk(self, limit: int) -> list[int]:
        """The segments, by index, of the cheapest walk under that limit; there must be a walk."""
        lattice, onward = self.lattice, self._onward[limit].ravel()
        walk: list[int] = []
        source, mask = int(np.argmin(self._begin[limit])), 0
        while True:
            first, end = lattice.heads[source], lattice.heads[source + 1]
            following = self._memory.following(np.array(mask), slice(first, end))
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


def cheapest_links(ahead: FloatArray, link: FloatArray) -> FloatArray:
    """(T, masks, sources) and (sources, targets) -> (T, masks, targets): the cheapest continuation over a link.

    A few rows at a time, so that their sums stay in the processor's cache.
    """
    if ahead.size * link.shape[1] <= SUMS_AT_ONCE:
        few_sums: FloatArray = np.minimum.reduce(ahead[..., None] + link, axis=2)
        return few_sums
    rows = ahead.reshape(-1, len(link), 1)
    cheapest = np.empty((len(rows), link.shape[1]))
    few = max(1, SUMS_AT_ONCE // link.size)
    for begin in range(0, len(rows), few):
        np.minimum.reduce(rows[begin : begin + few] + link, axis=1, out=cheapest[begin : begin + few])
    return cheapest.reshape(*ahead.shape[:2], -1)


def before_segments(lattice: Lattice, cost: FloatArray, ends: Ends) -> FloatArray:
    """(A,): the least cost of a walk up to the entry of each segment, given the segments' costs (A,)."""
    reached = np.full(lattice.num_sources, np.inf)
    first = lattice.steps[0].sources
    reached[first] = ends.enter[lattice.peer[lattice.heads[first]]]
    sources, cost = lattice.source[lattice.by_target], cost[lattice.by_target]
    for step in lattice.inner_steps:
        values = reached[sources[step.ending]] + cost[step.ending]
        arrived = np.minimum.reduceat(values, step.tails)
        reached[step.sources] = arrived if step.link is None else (step.link + arrived).min(axis=1)
    return reached[lattice.source]
