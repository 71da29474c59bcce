"""Our rule for the design concurrency R: the R whose chains have the lowest predicted mean response.

The prediction is the lower bound of Theorem 4 (chains.py; the best surrogate in its authors' experiments and in our
sweeps) for GCA's chains on CG-BP's placement for R, at `LOAD_MARGIN` times the expected rate.  R cannot be too small:
chains that cannot sustain that rate have an infinite bound.

The search.  The prediction jumps wherever a chain needs one more peer, so a grid of R can miss the best by far (it lies
right before a jump).  Branch and bound over ranges of R: sizes only shrink as R grows, so over a range no chain is
faster than the cheapest cover of the blocks with the sizes of its smallest R, and no more sessions fit than with those
of its largest; Theorem 4 for that one ideal chain bounds the range.  A range that cannot beat the best R found is
dropped; any other is split at an R in its middle.  After the effort of `MOST_PEERS_PLACED` the search ends with the
best R found; swarms of up to a few hundred peers need less effort, and get the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..chains import LEAST_SERVICE, CapacityChain, gca, theorem_4
from ..perf import FloatArray, IntArray, PerfModel
from ..timing import OVERLOAD_SECONDS
from .cgbp import conservative_sizes, largest_feasible_concurrency, place, same_sizes

LOAD_MARGIN = 1.25
"""R is chosen for this multiple of the expected rate."""

MOST_PEERS_PLACED = 100_000
"""The effort of a search: placements times peers."""

_ENOUGH = 3.0
"""Chains beyond this many times the planned rate are hardly ever joined."""


@dataclass(frozen=True, slots=True, order=True)
class Merit:
    """The merit of an R, to six digits: smaller differences mean nothing.  Less is better; ties -> the larger R."""

    response_seconds: float
    """Predicted mean, seconds; infinite if the planned rate cannot be sustained."""
    overloaded_seconds: float
    """If it cannot be sustained: the mean response over an overload of `OVERLOAD_SECONDS`, as a fluid; else 0."""

    @classmethod
    def of(cls, chains: Sequence[CapacityChain], planned_rate: float, more: Sequence[CapacityChain] = ()) -> Merit:
        """The merit of these chains; with `more`, a bound for these and any slower ones that `more` outdo."""
        response = theorem_4([*chains, *more], planned_rate).response_seconds[0]
        if math.isfinite(response):
            return cls(_six_digits(response), 0.0)
        rate, possible_rate = _service_rate(chains), _service_rate([*chains, *more])
        served = sum(chain.capacity for chain in chains) / rate
        queued = OVERLOAD_SECONDS / 2 * (planned_rate / possible_rate - 1)
        return cls(math.inf, _six_digits(served + queued))


WORST = Merit(math.inf, math.inf)


def _service_rate(chains: Sequence[CapacityChain]) -> float:
    return math.fsum(chain.capacity / chain.service_seconds for chain in chains)


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


@dataclass(frozen=True, slots=True)
class _Range:
    """The R from `first` to `last` (whole groups of equal sizes), and a bound that none of them beats."""

    first: int
    last: int
    bound: Merit

    def promise(self, best: Merit) -> float:
        """The priority of searching this range: its logarithmic width times the share of the response it may save."""
        width = math.log((self.last + 1) / self.first)
        if not math.isfinite(best.response_seconds):
            return width
        return width * (1 - self.bound.response_seconds / best.response_seconds + 1e-6)


def best_concurrency(
    model: PerfModel, requests_per_second: float, fixed_seconds: float, *, most_peers_placed: int = MOST_PEERS_PLACED
) -> int:
    """The R of the least predicted mean response; of equal ones the largest.

    If no R carries `LOAD_MARGIN` times the rate, the one with the least mean response over `OVERLOAD_SECONDS`.
    `fixed_seconds` is held memory too.  Raises InfeasiblePlacementError if R = 1 is infeasible.
    """
    ceiling = largest_feasible_concurrency(model)
    if ceiling < 1:
        place(model, 1)
    planned_rate = requests_per_second * LOAD_MARGIN
    best, chosen = WORST, 0
    open_ranges = [_range(model, 1, ceiling, planned_rate, fixed_seconds)]
    for _ in range(max(1, most_peers_placed // model.num_peers)):
        open_ranges = [interval for interval in open_ranges if (interval.bound, -interval.last) < (best, -chosen)]
        if not open_ranges:
            break
        widest = max(open_ranges, key=lambda interval: (interval.promise(best), interval.last))
        open_ranges.remove(widest)
        first, last = same_sizes(model, round(math.sqrt(widest.first * widest.last)), widest.last)
        merit = predicted(model, last, planned_rate, fixed_seconds, best)
        if (merit, -last) < (best, -chosen):
            best, chosen = merit, last
        for low, high in ((widest.first, first - 1), (last + 1, widest.last)):
            if low <= high:
                open_ranges.append(_range(model, low, high, planned_rate, fixed_seconds))
    return chosen


def predicted(
    model: PerfModel, concurrency: int, planned_rate: float, fixed_seconds: float, least: Merit = WORST
) -> Merit:
    """Theorem 4's lower bound for GCA's chains on CG-BP's placement for that R.

    Or a merit worse than `least`, as soon as the chains so far show it: if even equal chains for all remaining memory,
    as fast as the last one, would not help.
    """
    plan = place(model, concurrency)
    slots = model.cache_slots(plan.sizes).tolist()
    sessions_left = sum(slots) // model.num_blocks
    chains: list[CapacityChain] = []
    rate = 0.0
    for found in gca(model.num_blocks, plan.ranges, slots, *model.mean_request_hop_seconds()):
        service = fixed_seconds + found.service_seconds
        chains.append(CapacityChain(found.chain, found.capacity, service))
        rate += found.capacity / service
        sessions_left -= found.capacity
        if rate >= _ENOUGH * planned_rate:
            break
        if len(chains).bit_count() == 1 and sessions_left > 0:
            ideal = Merit.of(chains, planned_rate, more=[CapacityChain((), sessions_left, service)])
            if ideal > least:
                return ideal
    return Merit.of(chains, planned_rate)


def _range(model: PerfModel, first: int, last: int, planned_rate: float, fixed_seconds: float) -> _Range:
    """With the bound: as many sessions as could ever fit, all as fast as one could ever be."""
    largest, smallest = conservative_sizes(model, first), conservative_sizes(model, last)
    possible = np.where(largest > 0, np.maximum(smallest, 1), 0)
    sessions = int(model.cache_slots(possible).sum()) // model.num_blocks
    if sessions < 1:
        return _Range(first, last, WORST)
    cover = cheapest_cover(model.num_blocks, largest, *model.mean_request_hop_seconds())
    service = fixed_seconds + max(cover, LEAST_SERVICE)
    return _Range(first, last, Merit.of([CapacityChain((), sessions, service)], planned_rate))


def cheapest_cover(num_blocks: int, sizes: IntArray, visit_seconds: FloatArray, block_seconds: FloatArray) -> float:
    """Least cost of computing all blocks by visits to peers of these sizes, if their blocks could be anywhere and each
    peer could be visited any number of times: no chain under any placement costs less.  O(n L + L^2)."""
    longest = int(sizes.max())
    lengths = np.arange(1, longest + 1)
    costs = visit_seconds[:, None] + block_seconds[:, None] * lengths
    visit = np.where(lengths <= sizes[:, None], costs, np.inf).min(axis=0)
    least = np.zeros(num_blocks + 1)
    for block in range(1, num_blocks + 1):
        reach = min(block, longest)
        least[block] = (least[block - reach : block][::-1] + visit[:reach]).min()
    return float(least[-1])
