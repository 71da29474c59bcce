"""One pass over a lattice: the cheapest walk under each of several limits of the wait, in one sweep over the blocks.

Where peers are *critical* a walk remembers whether it has used them (state-space augmentation, Boland et al., Oper.
Res. Lett. 2006), so that no walk uses one twice.  Critical peers whose ranges do not meet share one bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..perf import FloatArray, IntArray
from .lattice import Lattice, Step


@dataclass(frozen=True)
class _Memory:
    """Critical peers: a mask of `2 ** bits` values remembers which of them a walk has used."""

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
class Ends:
    """(n,) trips from the client into each peer and from it back to the client; zero for hub costs."""

    enter: FloatArray
    leave: FloatArray


class Pass:
    """The cheapest way on from everywhere, for T limits of the wait: `cost` is (T, A), infinite where not allowed.

    O(T * masks * (A + targets x sources at every boundary)).
    """

    def __init__(self, lattice: Lattice, cost: FloatArray, ends: Ends, critical: Sequence[int] = ()) -> None:
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

    def _before(self, step: Step) -> FloatArray:
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


def before_segments(lattice: Lattice, cost: FloatArray, ends: Ends) -> FloatArray:
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
