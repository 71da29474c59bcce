"""WS-RR: the waiting-penalised shortest path of an arriving request, and the exact optimum that it relaxes.

Source: BPRR paper (arXiv 2512.21884), online algorithm (WS-RR) and Corollary 2.  Symbols: S_j slots, e_r end of a
booked session, k_ij blocks, W_ij wait.  O(n^2) per request plus the sessions booked on peers without room; O(chain)
when the cheapest chain is free.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..hops import ChainResult, Edges, HopGraph
from ..perf import Segment
from ..releases import wait_for_room

_INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Decision:
    """A route for one request; the chain's peers are indices."""

    chain: tuple[Segment, ...]
    path_cost_seconds: float
    """The quantity that the policy minimised."""
    wait_seconds: float
    """Wait until every peer of the chain has room: the largest of the hops' waits."""


class Ledger:
    """The units that sessions hold on every peer, and until when; time only moves forward.

    A unit is what memory is counted in: a slot (one block of one session), or a KV token of one block.
    """

    def __init__(self, units: Sequence[int]) -> None:
        self.units = tuple(int(u) for u in units)
        self.used = [0] * len(self.units)
        self._booked: list[list[tuple[float, int]]] = [[] for _ in self.units]

    def book(self, chain: Sequence[Segment], end_seconds: float, units_per_block: int = 1) -> None:
        """Hold the units of a chain until `end_seconds`, including the time while the session still waits."""
        for j, blocks in chain:
            units = len(blocks) * units_per_block
            bisect.insort(self._booked[j], (end_seconds, units))
            self.used[j] += units

    def cancel(self, chain: Sequence[Segment], end_seconds: float, units_per_block: int = 1) -> None:
        """Undo the same call of `book`. Raises ValueError if it is not booked (any more)."""
        for j, blocks in chain:
            units = len(blocks) * units_per_block
            self._booked[j].remove((end_seconds, units))
            self.used[j] -= units

    def resize(self, peer: int, units: int) -> None:
        """Set the number of units that the peer has from now on."""
        self.units = (*self.units[:peer], int(units), *self.units[peer + 1 :])

    def expire(self, now_seconds: float) -> None:
        """Forget the sessions that ended at or before now (active means e_r > t)."""
        for j, booked in enumerate(self._booked):
            if booked and booked[0][0] <= now_seconds:
                done = bisect.bisect_right(booked, (now_seconds, _INFINITY))
                self.used[j] -= sum(units for _, units in booked[:done])
                del booked[:done]

    def sessions(self, peer: int) -> int:
        """The number of sessions booked on a peer."""
        return len(self._booked[peer])

    def free(self, peer: int) -> int:
        """Units not booked; negative while sessions wait."""
        return self.units[peer] - self.used[peer]

    def wait(self, peer: int, units: int, now_seconds: float) -> float:
        """W_ij: release sessions in order of their end until `units` are free; infinite beyond S_j."""
        return wait_for_room(units, self.free(peer), self._booked[peer], now_seconds)

    def waits(self, peer: int, most: int, now_seconds: float, units_per_block: int = 1) -> list[float]:
        """`wait` for 0, 1, ..., `most` blocks."""
        free = self.free(peer)
        waits = [0.0] * min(max(free // units_per_block, 0) + 1, most + 1)
        for end, released in self._booked[peer]:
            if len(waits) > most:
                break
            free += released
            waits += [end - now_seconds] * (min(free // units_per_block, most) + 1 - len(waits))
        return waits + [_INFINITY] * (most + 1 - len(waits))

    def free_within(self, peer: int, wait_seconds: float, now_seconds: float) -> int:
        """The number of units that are free after waiting at most that long; at least 0."""
        free = self.free(peer)
        if free < self.units[peer]:
            for end, released in self._booked[peer]:
                if end - now_seconds > wait_seconds:
                    break
                free += released
        return max(free, 0)


class WaitingRouter:
    """WS-RR over one placement and one client's hop costs (compiled edges)."""

    def __init__(self, graph: HopGraph, edges: Edges, units_per_block: int = 1) -> None:
        self.graph = graph
        self.edges = edges
        self._units = units_per_block
        self._sizes = {j: len(hosted) for j, hosted in enumerate(graph.ranges) if hosted is not None}
        self._unloaded = graph.cheapest(edges)

    def route(self, ledger: Ledger, now_seconds: float) -> Decision | None:
        """WS-RR: least sum of cost and waits W_ij; None if no chain can ever have room."""
        if (free := self._unloaded_if_free(ledger)) is not None:
            return free
        waits = self._waits(ledger, now_seconds)
        return self._decision(self.graph.cheapest(self.edges, waits), waits)

    def optimal_route(self, ledger: Ledger, now_seconds: float) -> Decision | None:
        """The exact myopic optimum: least cost + largest wait over Lemma 1's chains.

        Walks down the waits: the cheapest chain with waits of at most w costs c and waits u <= w; a better one waits
        less than u and, costing at least c, less than best - c.
        """
        if (free := self._unloaded_if_free(ledger)) is not None:
            return free
        waits = self._waits(ledger, now_seconds)
        best: Decision | None = None
        limit = math.nextafter(_INFINITY, 0)
        while True:
            closed = {j: [0.0 if w <= limit else _INFINITY for w in ws] for j, ws in waits.items()}
            found = self.graph.cheapest(self.edges, closed)
            if found is None:
                return best
            wait = self._largest_wait(found.chain, waits)
            if best is None or found.cost + wait < best.path_cost_seconds:
                best = Decision(found.chain, found.cost + wait, wait)
            limit = min(math.nextafter(wait, -_INFINITY), best.path_cost_seconds - found.cost)
            if limit < 0:
                return best

    def _unloaded_if_free(self, ledger: Ledger) -> Decision | None:
        """The cheapest chain of all, if it has no wait; then no other chain can be better."""
        if self._unloaded is None:
            return None
        if all(ledger.free(j) >= len(blocks) * self._units for j, blocks in self._unloaded.chain):
            return Decision(self._unloaded.chain, self._unloaded.cost, 0.0)
        return None

    def _waits(self, ledger: Ledger, now_seconds: float) -> dict[int, list[float]]:
        """W by number of blocks computed, for the peers where not every hop is free of waiting."""
        return {
            j: ledger.waits(j, size, now_seconds, self._units)
            for j, size in self._sizes.items()
            if ledger.free(j) < size * self._units
        }

    def _decision(self, found: ChainResult | None, waits: Mapping[int, Sequence[float]]) -> Decision | None:
        if found is None:
            return None
        return Decision(found.chain, found.cost, self._largest_wait(found.chain, waits))

    @staticmethod
    def _largest_wait(chain: Sequence[Segment], waits: Mapping[int, Sequence[float]]) -> float:
        return max((waits[j][len(blocks)] for j, blocks in chain if j in waits), default=0.0)


def retry_wait_seconds(wait_seconds: float) -> float:
    """A wait rounded up to the retry grid 1, 3, 7, 15, 31, 63, 123, 183, ... s (pauses of min(2^i, 60) s)."""
    start, pause = 0.0, 1.0
    while start < wait_seconds - 1e-9:
        if pause == 60.0:
            return start + 60.0 * math.ceil((wait_seconds - start) / 60.0 - 1e-11)
        start += pause
        pause = min(pause * 2, 60.0)
    return start
