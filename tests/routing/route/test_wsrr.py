"""WS-RR, its ledger and its retry grid; the exact routers are never worse in the metric that is felt."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from blockswarm.routing.hops import HopGraph
from blockswarm.routing.route.costs import HubCosts
from blockswarm.routing.route.lattice import Spans
from blockswarm.routing.route.search import ChainSearch
from blockswarm.routing.route.wsrr import Ledger, WaitingRouter, retry_wait_seconds
from blockswarm.routing.sim.runs.product import LedgerRooms
from blockswarm.routing.swarm import BlockRange
from hypothesis import assume, given, settings
from hypothesis import strategies as st


@st.composite
def states(draw: st.DrawFn) -> tuple[HopGraph, list[float], list[float], Ledger]:
    """A placement, hop costs, and peers with sessions booked on them, also more than fit."""
    num_blocks = draw(st.integers(1, 6))
    ranges = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, num_blocks - 1))
        ranges.append(BlockRange(start, draw(st.integers(start + 1, num_blocks))))
    n = len(ranges)
    times = st.lists(st.integers(0, 20).map(float), min_size=n, max_size=n)
    ledger = Ledger(draw(st.lists(st.integers(0, 8), min_size=n, max_size=n)))
    for _ in range(draw(st.integers(0, 8))):
        j = draw(st.integers(0, n - 1))
        ledger.book([(j, ranges[j])], draw(st.integers(1, 30)))
    return HopGraph(num_blocks, tuple(ranges)), draw(times), draw(times), ledger


def router(graph: HopGraph, visit: list[float], per_block: list[float]) -> WaitingRouter:
    return WaitingRouter(graph, graph.hub_edges(np.array(visit), np.array(per_block)))


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(state=states())
def test_the_product_router_is_never_worse_and_wsrr_bounds_its_own_optimum(
    state: tuple[HopGraph, list[float], list[float], Ledger],
) -> None:
    """felt(ours) <= felt(optimal over whole ranges) <= felt(WS-RR) <= WS-RR's path cost (Corollary 2)."""
    graph, visit, per_block, ledger = state
    routing = router(graph, visit, per_block)
    relaxed, optimal = routing.route(ledger, 0.0), routing.optimal_route(ledger, 0.0)
    assert (relaxed is None) == (optimal is None)
    costs = HubCosts(np.array(visit), np.array(per_block))
    everything = np.array(ledger.units)
    ours = ChainSearch(Spans.of(graph.num_blocks, graph.ranges), costs).cheapest(
        LedgerRooms(ledger, 0.0, 1, everything)
    )
    if relaxed is None or optimal is None:
        return
    assert ours is not None
    felt = costs.chain_seconds(relaxed.chain) + relaxed.wait_seconds
    assert ours.total_seconds <= optimal.path_cost_seconds + 1e-9
    assert optimal.path_cost_seconds <= felt + 1e-9
    assert felt <= relaxed.path_cost_seconds + 1e-9


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(state=states())
def test_the_optimal_route_is_the_best_limit_on_the_wait(
    state: tuple[HopGraph, list[float], list[float], Ledger],
) -> None:
    """Against the specification: for every distinct wait w the cheapest chain over hops that wait at most w."""
    graph, visit, per_block, ledger = state
    edges = graph.hub_edges(np.array(visit), np.array(per_block))
    waits = {j: ledger.waits(j, len(r), 0.0) for j, r in enumerate(graph.ranges) if r is not None}
    distinct = {w for ws in waits.values() for w in ws if w < float("inf")}
    found = []
    for limit in distinct:
        closed = {j: [0.0 if w <= limit else float("inf") for w in ws] for j, ws in waits.items()}
        chain = graph.cheapest(edges, closed)
        if chain is not None:
            found.append(chain.cost + limit)
    optimal = router(graph, visit, per_block).optimal_route(ledger, 0.0)
    assert (optimal.path_cost_seconds if optimal else None) == (pytest.approx(min(found)) if found else None)


@pytest.mark.long
@given(
    units=st.integers(0, 30),
    sessions=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), max_size=8),
    now=st.integers(0, 20),
    need=st.integers(1, 3),
)
def test_waits_release_sessions_in_order_of_their_end(
    units: int, sessions: list[tuple[int, int]], now: int, need: int
) -> None:
    ledger = Ledger([units])
    for end, blocks in sessions:
        ledger.book([(0, BlockRange(0, blocks))], float(end), need)
    ledger.expire(float(now))
    active = sorted((end, blocks * need) for end, blocks in sessions if end > now)
    assert ledger.sessions(0) == len(active)

    def slow(blocks: int) -> float:
        free = units - sum(u for _, u in active)
        for wait, released in [(0, 0), *((end - now, u) for end, u in active)]:
            free += released
            if free >= blocks * need:
                return float(wait)
        return float("inf")

    expected = [0.0, *(slow(blocks) for blocks in range(1, 7))]
    assert ledger.waits(0, 6, float(now), need)[1:] == expected[1:]
    assert [ledger.wait(0, blocks * need, float(now)) for blocks in range(1, 7)] == expected[1:]
    for limit in (0.0, 5.0, 40.0):
        within = ledger.free_within(0, limit, float(now)) // need
        assert [b for b in range(1, 7) if b <= within] == [b for b in range(1, 7) if expected[b] <= limit]


def test_a_cancelled_booking_leaves_no_trace() -> None:
    ledger = Ledger([4, 4])
    chain = ((0, BlockRange(0, 2)), (1, BlockRange(2, 5)))
    ledger.book(chain, 9.0)
    ledger.cancel(chain, 9.0)
    assert (ledger.free(0), ledger.free(1), ledger.sessions(0)) == (4, 4, 0)
    with pytest.raises(ValueError):
        ledger.cancel(chain, 9.0)


@given(st.floats(0, 5000))
def test_a_wait_ends_at_the_first_retry_at_or_after_it(wait: float) -> None:
    grid = list(itertools.accumulate([0, *(min(2**i, 60) for i in range(100))]))
    rounded = retry_wait_seconds(wait)
    assert rounded in grid
    assume(wait not in grid)
    assert rounded == min(g for g in grid if g >= wait - 1e-9)


def test_the_published_grid() -> None:
    assert [retry_wait_seconds(w) for w in (0, 0.5, 1, 3.1, 63.5, 124, 183, 184)] == [0, 1, 1, 7, 123, 183, 183, 243]
