"""Lemma 1's hop graph: peers used to the end of their range, and the cheapest chain through them.

Source: BPRR paper (arXiv 2512.21884), feasible-hop lemma.  Hop i -> j is feasible iff the first block that i does
not host is hosted by j; j then computes from that block to its end.  The ends strictly increase along a chain, so
the graph is acyclic and one pass in order of the ends finds the cheapest chain: O(number of hops).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .perf import FloatArray, Segment
from .swarm import BlockRange

SOURCE = -1
"""The virtual predecessor of a chain's first peer."""

TIE_TOLERANCE = 1e-12
"""Costs that differ by less than this, relatively, are equal: another order of summation changes the last digit."""

Edges = tuple[tuple[int, tuple[tuple[int, int, float], ...]], ...]
"""Per peer in order of its range's end: (peer, ((predecessor, blocks computed at peer, cost), ...))."""


@dataclass(frozen=True, slots=True)
class ChainResult:
    """The cheapest chain and its cost, tolls included."""

    chain: tuple[Segment, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class HopGraph:
    """The feasible hops of a placement: `ranges[j]` is what peer j hosts, None for an unused peer."""

    num_blocks: int
    ranges: tuple[BlockRange | None, ...]

    def hops(self) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
        """Per hosting peer, in order of (end, index): the peer and its (predecessor, blocks computed)."""
        spans = sorted((r.stop, j) for j, r in enumerate(self.ranges) if r is not None)
        by_stop: dict[int, list[int]] = {0: [SOURCE]}
        for stop, j in spans:
            by_stop.setdefault(stop, []).append(j)
        result = []
        for stop, j in spans:
            hosted = self.ranges[j]
            assert hosted is not None
            entries = range(hosted.start, hosted.stop)
            result.append((j, tuple((i, stop - entry) for entry in entries for i in by_stop.get(entry, ()))))
        return tuple(result)

    def edges(self, cost: Callable[[int, int, int], float]) -> Edges:
        """The hops with `cost(predecessor, peer, blocks)`; the predecessor is SOURCE for first hops."""
        return tuple((j, tuple((i, k, cost(i, j, k)) for i, k in preds)) for j, preds in self.hops())

    def hub_edges(self, visit: FloatArray, per_block: FloatArray) -> Edges:
        """The hops with hub-and-spoke costs `visit[j] + per_block[j] * blocks`."""
        visits, blocks = visit.tolist(), per_block.tolist()
        return self.edges(lambda _, j, k: visits[j] + blocks[j] * k)

    def cheapest(
        self,
        edges: Edges,
        tolls: Mapping[int, Sequence[float]] | None = None,
        exit_cost: Callable[[int], float] | None = None,
    ) -> ChainResult | None:
        """The cheapest chain, or None if there is none. O(number of hops).

        `tolls[j][k]` is added to every hop that computes k blocks at j (waits, penalties; infinite forbids it).
        Of equal costs, the predecessor with the smaller distance, then the smaller index, wins, as in a Dijkstra
        search that settles the lowest-numbered of equal nodes and relaxes on strict improvement.
        """
        infinity = float("inf")
        distance: dict[int, float] = {SOURCE: 0.0}
        via: dict[int, tuple[int, int]] = {}
        for j, preds in edges:
            toll = tolls.get(j) if tolls else None
            best = best_base = infinity
            chosen = (0, 0)
            for i, k, cost in preds:
                base = distance.get(i, infinity)
                value = base + cost if toll is None else base + cost + toll[k]
                if value == infinity:
                    continue
                slack = TIE_TOLERANCE * value
                if best - value > slack or (value - best <= slack and _precedes(base, i, best_base, chosen[0], slack)):
                    best, best_base, chosen = value, base, (i, k)
            if best < infinity:
                distance[j] = best
                via[j] = chosen
        last = SOURCE
        total = infinity
        for j in sorted(via):
            hosted = self.ranges[j]
            if hosted is None or hosted.stop != self.num_blocks:
                continue
            value = distance[j] + (exit_cost(j) if exit_cost else 0.0)
            slack = TIE_TOLERANCE * value
            if total - value > slack or (
                abs(value - total) <= slack and _precedes(distance[j], j, distance[last], last, slack)
            ):
                total, last = value, j
        if last == SOURCE:
            return None
        return ChainResult(self._walk_back(via, last), total)

    def _walk_back(self, via: Mapping[int, tuple[int, int]], last: int) -> tuple[Segment, ...]:
        chain: list[Segment] = []
        j = last
        while j != SOURCE:
            predecessor, blocks = via[j]
            hosted = self.ranges[j]
            assert hosted is not None
            chain.append((j, BlockRange(hosted.stop - blocks, hosted.stop)))
            j = predecessor
        return tuple(reversed(chain))


def _precedes(base: float, index: int, other_base: float, other_index: int, slack: float) -> bool:
    if abs(base - other_base) > slack:
        return base < other_base
    return index < other_index
