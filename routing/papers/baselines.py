"""PETALS' placement, rebalancing and routing, and the ablations of the BPRR paper that build on them.

Sources: bigscience-workshop/petals (block selection and sequence manager); BPRR paper (arXiv 2512.21884) and its
simulator for what is simulated of it (pool sizes, the penalty for full servers, the retry grid).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..hops import SOURCE, ChainResult, Edges, HopGraph
from ..perf import FloatArray, IntArray, PerfModel, whole_slots
from ..place.windows import least_served_window
from ..route.wsrr import Decision, Ledger
from ..swarm import BlockRange

AUTOGRAD_BYTES_AT_14336 = 2 * 2**30
"""PETALS sets this aside for its backward pass, in proportion to the hidden size / 14336."""

_MOST_ROUNDS = 1000
"""The simulated moves come to rest long before; a bound, so that no input can make the rule run for ever."""


@dataclass(frozen=True)
class PetalsSpec:
    """The parameters of PETALS beyond the performance model."""

    join_order: tuple[int, ...]
    hidden_size: int
    cache_bytes_per_block: float
    """Cache that is set aside per block: one session of 4096 tokens."""
    forward_rps: FloatArray
    """(n,): requests per second of one block, as announced."""
    network_rps: FloatArray
    """(n,): what the link carries."""
    hop_overhead_seconds: float
    full_penalty_seconds: float
    """Added in routing to every link into a server without a free session."""
    raw_rtt_seconds: FloatArray
    """(C + n, C + n): clients first, then servers."""
    allocation_seconds: float
    """A constant that the published simulator charges every request before its first token."""

    @property
    def autograd_bytes(self) -> float:
        return AUTOGRAD_BYTES_AT_14336 * self.hidden_size / 14336


def petals_sizes(model: PerfModel, spec: PetalsSpec) -> IntArray:
    """Blocks per server: memory less autograd, each block with one 4096-token session; (n,)."""
    room = (model.memory_bytes - spec.autograd_bytes) / (model.block_bytes + spec.cache_bytes_per_block)
    return np.clip(np.floor(room + 1e-9), 0, model.block_limit).astype(np.int64)


def petals_throughput(spec: PetalsSpec, sizes: IntArray) -> FloatArray:
    """The throughput that a server of m blocks announces: min(forward / ((m + 1) / 2), network); (n,)."""
    return np.minimum(spec.forward_rps / ((sizes + 1) / 2), spec.network_rps)


def petals_pool_slots(model: PerfModel, spec: PetalsSpec, sizes: IntArray) -> IntArray:
    """Cache slots of the pool m_j x cache4096 (not of all left-over memory); (n,)."""
    pools: FloatArray = sizes.astype(np.float64) * spec.cache_bytes_per_block
    return whole_slots(pools / model.session_bytes)


def petals_pool_sessions(model: PerfModel, spec: PetalsSpec, sizes: IntArray) -> IntArray:
    """Sessions that the routing believes fit: cache4096 / s_c, whatever the size; (n,)."""
    return np.where(sizes > 0, whole_slots(np.asarray(spec.cache_bytes_per_block / model.session_bytes)), 0)


# --- placement ------------------------------------------------------------------------------------------------


def weakest_window(throughputs: Sequence[Sequence[float]], size: int) -> int:
    """Where a joining server of `size` blocks goes, given the throughputs of the servers at every block.

    The window whose ascending vector of summed throughputs is lexicographically smallest; ties -> the first.  Sums
    are correctly rounded, so equal multisets are equal whatever the order in which the servers joined.
    """
    totals = [math.fsum(at_block) for at_block in throughputs]
    return least_served_window(totals, size)


def petals_place(
    num_blocks: int, sizes: IntArray, throughput: FloatArray, join_order: Sequence[int]
) -> tuple[BlockRange | None, ...]:
    """Servers join one at a time, each at the weakest window; a server of size 0 stays out."""
    at_block: list[list[float]] = [[] for _ in range(num_blocks)]
    ranges: list[BlockRange | None] = [None] * len(sizes)
    for j in join_order:
        size = int(sizes[j])
        if size == 0:
            continue
        start = weakest_window(at_block, size)
        ranges[j] = BlockRange(start, start + size)
        for block in range(start, start + size):
            at_block[block].append(float(throughput[j]))
    return tuple(ranges)


def petals_should_move(
    ranges: Sequence[BlockRange],
    throughput: Sequence[float],
    mover: int,
    num_blocks: int,
    shuffles: np.random.Generator,
    balance_quality: float = 0.75,
) -> bool:
    """PETALS' rebalancing rule: whether server `mover` should look for other blocks now.

    It stays if leaving would take some block's positive throughput to zero; otherwise it simulates its own move and
    then repeated moves of all servers in random order until none moves, and moves if the swarm's weakest block would
    gain enough: present / simulated minimum < balance_quality - 1e-3.
    """
    tolerance = 1e-3
    spans = list(ranges)
    totals = np.zeros(num_blocks)
    for span, rate in zip(spans, throughput, strict=True):
        totals[span.start : span.stop] += rate
    present = float(totals.min())

    def take(j: int, factor: float) -> None:
        totals[spans[j].start : spans[j].stop] -= throughput[j] * factor

    def place_at(j: int, start: int) -> None:
        spans[j] = BlockRange(start, start + len(spans[j]))
        totals[start : spans[j].stop] += throughput[j]

    take(mover, 1 + tolerance)
    if present > tolerance and float(totals.min()) <= 0:
        return False
    start = least_served_window(totals, len(spans[mover]))
    if spans[mover].start == start:
        return False
    totals[spans[mover].start : spans[mover].stop] += throughput[mover] * tolerance
    place_at(mover, start)
    for _ in range(_MOST_ROUNDS):
        moved = False
        for j in shuffles.permutation(len(spans)).tolist():
            take(j, 1 + tolerance)
            start = least_served_window(totals, len(spans[j]))
            totals[spans[j].start : spans[j].stop] += throughput[j] * tolerance
            moved |= start != spans[j].start
            place_at(j, start)
        if not moved:
            break
    simulated = float(totals.min())
    if simulated < present or simulated < tolerance:
        return False
    return present / simulated < balance_quality - tolerance


# --- routing --------------------------------------------------------------------------------------------------


class PetalsRouter:
    """PETALS' routing of one client over a placement: half round trips between servers, overhead, tau per block.

    The costs differ from the time a request really takes; that is one source of PETALS' loss.
    """

    def __init__(
        self,
        model: PerfModel,
        spec: PetalsSpec,
        ranges: tuple[BlockRange | None, ...],
        allowed_sessions: IntArray,
        client: int,
        units_per_block: int = 1,
    ) -> None:
        self._units = units_per_block
        self.graph = HopGraph(model.num_blocks, ranges)
        self._allowed = allowed_sessions.tolist()
        self._penalty = spec.full_penalty_seconds
        self._half = (spec.raw_rtt_seconds / 2).tolist()
        self._client = client
        self._first_server = model.num_clients
        decode = model.decode_seconds.tolist()
        overhead = spec.hop_overhead_seconds

        def cost(i: int, j: int, blocks: int) -> float:
            here = client if i == SOURCE else self._first_server + i
            return float(self._half[here][self._first_server + j] + overhead + decode[j] * blocks)

        self._edges: Edges = self.graph.edges(cost)
        self._sizes = {j: len(hosted) for j, hosted in enumerate(ranges) if hosted is not None}

    def route(self, ledger: Ledger, now_seconds: float) -> Decision | None:
        """The route, and the wait until the pool has its slots; None if no chain can ever have room."""
        tolls = self._tolls(ledger)
        found: ChainResult | None = self.graph.cheapest(self._edges, tolls, self._exit)
        if found is None:
            return None
        wait = max(ledger.wait(j, len(blocks) * self._units, now_seconds) for j, blocks in found.chain)
        return Decision(found.chain, found.cost, wait)

    def _exit(self, j: int) -> float:
        return float(self._half[self._client][self._first_server + j])

    def _tolls(self, ledger: Ledger) -> Mapping[int, Sequence[float]]:
        """The penalty where the allowed sessions are exactly used up (over-booked servers pay none: published so);
        hops that can never have room are closed."""
        tolls = {}
        for j, size in self._sizes.items():
            full = self._allowed[j] - ledger.sessions(j) == 0
            if full or ledger.units[j] < size * self._units:
                penalty = self._penalty if full else 0.0
                tolls[j] = [penalty if k * self._units <= ledger.units[j] else float("inf") for k in range(size + 1)]
        return tolls
