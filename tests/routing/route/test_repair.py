"""Gaps in a chain: the kept hops stay, every gap is filled at the least cost, and no peer is used twice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from blockswarm.routing.perf import IntArray, Segment
from blockswarm.routing.route.costs import HubCosts
from blockswarm.routing.route.lattice import Spans
from blockswarm.routing.route.repair import Repair, cheapest_over, fill_gaps
from blockswarm.routing.swarm import BlockRange
from hypothesis import given
from hypothesis import strategies as st


class Ample:
    """Room for everything, at once."""

    def __init__(self, peers: int) -> None:
        self.peers = peers

    def blocks_within(self, wait_seconds: float) -> IntArray:
        return np.full(self.peers, 1000, dtype=np.int64)

    def wait_seconds(self, peer: int, blocks: int) -> float:
        return 0.0


@st.composite
def broken_chains(draw: st.DrawFn) -> tuple[Spans, HubCosts, tuple[Segment, ...]]:
    """A few peers over a few blocks, and some hops of a chain on distinct peers."""
    num_blocks = draw(st.integers(2, 6))
    ranges = []
    for _ in range(draw(st.integers(2, 6))):
        start = draw(st.integers(0, num_blocks - 1))
        ranges.append(BlockRange(start, draw(st.integers(start + 1, num_blocks))))
    costs = HubCosts(*(np.array([draw(st.integers(1, 9)) / 10 for _ in ranges]) for _ in range(2)))
    kept: list[Segment] = []
    block = 0
    for j in draw(st.permutations(range(len(ranges)))):
        first = max(block, ranges[j].start)
        if first < ranges[j].stop and draw(st.booleans()):
            stop = draw(st.integers(first + 1, ranges[j].stop))
            kept.append((j, BlockRange(first, stop)))
            block = stop
    return Spans.of(num_blocks, ranges), costs, tuple(kept)


def every_chain(spans: Spans, gap: BlockRange, excluded: frozenset[int]) -> Iterator[tuple[Segment, ...]]:
    """All chains over the gap through distinct peers."""

    def extend(chain: tuple[Segment, ...], block: int) -> Iterator[tuple[Segment, ...]]:
        if block == gap.stop:
            yield chain
            return
        for j, (start, stop) in enumerate(zip(spans.start.tolist(), spans.stop.tolist(), strict=True)):
            if start <= block and j not in excluded and all(j != i for i, _ in chain):
                for end in range(block + 1, min(stop, gap.stop) + 1):
                    yield from extend((*chain, (j, BlockRange(block, end))), end)

    return extend((), gap.start)


@pytest.mark.long
@given(broken_chains())
def test_a_repaired_chain_keeps_its_hops_and_computes_every_block_once(
    case: tuple[Spans, HubCosts, tuple[Segment, ...]],
) -> None:
    spans, costs, kept = case
    found = fill_gaps(spans, costs, Ample(len(spans.start)), kept)
    if found is None:
        return
    assert set(kept) <= set(found.chain)
    assert len({j for j, _ in found.chain}) == len(found.chain)
    assert [block for _, blocks in found.chain for block in blocks] == list(range(spans.num_blocks))
    assert all(spans.start[j] <= blocks.start and blocks.stop <= spans.stop[j] for j, blocks in found.chain)
    assert found.cost_seconds == pytest.approx(costs.chain_seconds([hop for hop in found.chain if hop not in kept]))


@pytest.mark.long
@given(broken_chains())
def test_a_gap_is_filled_at_the_least_cost(case: tuple[Spans, HubCosts, tuple[Segment, ...]]) -> None:
    spans, costs, kept = case
    repair = Repair(BlockRange(0, spans.num_blocks), kept)
    if repair.gap is None:
        return
    found = cheapest_over(spans, costs, Ample(len(spans.start)), repair.gap, repair.peers)
    brute = min((costs.chain_seconds(c) for c in every_chain(spans, repair.gap, repair.peers)), default=math.inf)
    assert (math.inf if found is None else found.cost_seconds) == pytest.approx(brute)


def test_gaps_are_named_in_order_and_close_one_by_one() -> None:
    repair = Repair(BlockRange(0, 10), (("b", BlockRange(2, 5)), ("d", BlockRange(7, 9))))
    gaps = []
    for filler in ("a", "c", "e"):
        assert repair.gap is not None
        gaps.append(repair.gap)
        assert filler not in repair.peers
        repair = repair.filled([(filler, repair.gap)])
    assert gaps == [BlockRange(0, 2), BlockRange(5, 7), BlockRange(9, 10)]
    assert repair.gap is None
    assert [peer for peer, _ in repair.hops] == list("abcde")
    assert all(a.stop == b.start for (_, a), (_, b) in itertools.pairwise(repair.hops))


def test_hops_that_leave_the_gap_open_are_refused() -> None:
    """A router that answers for other blocks must not keep its caller asking for ever."""
    with pytest.raises(ValueError, match="do not fill the gap"):
        Repair(BlockRange(0, 4), (("a", BlockRange(0, 2)),)).filled([("b", BlockRange(2, 3))])
