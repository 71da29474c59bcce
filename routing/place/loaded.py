"""How long a request takes on a placement, alone and among others that take up room.

The cheapest chain of a placement says nothing about a second request: if fast peers host many blocks and have room for
few caches, all other requests wait or take slower chains.  `request_times` fills the placement as requests would, each
on the cheapest chain with room, and computes the time of the next one.

Costs are hub-and-spoke; chains enter and leave peers anywhere.  The model is a fluid: sessions are divisible, so that
all clients' chains fill up at the same time, in proportion to their weights, and peers drop out one by one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from ..perf import FloatArray, IntArray, PerfModel

MAX_LEVELS = 4
"""Number of peers that may fill up; further requests count as waiting for the chains found until then."""


@dataclass(frozen=True)
class CheapestChains:
    """Per client the cheapest chain of a whole request."""

    seconds: FloatArray
    """(C,); infinite without a chain."""
    blocks_used: IntArray
    """Blocks that each client's chain computes on each peer, (C, n)."""


def cheapest_chains(model: PerfModel, ranges: IntArray) -> CheapestChains:
    """Cheapest hub-and-spoke chains over `ranges`, (n, 2), 0, 0 for an unused peer.  One pass, O(C n L) at worst."""
    steps, num_blocks, clients = model.new_tokens - 1, model.num_blocks, np.arange(model.num_clients)
    visit = np.ascontiguousarray((model.prefill_rtt_seconds + steps * model.rtt_seconds).T)
    per_block = (model.prefill_seconds + steps * model.decode_seconds)[:, None]
    blocks = np.arange(num_blocks)[:, None]
    at, peers = np.nonzero((ranges[:, 0] <= blocks) & (blocks < ranges[:, 1]))
    limits = np.searchsorted(at, np.arange(num_blocks + 1)).tolist()
    visits, paces = visit[peers], per_block[peers]
    done = np.zeros(model.num_clients)  # The cheapest way to have the blocks so far, (C,).
    under_way = np.full(visit.shape, np.inf)  # The same if it ends on this peer, (n, C).
    entered = np.zeros(visit.shape, dtype=np.int64)  # Where that way entered the peer.
    last_peer, last_entry = np.zeros((2, num_blocks, model.num_clients), dtype=np.int64)
    blocks_used = np.zeros(visit.T.shape, dtype=np.int64)
    for block, (first, last) in enumerate(itertools.pairwise(limits)):
        if first == last:
            return CheapestChains(np.full(model.num_clients, np.inf), blocks_used)
        hosts, anew = peers[first:last], visits[first:last] + done
        onward = under_way.take(hosts, 0)
        entry = entered.take(hosts, 0)
        entry[anew < onward] = block
        cost = np.minimum(onward, anew)
        cost += paces[first:last]
        under_way[hosts], entered[hosts] = cost, entry
        best = cost.argmin(axis=0)
        done, last_peer[block], last_entry[block] = cost[best, clients], hosts[best], entry[best, clients]
    end = np.full(model.num_clients, num_blocks)
    while (open_ := np.flatnonzero(end > 0)).size:
        peer, entry = last_peer[end[open_] - 1, open_], last_entry[end[open_] - 1, open_]
        blocks_used[open_, peer] += end[open_] - entry
        end[open_] = entry
    return CheapestChains(done, blocks_used)


@dataclass(frozen=True)
class RequestTimes:
    """Seconds of a whole request; infinite without a chain."""

    alone: FloatArray
    """(C,): each client's request with no other there."""
    among_others: float
    """Mean of the clients, among others that take up room."""


def request_times(
    model: PerfModel, ranges: IntArray, client_weights: FloatArray, concurrent_requests: float
) -> RequestTimes:
    """Times of requests that find a Poisson number of others running, `concurrent_requests` (> 0) on average.

    A request takes the cheapest chain with room, or waits for a cheaper one if it would then end earlier.  `ranges` as
    in `cheapest_chains`; peers without room for one session at all their blocks do not count.  Some weights may be 0.
    """
    weights = client_weights / client_weights.sum()
    sizes = ranges[:, 1] - ranges[:, 0]
    free = np.where(model.full_sessions(sizes) > 0, model.cache_slots(sizes), 0).astype(np.float64)
    others, probability = _poisson(concurrent_requests)
    expected = np.full(len(others), np.inf)
    found = first = cheapest_chains(model, np.where(free[:, None] > 0, ranges, 0))
    sessions = busy_seconds = 0.0
    for level in range(MAX_LEVELS):
        if level > 0:
            found = cheapest_chains(model, np.where(free[:, None] > 0, ranges, 0))
        if not np.isfinite(found.seconds).all():
            break
        seconds = float(weights @ found.seconds)
        if seconds >= expected[-1]:
            break  # The last request would rather wait.
        slots = weights @ found.blocks_used
        used = slots > 0
        fitting = float((free[used] / slots[used]).min())
        free[used] -= fitting * slots[used]
        free[free < 1e-6] = 0.0
        sessions += fitting
        busy_seconds += fitting * seconds
        # A request without a place waits until enough sessions have ended; ends are spread evenly over the mean time.
        waiting = np.maximum(others + 1 - sessions, 0.0) / (sessions + 1) * busy_seconds / sessions
        expected = np.minimum(expected, seconds + waiting)
        if sessions > others[-1]:
            break
    counts = probability > 0  # the rarest numbers underflow to 0, which must not meet an infinite wait
    return RequestTimes(first.seconds, float(probability[counts] @ expected[counts]))


def _poisson(mean: float) -> tuple[IntArray, FloatArray]:
    """The numbers 0, 1, ... up to three standard deviations above the mean, and their probabilities."""
    numbers = np.arange(int(mean + 3.0 * math.sqrt(mean)) + 2)
    logarithms = numbers * math.log(mean) - np.concatenate(([0.0], np.cumsum(np.log(numbers[1:]))))
    weights = np.exp(logarithms - logarithms.max())
    return numbers, weights / weights.sum()
