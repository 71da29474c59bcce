"""CG-BP and CG-BPRR: conservative greedy block placement, its bound, and the choice of R.

Source: BPRR paper (arXiv 2512.21884), Alg. 1, Theorem 2, Corollary 1.  Symbols: R concurrency, m_j sizes,
t~_j amortised_seconds, f_j full_sessions, C_b capacities, T_b backlog, K covering.  O(n L log L) with prefix sums.

Deviations, both outside the paper's text: a peer too small for one block is dropped instead of divided by, and sums
are compared with a relative tolerance, so that "ties -> smallest first block" holds as in exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..hops import ChainResult, HopGraph
from ..perf import FloatArray, IntArray, PerfModel, decimal_floor
from ..swarm import BlockRange, Placement, RequestSpec, Swarm
from .windows import least_served_window, window_sums

_TOLERANCE = 1e-12
MAX_CONCURRENCY = 10**9
"""Upper limit of the search for the largest feasible R (with tiny caches it would go on for long)."""


class InfeasiblePlacementError(ValueError):
    """No placement leaves room for that concurrency; the greedy pass could not place `missing_blocks`."""

    def __init__(self, concurrency: int, missing_blocks: tuple[int, ...]) -> None:
        self.concurrency = concurrency
        self.missing_blocks = missing_blocks
        super().__init__(
            f"blocks {format_blocks(missing_blocks)} cannot be placed with room for R={concurrency} sessions: "
            "lower R or add memory"
        )


def format_blocks(blocks: Iterable[int]) -> str:
    """Ascending block numbers as inclusive runs: (1, 2, 3, 7) -> "1-3, 7"."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


@dataclass(frozen=True)
class CgbpPlan:
    """A feasible CG-BP placement; arrays and tuples are per peer, in the model's order, unless said otherwise."""

    concurrency: int
    ranges: tuple[BlockRange | None, ...]
    order: tuple[int, ...]
    """The peers in the order they were placed (increasing amortised time); peers without a block are absent."""
    sizes: IntArray
    full_sessions: IntArray
    amortised_seconds: FloatArray
    """t~_j; infinite for a peer without a block."""
    capacities: IntArray
    """C_b: sessions the placed peers carry at each block, (L,)."""
    covering: int
    """K: how many peers, in greedy order, it took until every block was covered."""
    bound_seconds: float
    """Theorem 2: no request among at most R concurrent ones needs more per token."""


def conservative_sizes(model: PerfModel, concurrency: int) -> IntArray:
    """Step 1: m_j = min(floor(M_j / (s_m + s_c R)), limit), (n,); 0 where not even one block fits."""
    fitting = np.floor(model.memory_bytes / (model.block_bytes + model.session_bytes * concurrency) + 1e-9)
    return np.minimum(fitting, model.block_limit).astype(np.int64)


def is_feasible(model: PerfModel, concurrency: int) -> bool:
    """Corollary 1's exact test: the sizes for R add up to at least L blocks."""
    return int(conservative_sizes(model, concurrency).sum()) >= model.num_blocks


def largest_feasible_concurrency(model: PerfModel) -> int:
    """R_max by bisection (feasibility is monotone in R); 0 if not even R = 1 is feasible."""
    low, high = 0, 1
    while high <= MAX_CONCURRENCY and is_feasible(model, high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_feasible(model, middle) else (low, middle)
    return low


def closed_form_concurrency(model: PerfModel) -> int:
    """The paper's formula for R_max. Information only: it ignores min(m_j, L) and may be off either way."""
    blocks = model.num_blocks + model.num_peers
    spare = float(model.memory_bytes.sum()) - float(np.max(model.block_bytes)) * blocks
    return decimal_floor(spare / (float(np.max(model.session_bytes)) * blocks))


def place(model: PerfModel, concurrency: int) -> CgbpPlan:
    """Steps 1 and 2 of Alg. 1. Raises InfeasiblePlacementError if some block stays unplaced."""
    cover = _cover(model, concurrency)
    starts, capacities = dict(cover.starts), cover.capacities.copy()
    for j in cover.order[cover.covering :]:
        size = int(cover.sizes[j])
        starts[j] = start = least_served_window(capacities, size)
        capacities[start : start + size] += cover.full_sessions[j]
    return CgbpPlan(
        concurrency=concurrency,
        ranges=tuple(
            BlockRange(starts[j], starts[j] + int(cover.sizes[j])) if j in starts else None
            for j in range(model.num_peers)
        ),
        order=cover.order,
        sizes=cover.sizes,
        full_sessions=cover.full_sessions,
        amortised_seconds=cover.amortised_seconds,
        capacities=capacities,
        covering=cover.covering,
        bound_seconds=_theorem_2(model, cover),
    )


def bound_of_placement(model: PerfModel, concurrency: int) -> float:
    """Theorem 2's bound of `place(model, concurrency)` in seconds. Raises InfeasiblePlacementError as that does.

    Only the K peers that cover all blocks count; in a large swarm they are few, and the others are not placed.
    """
    return _theorem_2(model, _cover(model, concurrency))


def amortised_seconds(model: PerfModel, sizes: IntArray) -> FloatArray:
    """t~_j = (max_c t_cj + tau_j m_j) / m_j, (n,); infinite for a peer without a block."""
    used = sizes > 0
    farthest = model.rtt_seconds.max(axis=0)
    amortised = np.full(model.num_peers, np.inf)
    amortised[used] = (farthest[used] + model.decode_seconds[used] * sizes[used]) / sizes[used]
    return amortised


def greedy_order(amortised_seconds: FloatArray) -> tuple[int, ...]:
    """The peers that host something by increasing amortised time; equal times keep the input order."""
    by_time = np.argsort(amortised_seconds, kind="stable")
    by_time = by_time[np.isfinite(amortised_seconds[by_time])]
    times, order = amortised_seconds[by_time], by_time.tolist()
    if (np.diff(times) > _TOLERANCE * times[1:]).all():
        return tuple(order)
    result: list[int] = []
    group: list[int] = []
    for j in order:
        if group and amortised_seconds[j] - amortised_seconds[group[0]] > _TOLERANCE * amortised_seconds[j]:
            result += sorted(group)
            group = []
        group.append(j)
    return tuple(result + sorted(group))


@dataclass(frozen=True)
class _Cover:
    """Step 1, and step 2 up to the K-th peer. Arrays are per peer, in the model's order, unless said otherwise."""

    sizes: IntArray
    full_sessions: IntArray
    amortised_seconds: FloatArray
    order: tuple[int, ...]
    """The greedy order of all peers with a block."""
    covering: int
    """K."""
    starts: Mapping[int, int]
    """The first block of each of the first K peers."""
    capacities: IntArray
    """C_b of these, (L,)."""


def _cover(model: PerfModel, concurrency: int) -> _Cover:
    """Raises InfeasiblePlacementError if some block stays below R."""
    if concurrency < 1:
        raise ValueError(f"the concurrency R must be at least 1, not {concurrency}")
    sizes = conservative_sizes(model, concurrency)
    amortised = amortised_seconds(model, sizes)
    sessions = model.full_sessions(sizes)
    order = greedy_order(amortised)
    capacities = np.zeros(model.num_blocks, dtype=np.int64)
    dummy = float(amortised[list(order)].max()) + 0.001 if order else 0.001
    backlog = np.full(model.num_blocks, concurrency * dummy)
    starts: dict[int, int] = {}
    for rank, j in enumerate(order):
        size = int(sizes[j])
        start = _most_backlogged_window(backlog, capacities < concurrency, size)
        window = slice(start, start + size)
        newly = np.clip(concurrency - capacities[window], 0, sessions[j])
        backlog[window] -= (dummy - amortised[j]) * newly
        capacities[window] += sessions[j]
        starts[j] = start
        if (capacities >= concurrency).all():
            return _Cover(sizes, sessions, amortised, order, rank + 1, starts, capacities)
    missing = tuple(int(block) for block in np.flatnonzero(capacities < concurrency))
    raise InfeasiblePlacementError(concurrency, missing)


def _theorem_2(model: PerfModel, cover: _Cover) -> float:
    """One walk of the farthest client through peers 1..K, less the overlap charged to the K-th."""
    first, sizes = cover.order[: cover.covering], cover.sizes
    walk = math.fsum(float(cover.amortised_seconds[q] * sizes[q]) for q in first)
    overlap = int(sum(sizes[q] for q in first)) - model.num_blocks
    return walk - float(model.decode_seconds[first[-1]]) * overlap


def _most_backlogged_window(backlog: FloatArray, short: np.ndarray, size: int) -> int:
    """Among windows with a block below R the one with the largest sum of T_b; ties -> the first."""
    sums = np.where(window_sums(short.astype(np.int64), size) > 0, window_sums(backlog, size), -np.inf)
    return int(np.flatnonzero(sums >= sums.max() - _TOLERANCE * float(backlog.sum()))[0])


# --- CG-BPRR: step 3, and the offline objective ---------------------------------------------------------------


def cheapest_token_chain(model: PerfModel, ranges: tuple[BlockRange | None, ...], client: int) -> ChainResult | None:
    """Step 3: the chain of least per-token time t^c_ij (optimal for the placement, Lemma 3)."""
    graph = HopGraph(model.num_blocks, ranges)
    return graph.cheapest(graph.hub_edges(*model.token_hop_seconds(client)))


# --- the design concurrency R ---------------------------------------------------------------------------------


def lone_request_seconds(model: PerfModel, fixed_seconds: float) -> float:
    """T_1: the time of one request of client 0 under CG-BPRR with R = 1, plus `fixed_seconds`."""
    plan = place(model, 1)
    chain = cheapest_token_chain(model, plan.ranges, 0)
    assert chain is not None, "a covered placement has a chain"
    return model.request_seconds(0, chain.chain) + fixed_seconds


def poisson_concurrency(requests_per_second: float, held_seconds: float) -> int:
    """Mean plus one standard deviation of the Poisson number in system, rounded (x.5 up), at least 1."""
    mean = requests_per_second * held_seconds
    return max(1, decimal_floor(mean + math.sqrt(mean) + 0.5))


def published_concurrency(model: PerfModel, requests_per_second: float, initial_delay_seconds: float) -> int:
    """R by the published rule: min(round(x + sqrt(x)), R_max) with x = rate * T_1 and the closed-form R_max.

    T_1 is estimated without the block limits and without the allocation delay, as published.  Raises
    InfeasiblePlacementError where R_max < 1.
    """
    held = lone_request_seconds(model.without_block_limits(), initial_delay_seconds)
    ceiling = closed_form_concurrency(model)
    if ceiling < 1:
        raise InfeasiblePlacementError(1, tuple(range(model.num_blocks)))
    return min(poisson_concurrency(requests_per_second, held), ceiling)


def mean_request_seconds(model: PerfModel, ranges: tuple[BlockRange | None, ...]) -> float:
    """Mean over the clients of the cheapest whole request, without waiting."""
    graph = HopGraph(model.num_blocks, ranges)
    found = [graph.cheapest(graph.hub_edges(*model.request_hop_seconds(c))) for c in range(model.num_clients)]
    return math.fsum(chain.cost for chain in found if chain is not None) / len(found)


def harmless_concurrency(model: PerfModel, demand: int) -> int:
    """The largest R >= demand reached without lengthening the shortest chain on the way; `demand` if even the next
    smaller sizes lengthen it.  Capped at R_max (which it returns for a larger demand; the swarm is then overloaded).

    Raises InfeasiblePlacementError if R = 1 is infeasible.  One placement per change of some peer's size.
    """
    ceiling = largest_feasible_concurrency(model)
    if ceiling < 1:
        place(model, 1)
    concurrency = same_sizes(model, min(demand, ceiling), ceiling)[1]
    shortest = mean_request_seconds(model, place(model, concurrency).ranges)
    while concurrency < ceiling:
        longer = mean_request_seconds(model, place(model, concurrency + 1).ranges)
        if longer > shortest * (1 + 1e-9):
            break
        concurrency = same_sizes(model, concurrency + 1, ceiling)[1]
    return concurrency


def distinct_concurrencies(model: PerfModel) -> list[int]:
    """The feasible R that matter, ascending: of those that give every peer the same size only the largest."""
    ceiling = largest_feasible_concurrency(model)
    found: list[int] = []
    last = 0
    while last < ceiling:
        last = same_sizes(model, last + 1, ceiling)[1]
        found.append(last)
    return found


def same_sizes(model: PerfModel, concurrency: int, ceiling: int) -> tuple[int, int]:
    """The smallest and, up to `ceiling`, the largest R that give every peer as many blocks as `concurrency` does."""
    sizes = conservative_sizes(model, concurrency)

    def same(other: int) -> bool:
        return np.array_equal(conservative_sizes(model, other), sizes)

    first, beyond = 0, ceiling + 1  # sizes only shrink as R grows
    low, high = concurrency, concurrency
    while low - first > 1:
        middle = (first + low) // 2
        first, low = (first, middle) if same(middle) else (middle, low)
    while beyond - high > 1:
        middle = (high + beyond) // 2
        high, beyond = (middle, beyond) if same(middle) else (high, middle)
    return low, high


def place_swarm(
    swarm: Swarm, *, request: RequestSpec, client_rtt_seconds: FloatArray, concurrency: int
) -> tuple[Placement, CgbpPlan]:
    """CG-BP from scratch over a snapshot's peers, whatever they host now; `client_rtt_seconds` is (C, n).

    Raises InfeasiblePlacementError. Peers of every state count: filter the snapshot first.
    """
    plan = place(PerfModel.of_swarm(swarm, request=request, client_rtt_seconds=client_rtt_seconds), concurrency)
    hosted = zip(swarm.peers, plan.ranges, strict=True)
    return Placement({peer.id: blocks for peer, blocks in hosted if blocks is not None}), plan
