"""A good chain without a proof, for searches whose budget is over: a beam search over the boundaries of a lattice.

Partial chains are extended block by block.  Of those that reach the same boundary the most promising are kept, by their
cost so far plus the cheapest walk from there on, which a pass has found before.  Unlike a walk, each partial chain
knows all the peers that it has used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..perf import BoolArray, FloatArray, IntArray
from .budget import Meter
from .lattice import Lattice, Step
from .passes import Ends

WIDTH = 32
"""Partial chains extended at every boundary..."""
SPREAD = 16
"""...to this many times as many."""


@dataclass(frozen=True, slots=True)
class PromisingChain:
    """A chain that the beam has found."""

    segments: list[int]
    """By index."""
    cost: float
    """In trips, including the way back to the client."""


@dataclass(frozen=True, slots=True)
class _Beam:
    """Partial chains, in parallel arrays."""

    cost: FloatArray
    promise: FloatArray
    """The cost so far and that of the cheapest walk from here on."""
    last: IntArray
    """The last segment; -1 at the beginning."""
    used: BoolArray
    """(chains, n)"""
    node: IntArray
    """The place of the last segment in the tree of all segments that were tried; -1 at the beginning."""

    @classmethod
    def joined(cls, parts: list[_Beam]) -> _Beam:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def only(self, which: IntArray | BoolArray) -> _Beam:
        return _Beam(*(getattr(self, name)[which] for name in self.__slots__))


def promising_chain(
    lattice: Lattice, cost: FloatArray, onward: FloatArray, ends: Ends, meter: Meter, width: int = WIDTH
) -> PromisingChain | None:
    """A chain that uses no peer twice; None if none was found, though there may be one.

    `cost` is (A,), infinite where not allowed, and `onward` (targets,): the least cost from each target to the end.
    O(boundaries * width * segments that begin there).  Raises OverBudgetError.
    """
    nothing = np.array([-1])
    unused = np.zeros((1, int(lattice.peer.max(initial=0)) + 1), dtype=bool)
    waiting: list[list[_Beam]] = [[] for _ in range(lattice.num_blocks + 1)]
    waiting[0].append(_Beam(np.zeros(1), np.zeros(1), nothing, unused, nothing))
    tree = [np.zeros((2, 0), dtype=np.int64)]  # (parent node, segment)
    size = 0
    for step in lattice.steps[:-1]:
        if not waiting[step.boundary] or not len(step.heads):
            continue
        meter.check()
        beam = _Beam.joined(waiting[step.boundary])
        beam = beam.only(np.argsort(beam.promise, kind="stable")[:width])
        extended = _extended(beam, step, lattice, cost, onward, ends, width * SPREAD)
        tree.append(np.stack([extended.node, extended.last]))
        extended = replace(extended, node=size + np.arange(len(extended.last)))
        size += len(extended.last)
        exits = lattice.exit[extended.last]
        for boundary in np.unique(exits).tolist():
            waiting[boundary].append(extended.only(exits == boundary))
    if not waiting[-1]:
        return None
    arrived = _Beam.joined(waiting[-1])
    best = int(np.argmin(arrived.promise))
    return PromisingChain(_traced(np.concatenate(tree, axis=1), int(arrived.node[best])), float(arrived.promise[best]))


def _extended(
    beam: _Beam, step: Step, lattice: Lattice, cost: FloatArray, onward: FloatArray, ends: Ends, most: int
) -> _Beam:
    """The most promising chains that are one segment longer; their nodes are still those of the chains they extend."""
    peer, target = lattice.peer[step.segments], lattice.target[step.segments]
    source = lattice.source[step.segments] - step.sources.start
    if step.boundary == 0:
        way = ends.enter[lattice.peer[lattice.heads[step.sources]]][None]
    elif step.link is None:
        way = np.zeros((1, len(step.heads)))
    else:
        way = step.link[:, lattice.target[beam.last] - step.targets.start].T
    costs = beam.cost[:, None] + way[:, source] + cost[step.segments]
    costs[beam.used[:, peer]] = np.inf
    promise = (costs + onward[target]).ravel()
    best = np.argpartition(promise, min(most, len(promise)) - 1)[:most]
    best = np.sort(best[np.isfinite(promise[best])])
    before, chosen = np.divmod(best, len(peer))
    used = beam.used[before]
    used[np.arange(len(best)), peer[chosen]] = True
    return _Beam(costs.ravel()[best], promise[best], step.segments.start + chosen, used, beam.node[before])


def _traced(tree: IntArray, node: int) -> list[int]:
    """The segments from the beginning to a node."""
    chain: list[int] = []
    while node >= 0:
        chain.append(int(tree[1, node]))
        node = int(tree[0, node])
    return chain[::-1]
