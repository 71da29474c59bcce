"""Chain composition: GBP-CR (placement), GCA (cache allocation), JFFC (dispatch), and Theorem 4's bounds.

Source: Sun, He, Hou, MobiHoc'26 (arXiv 2604.14993).  Symbols: tau^c_j visit_seconds (communication, all tokens),
tau^p_j block_seconds (one block, all tokens), c sessions reserved per chain, T_k service_seconds, mu_k = 1 / T_k,
c_k capacity, nu total rate.  An orchestrator owns the chains and one central FIFO queue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .hops import SOURCE, TIE_TOLERANCE, ChainResult
from .perf import MOST_SLOTS, FloatArray, PerfModel, Segment, decimal_floor
from .place.cgbp import CgbpPlan
from .swarm import BlockRange

LEAST_SERVICE = 1e-9
"""Shortest service time of a chain, seconds, so that every rate is finite."""


@dataclass(frozen=True)
class ChainModel:
    """Servers as the paper sees them; arrays (n,), seconds and bytes."""

    num_blocks: int
    block_bytes: float
    session_bytes: float
    memory_bytes: FloatArray
    visit_seconds: FloatArray
    block_seconds: FloatArray

    def residual_slots(self, ranges: Sequence[BlockRange | None]) -> list[int]:
        """M~_j: sessions x blocks that fit beside the hosted blocks."""
        slots = []
        for memory, blocks in zip(self.memory_bytes.tolist(), ranges, strict=True):
            room = (memory - self.block_bytes * len(blocks)) / self.session_bytes if blocks is not None else 0.0
            slots.append(max(decimal_floor(min(room, MOST_SLOTS)), 0))
        return slots


@dataclass(frozen=True, slots=True)
class Composition:
    """GBP-CR's result: disjoint chains, fastest servers first; servers that were not needed host nothing."""

    ranges: tuple[BlockRange | None, ...]
    disjoint_chains: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class CapacityChain:
    """A chain that `capacity` sessions may use at once."""

    chain: tuple[Segment, ...]
    capacity: int
    service_seconds: float


class NoCompleteChainError(ValueError):
    """The servers' memory does not hold one complete chain."""


# --- GBP-CR -----------------------------------------------------------------------------------------------------


def gbp_cr(model: ChainModel, capacity: int, requests_per_second: float, load: float) -> Composition:
    """Compose disjoint chains of the fastest servers until their rate suffices: nu >= lambda / (rho c). O(J log J).

    Raises NoCompleteChainError if no chain is complete.  Servers of a last, incomplete chain keep their blocks.
    """
    per_block = model.block_bytes + model.session_bytes * capacity
    sizes = np.minimum(np.floor(model.memory_bytes / per_block + 1e-9), model.num_blocks).astype(np.int64)
    visit = model.visit_seconds + model.block_seconds * sizes
    order = sorted(np.flatnonzero(sizes > 0).tolist(), key=lambda j: (visit[j] / sizes[j], j))
    ranges: list[BlockRange | None] = [None] * len(sizes)
    chains: list[tuple[int, ...]] = []
    members: list[int] = []
    first, seconds, rate = 0, 0.0, 0.0
    for j in order:
        size = int(sizes[j])
        start = min(first, model.num_blocks - size)
        ranges[j] = BlockRange(start, start + size)
        members.append(j)
        seconds += float(visit[j])
        first = start + size
        if first < model.num_blocks:
            continue
        chains.append(tuple(members))
        rate += 1.0 / max(seconds, LEAST_SERVICE)
        if rate >= requests_per_second / (load * capacity):
            break
        members, first, seconds = [], 0, 0.0
    if not chains:
        raise NoCompleteChainError(
            f"with room for {capacity} sessions per chain the servers hold less than the whole model"
        )
    return Composition(tuple(ranges), tuple(chains))


# --- GCA --------------------------------------------------------------------------------------------------------


def gca(
    num_blocks: int,
    ranges: tuple[BlockRange | None, ...],
    slots: Sequence[int],
    visit_seconds: FloatArray,
    block_seconds: FloatArray,
) -> Iterator[CapacityChain]:
    """Chains in ascending service time, each with all the capacity that the earlier ones left; at most O(J^2) chains.

    Under any placement, joining the fastest free server needs only these chains and capacities (Theorem 3).
    """
    shortest = _ShortestChain(num_blocks, ranges, slots, visit_seconds, block_seconds)
    residual = list(slots)
    while (found := shortest.find()) is not None:
        capacity = min(residual[j] // len(blocks) for j, blocks in found.chain)
        for j, blocks in found.chain:
            residual[j] -= capacity * len(blocks)
            shortest.limit(j, residual[j])
        yield CapacityChain(found.chain, capacity, max(found.cost, LEAST_SERVICE))


class _ShortestChain:
    """GCA's shortest path, kept up to date while links close; finds the same as `HopGraph.cheapest`, ties included.

    The cost of a hop does not depend on the peer before it, so the nodes are block boundaries: only the best peer that
    ends at a boundary matters from there on.  Closing a link changes nothing before the boundary that it led to.
    """

    def __init__(
        self,
        num_blocks: int,
        ranges: Sequence[BlockRange | None],
        slots: Sequence[int],
        visit_seconds: FloatArray,
        block_seconds: FloatArray,
    ) -> None:
        ending: dict[int, list[tuple[int, int]]] = {}
        for j, blocks in enumerate(ranges):
            if blocks is not None and len(blocks):
                ending.setdefault(blocks.stop, []).append((j, len(blocks)))
        self._rows: dict[int, tuple[int, int]] = {}
        """By peer: where its range stops, and its row there."""
        self._peers: dict[int, list[int]] = {}
        self._costs: dict[int, FloatArray] = {}
        """By boundary: (peers that stop there, k - 1) -> cost of computing their last k blocks; infinite if closed."""
        for stop in sorted(ending):
            peers, sizes = (np.array(part) for part in zip(*ending[stop], strict=True))
            lengths = np.arange(1, int(sizes.max()) + 1)
            costs = visit_seconds[peers][:, None] + block_seconds[peers][:, None] * lengths
            self._costs[stop] = np.where(lengths <= sizes[:, None], costs, np.inf)
            self._peers[stop] = peers.tolist()
            self._rows |= {j: (stop, row) for row, j in enumerate(self._peers[stop])}
        self._distance = np.full(num_blocks + 1, np.inf)
        self._distance[0] = 0.0
        self._via: list[tuple[int, int]] = [(SOURCE, 0)] * (num_blocks + 1)
        """By boundary: the best peer that ends there, and how many blocks it computes."""
        self._changed_from = 0
        for j in self._rows:
            self.limit(j, slots[j])

    def limit(self, peer: int, slots: int) -> None:
        """Close the peer's hops of more than `slots` blocks: it has only that many slots left."""
        stop, row = self._rows[peer]
        costs = self._costs[stop]
        if slots < costs.shape[1] and costs[row, slots] < math.inf:
            costs[row, slots:] = np.inf
            self._changed_from = min(self._changed_from, stop)

    def find(self) -> ChainResult | None:
        """The cheapest chain over the open links, or None."""
        for stop in self._costs:
            if stop >= self._changed_from:
                self._settle(stop)
        self._changed_from = len(self._distance)
        end = len(self._distance) - 1
        if self._distance[end] == math.inf:
            return None
        cost, chain = float(self._distance[end]), []
        while end > 0:
            j, length = self._via[end]
            chain.append((j, BlockRange(end - length, end)))
            end -= length
        return ChainResult(tuple(reversed(chain)), cost)

    def _settle(self, stop: int) -> None:
        """The best way to a boundary; ties as in `HopGraph.cheapest`."""
        costs = self._costs[stop]
        before = self._distance[max(stop - costs.shape[1], 0) : stop][::-1]
        values = before + costs[:, : len(before)]
        best = float(values.min())
        if best == math.inf:
            self._distance[stop] = math.inf
            return
        rows, lengths = np.nonzero(values <= best * (1 + TIE_TOLERANCE))
        equal = lengths[rows == rows[0]].tolist()  # of equal peers the first, entered from the nearest of equals
        length = equal[0] if len(equal) == 1 else self._nearest(stop, equal, best * TIE_TOLERANCE)
        self._distance[stop] = values[rows[0], length]
        self._via[stop] = self._peers[stop][rows[0]], length + 1

    def _nearest(self, stop: int, lengths: Sequence[int], slack: float) -> int:
        """The length (less one, as in `lengths`) whose entry is cheapest to reach; of equals the smallest peer."""
        reached = {length: float(self._distance[stop - 1 - length]) for length in lengths}
        least = min(reached.values())
        return min((n for n in lengths if reached[n] <= least + slack), key=lambda n: self._via[stop - 1 - n][0])


# --- JFFC -------------------------------------------------------------------------------------------------------


class FastestFreeChain:
    """JFFC: a request joins the fastest free chain; if all are busy, it queues, FIFO.

    `capacities[k]`: capacity of chain k, in sessions or in any unit of which a request takes one or more;
    `service_seconds[c][k]`: how long client c's request takes on chain k.
    """

    def __init__(self, capacities: Sequence[int], service_seconds: Sequence[Sequence[float]]) -> None:
        self._free = list(capacities)
        self._by_speed = [sorted(range(len(row)), key=lambda k, row=row: (row[k], k)) for row in service_seconds]  # type: ignore[misc]

    def take(self, client: int, units: int = 1) -> int | None:
        """Take `units` of the fastest chain that has them free, and return its index; None if there is none."""
        for k in self._by_speed[client]:
            if self._free[k] >= units:
                self._free[k] -= units
                return k
        return None

    def give_back(self, chain: int, units: int = 1) -> None:
        """Return the units of a session that has ended."""
        self._free[chain] += units


# --- Theorem 4 --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResponseBounds:
    """Bounds of the mean number in system and of the mean response, (lower, upper); infinite when unstable."""

    occupancy: tuple[float, float]
    response_seconds: tuple[float, float]


def theorem_4(chains: Sequence[CapacityChain], requests_per_second: float) -> ResponseBounds:
    """Theorem 4's bounds for Poisson arrivals and exponential sizes.

    They are those of two birth-death chains: one fills the fastest chains first, the other the slowest.
    """
    by_speed = sorted(chains, key=lambda chain: chain.service_seconds)
    lower, upper = (_mean_occupancy(order, requests_per_second) for order in (by_speed, by_speed[::-1]))
    return ResponseBounds((lower, upper), (lower / requests_per_second, upper / requests_per_second))


def _mean_occupancy(fill_order: Sequence[CapacityChain], requests_per_second: float) -> float:
    """E[N] of the birth-death chain whose death rate at n counts the first n slots in this order; in log space."""
    total_rate = math.fsum(chain.capacity / chain.service_seconds for chain in fill_order)
    if requests_per_second >= total_rate:
        return math.inf
    load = requests_per_second / total_rate
    slot_rates = _slot_rates(fill_order, 4 * requests_per_second)
    death_rates = np.cumsum(slot_rates)
    count = len(slot_rates)
    log_weights = np.concatenate(([0.0], np.cumsum(math.log(requests_per_second) - np.log(death_rates))))
    weights = np.exp(log_weights - log_weights.max())
    mass = weights[:-1].sum() + weights[-1] / (1 - load)
    mean = (np.arange(count) * weights[:-1]).sum()
    mean += weights[-1] * (load / (1 - load) ** 2 + count / (1 - load))
    return float(mean / mass)


def _slot_rates(fill_order: Sequence[CapacityChain], ample_rate: float) -> FloatArray:
    """The rate of every slot in this order, up to `_DEEP` slots after their sum reached `ample_rate`: from there on
    each state is less than a quarter as probable as the one before, so the rest can be ignored."""
    parts, rate = [], 0.0
    for chain in fill_order:
        slot = 1.0 / chain.service_seconds
        wanted = max(math.ceil((ample_rate - rate) / slot), 0) + _DEEP
        parts.append(np.full(min(chain.capacity, wanted), slot))
        rate += chain.capacity * slot
        if chain.capacity >= wanted:
            break
    return np.concatenate(parts)


_DEEP = 4096


# --- choosing c -------------------------------------------------------------------------------------------------


def choose_capacity(model: ChainModel, requests_per_second: float, load: float) -> int:
    """The c whose chains have the least lower bound in Theorem 4; ties -> the smallest. Raises NoCompleteChainError.

    O(c_max) compositions; c ranges to floor((max M_j - s_m) / s_c).
    """
    most = decimal_floor(min((float(model.memory_bytes.max()) - model.block_bytes) / model.session_bytes, MOST_SLOTS))
    best: tuple[float, int] | None = None
    for capacity in range(1, most + 1):
        try:
            composed = gbp_cr(model, capacity, requests_per_second, load)
        except NoCompleteChainError:
            break  # sizes only shrink as c grows
        chains = compose(model, composed.ranges)
        mean = theorem_4(chains, requests_per_second).response_seconds[0]
        if best is None or mean < best[0]:
            best = mean, capacity
    if best is None:
        raise NoCompleteChainError("the servers hold less than the whole model, whatever room is left for sessions")
    return best[1]


def compose(model: ChainModel, ranges: tuple[BlockRange | None, ...]) -> tuple[CapacityChain, ...]:
    """GCA over a placement of the model's servers."""
    slots = model.residual_slots(ranges)
    return tuple(gca(model.num_blocks, ranges, slots, model.visit_seconds, model.block_seconds))


# --- on top of a CG-BP placement --------------------------------------------------------------------------------


def cgbp_chains(model: PerfModel, plan: CgbpPlan, slots: Sequence[int]) -> tuple[CapacityChain, ...]:
    """GCA over a CG-BP placement, at whole-request costs averaged over the clients.

    `slots`: sessions x blocks that fit beside the blocks of every peer.
    """
    return tuple(gca(model.num_blocks, plan.ranges, slots, *model.mean_request_hop_seconds()))
