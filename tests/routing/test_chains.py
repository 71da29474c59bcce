"""Chain composition: memory is never over-committed, GCA's first chain is the shortest, Theorem 4 against queues."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from blockswarm.routing.chains import (
    CapacityChain,
    ChainModel,
    FastestFreeChain,
    NoCompleteChainError,
    choose_capacity,
    compose,
    gbp_cr,
    gca,
    theorem_4,
)
from blockswarm.routing.hops import HopGraph
from blockswarm.routing.swarm import BlockRange
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def models(draw: st.DrawFn) -> ChainModel:
    n, blocks = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    numbers = st.lists(st.integers(1, 30).map(float), min_size=n, max_size=n)
    return ChainModel(blocks, 2.0, 0.5, np.array(draw(numbers)), np.array(draw(numbers)), np.array(draw(numbers)) / 10)


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(model=models(), capacity=st.integers(1, 6), rate=st.integers(1, 50).map(lambda r: r / 10))
def test_composed_chains_fit_in_memory_and_use_up_every_link(model: ChainModel, capacity: int, rate: float) -> None:
    try:
        composed = gbp_cr(model, capacity, rate, 0.7)
    except NoCompleteChainError:
        return
    for chain in composed.disjoint_chains:
        covered = {block for j in chain for block in composed.ranges[j] or ()}
        assert covered == set(range(model.num_blocks))
    chains = compose(model, composed.ranges)
    used = np.zeros(len(model.memory_bytes))
    for chain in chains:
        assert chain.capacity >= 1
        for j, blocks in chain.chain:
            used[j] += chain.capacity * len(blocks)
    slots = np.array(model.residual_slots(composed.ranges))
    assert (used <= slots).all()
    assert [c.service_seconds for c in chains] == sorted(c.service_seconds for c in chains)
    graph = HopGraph(model.num_blocks, composed.ranges)
    left = slots - used
    closed = {j: [0.0 if k <= left[j] else math.inf for k in range(99)] for j in range(len(left))}
    assert graph.cheapest(graph.hub_edges(model.visit_seconds, model.block_seconds), closed) is None


@st.composite
def placements(draw: st.DrawFn) -> tuple[int, tuple[BlockRange | None, ...]]:
    """Up to eight peers with any ranges, some without."""
    blocks = draw(st.integers(1, 8))
    bounds = st.tuples(st.integers(0, blocks), st.integers(0, blocks))
    drawn = draw(st.lists(bounds, min_size=1, max_size=8))
    return blocks, tuple(BlockRange(min(ends), max(ends)) if ends[0] != ends[1] else None for ends in drawn)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(placed=placements(), data=st.data())
def test_gca_finds_what_the_hop_graph_finds_round_after_round(
    placed: tuple[int, tuple[BlockRange | None, ...]], data: st.DataObject
) -> None:
    """The same chains, also among many of equal cost, as Lemma 1's graph gives with the closed links forbidden."""
    blocks, ranges = placed
    small = st.lists(st.integers(1, 4), min_size=len(ranges), max_size=len(ranges))
    visit, per_block = (np.array(data.draw(small)) / 3 for _ in range(2))
    residual = [6 * count for count in data.draw(small)]
    graph = HopGraph(blocks, ranges)
    edges = graph.hub_edges(visit, per_block)
    for found in gca(blocks, ranges, tuple(residual), visit, per_block):
        closed = {j: [0.0 if k <= left else math.inf for k in range(blocks + 1)] for j, left in enumerate(residual)}
        expected = graph.cheapest(edges, closed)
        assert expected is not None
        assert found.chain == expected.chain
        assert found.service_seconds == pytest.approx(expected.cost)
        assert found.capacity == min(residual[j] // len(b) for j, b in found.chain)
        for j, b in found.chain:
            residual[j] -= found.capacity * len(b)
    closed = {j: [0.0 if k <= left else math.inf for k in range(blocks + 1)] for j, left in enumerate(residual)}
    assert graph.cheapest(edges, closed) is None


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(model=models(), rate=st.integers(1, 50).map(lambda r: r / 10))
def test_the_chosen_c_is_the_best_of_all(model: ChainModel, rate: float) -> None:
    def bound(capacity: int) -> float:
        try:
            return theorem_4(compose(model, gbp_cr(model, capacity, rate, 0.7).ranges), rate).response_seconds[0]
        except NoCompleteChainError:
            return math.inf

    try:
        chosen = choose_capacity(model, rate, 0.7)
    except NoCompleteChainError:
        assert bound(1) == math.inf
        return
    assert bound(chosen) == min(bound(c) for c in range(1, 60))


def erlang_c_occupancy(servers: int, rate: float, service: float) -> float:
    """E[N] of M/M/c, by the textbook formula."""
    load = rate * service
    rho = load / servers
    waiting = load**servers / math.factorial(servers) / (1 - rho)
    p0 = 1 / (sum(load**k / math.factorial(k) for k in range(servers)) + waiting)
    return load + p0 * waiting * rho / (1 - rho)


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.5), (3, 2.0), (20, 15.0), (100, 99.0)])
def test_equal_chains_are_an_mmc_queue(servers: int, rate: float) -> None:
    bounds = theorem_4([CapacityChain((), servers, 1.0)], rate)
    assert bounds.occupancy == pytest.approx((erlang_c_occupancy(servers, rate, 1.0),) * 2)
    assert bounds.response_seconds[0] == pytest.approx(bounds.occupancy[0] / rate)


@pytest.mark.long
def test_the_bounds_enclose_a_simulated_jffc_queue() -> None:
    """Two unequal chains, exponential sizes: the simulated mean number lies between the bounds."""
    chains = [CapacityChain((), 2, 1.0), CapacityChain((), 3, 4.0)]
    rate, rng, time, area = 2.2, random.Random(1), 0.0, 0.0
    busy, queue = [0, 0], 0
    for _ in range(150_000):
        rates = [rate, busy[0] / chains[0].service_seconds, busy[1] / chains[1].service_seconds]
        step = rng.expovariate(sum(rates))
        area += step * (sum(busy) + queue)
        time += step
        event = rng.choices((0, 1, 2), rates)[0]
        if event == 0:
            free = [k for k in (0, 1) if busy[k] < chains[k].capacity]
            if free:
                busy[free[0]] += 1
            else:
                queue += 1
        elif queue:
            queue -= 1
        else:
            busy[event - 1] -= 1
    low, high = theorem_4(chains, rate).occupancy
    assert low * 0.97 <= area / time <= high * 1.03


def test_an_unstable_system_has_infinite_bounds_and_a_huge_one_is_computed() -> None:
    assert theorem_4([CapacityChain((), 3, 1.0)], 3.0).occupancy == (math.inf, math.inf)
    assert theorem_4([], 1.0).occupancy == (math.inf, math.inf)
    low, _ = theorem_4([CapacityChain((), 100_000, 1.0)], 90_000.0).occupancy
    assert low == pytest.approx(90_000.0, rel=1e-6)
    assert theorem_4([CapacityChain((), 10**12, 2.0)], 3.0).occupancy[1] == pytest.approx(6.0)


def test_requests_join_the_fastest_free_chain_of_their_client() -> None:
    free = FastestFreeChain([1, 2], [[5.0, 3.0], [2.0, 3.0]])
    assert [free.take(0), free.take(1), free.take(1), free.take(0)] == [1, 0, 1, None]
    free.give_back(0)
    assert free.take(0) == 0


def test_a_range_is_reserved_by_what_a_chain_computes_there() -> None:
    """Chains may share servers: overlapping hosts lend only the blocks used."""
    model = ChainModel(3, 1.0, 1.0, np.array([4.0, 4.0]), np.ones(2), np.ones(2))
    (first,) = compose(model, (BlockRange(0, 2), BlockRange(1, 3)))
    assert [(j, len(b)) for j, b in first.chain] == [(0, 2), (1, 1)]
    assert first.capacity == 1
