"""Lemma 1's hops and the cheapest chain over them, against enumeration and against Dijkstra's tie rule."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from blockswarm.routing.hops import HopGraph
from blockswarm.routing.swarm import BlockRange
from hypothesis import given, settings
from hypothesis import strategies as st

Ranges = tuple[BlockRange | None, ...]


@st.composite
def placements(draw: st.DrawFn) -> tuple[int, Ranges]:
    num_blocks = draw(st.integers(1, 8))
    ranges: list[BlockRange | None] = []
    for _ in range(draw(st.integers(1, 7))):
        start = draw(st.integers(0, num_blocks - 1))
        stop = draw(st.integers(start, num_blocks))
        ranges.append(BlockRange(start, stop) if stop > start else None)
    return num_blocks, tuple(ranges)


def chains(num_blocks: int, ranges: Ranges, at: int = 0) -> Iterator[list[tuple[int, BlockRange]]]:
    """Every chain of whole-range peers: the next one hosts the first block that is missing, and goes to its end."""
    if at == num_blocks:
        yield []
        return
    for j, hosted in enumerate(ranges):
        if hosted is not None and at in hosted:
            for rest in chains(num_blocks, ranges, hosted.stop):
                yield [(j, BlockRange(at, hosted.stop)), *rest]


def dijkstra(num_blocks: int, ranges: Ranges, visit: list[int], per_block: list[int]) -> list[int] | None:
    """Settles the lowest-numbered of equal nodes, relaxes on strict improvement; source -1, sink n."""
    n = len(ranges)
    distance, via, settled = {-1: 0}, {}, set()
    queue = [(0, -1)]
    while queue:
        d, node = heapq.heappop(queue)
        if node in settled:
            continue
        settled.add(node)
        at = 0 if node == -1 else ranges[node].stop if node < n else None  # type: ignore[union-attr]
        if at is None:
            break
        edges = [(n, 0)] if at == num_blocks else []
        edges += [
            (j, visit[j] + per_block[j] * (r.stop - at)) for j, r in enumerate(ranges) if r is not None and at in r
        ]
        for j, cost in edges:
            if j not in distance or d + cost < distance[j]:
                distance[j], via[j] = d + cost, node
                heapq.heappush(queue, (d + cost, j))
    if n not in via:
        return None
    path, node = [], via[n]
    while node != -1:
        path.append(node)
        node = via[node]
    return path[::-1]


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(placement=placements(), data=st.data())
def test_the_cheapest_chain_is_dijkstras_ties_included(
    placement: tuple[int, Ranges], data: st.DataObject, validators: ModuleType
) -> None:
    """Small integer costs make ties common; positive ones, as Dijkstra's order of settling assumes."""
    num_blocks, ranges = placement
    visit = data.draw(st.lists(st.integers(1, 4), min_size=len(ranges), max_size=len(ranges)))
    per_block = data.draw(st.lists(st.integers(0, 3), min_size=len(ranges), max_size=len(ranges)))
    graph = HopGraph(num_blocks, ranges)
    found = graph.cheapest(graph.hub_edges(np.array(visit, dtype=float), np.array(per_block, dtype=float)))
    expected = dijkstra(num_blocks, ranges, visit, per_block)
    every = [sum(visit[j] + per_block[j] * len(b) for j, b in chain) for chain in chains(num_blocks, ranges)]
    if expected is None:
        assert found is None
        assert not every
        return
    assert found is not None
    validators.validate_chain(found.chain, num_blocks)
    assert [j for j, _ in found.chain] == expected
    assert found.cost == min(every)


def test_tolls_and_exit_costs_are_part_of_the_cost() -> None:
    graph = HopGraph(2, (BlockRange(0, 2), BlockRange(0, 1), BlockRange(1, 2)))
    edges = graph.hub_edges(np.array([5.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0]))
    assert [j for j, _ in graph.cheapest(edges).chain] == [1, 2]  # type: ignore[union-attr]
    assert graph.cheapest(edges, {1: [0.0, 10.0]}).cost == 7.0  # type: ignore[union-attr]
    assert graph.cheapest(edges, None, lambda j: 100.0 if j == 2 else 0.0).cost == 7.0  # type: ignore[union-attr]
    assert graph.cheapest(edges, {0: [0.0, float("inf"), float("inf")], 2: [0.0, float("inf")]}) is None
