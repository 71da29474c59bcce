"""The exact search where room is scarce, against an exhaustive search over (block, last peer, peers used)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from blockswarm.routing.perf import FloatArray, IntArray
from blockswarm.routing.route.budget import UNLIMITED, Meter, OverBudgetError, SearchBudget
from blockswarm.routing.route.costs import HubCosts, PushCosts
from blockswarm.routing.route.lattice import Lattice, Spans
from blockswarm.routing.route.search import ChainSearch
from blockswarm.routing.swarm import BlockRange
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ticks import Ticks

INFINITY = float("inf")


@dataclass(frozen=True)
class Steps:
    """Room as a table: `table[j][k - 1]` is how long until peer j has room for k blocks; never decreasing in k."""

    table: tuple[tuple[float, ...], ...]

    def blocks_within(self, wait_seconds: float) -> IntArray:
        within = (sum(w <= wait_seconds and w < INFINITY for w in row) for row in self.table)
        return np.array(list(within), dtype=np.int64)

    def wait_seconds(self, peer: int, blocks: int) -> float:
        return self.table[peer][blocks - 1]


class TabulatedSteps(Steps):
    """The same with all waits at once."""

    def waits(self, longest: int) -> FloatArray:
        return np.array([row[:longest] for row in self.table])


@dataclass(frozen=True)
class Case:
    num_blocks: int
    ranges: tuple[BlockRange | None, ...]
    room: Steps
    visit: FloatArray
    per_block: FloatArray
    between: FloatArray

    @property
    def spans(self) -> Spans:
        return Spans.of(self.num_blocks, self.ranges)

    def costs(self, push: bool) -> HubCosts | PushCosts:
        if not push:
            return HubCosts(self.visit, self.per_block)
        between = self.between.copy()
        np.fill_diagonal(between, np.inf)
        lattice = Lattice.of(self.spans, between)
        return PushCosts(self.visit, self.per_block, self.visit / 2, between, lattice, trips=3.0)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few blocks of room per peer, long ranges: the cheapest walks like to come back to a peer.  Coarse numbers tie."""
    num_blocks = draw(st.integers(1, 8))
    n = draw(st.integers(1, 6))
    ranges: list[BlockRange | None] = []
    table = []
    for _ in range(n):
        start = draw(st.integers(0, num_blocks - 1))
        hosted = BlockRange(start, draw(st.integers(start + 1, num_blocks)))
        ranges.append(hosted if draw(st.integers(0, 9)) else None)
        row: list[float] = [0.0] * draw(st.integers(0, 3))
        for at in sorted(draw(st.lists(st.integers(0, 12), max_size=4))):
            row += [at / 2] * draw(st.integers(1, 2))
        table.append(tuple((row + [INFINITY] * num_blocks)[:num_blocks]))
    tenths = st.integers(0, 30).map(lambda number: number / 10)
    visit, per_block = (np.array(draw(st.lists(tenths, min_size=n, max_size=n))) for _ in range(2))
    between = np.array(draw(st.lists(tenths, min_size=n * n, max_size=n * n))).reshape(n, n)
    tabulated = draw(st.booleans())
    return Case(
        num_blocks, tuple(ranges), (TabulatedSteps if tabulated else Steps)(tuple(table)), visit, per_block, between
    )


def hop_seconds(case: Case, push: bool) -> Callable[[int, int, int], float]:
    """The cost of entering a peer after another (or -1) for some blocks; leaving the last for the client is extra."""

    def seconds(before: int, j: int, blocks: int) -> float:
        compute = float(case.per_block[j]) * blocks
        if not push or before < 0:
            return compute + float(case.visit[j])
        return compute + 3.0 * float(case.between[before, j])

    return seconds


def exhaustive(case: Case, push: bool) -> float:
    """Over every limit of the wait, every chain of distinct peers; infinite if there is none."""
    seconds = hop_seconds(case, push)
    limits = {wait for row in case.room.table for wait in row if wait < INFINITY}

    def cheapest_within(limit: float) -> float:
        @cache
        def onward(at: int, last: int, used: int) -> float:
            if at == case.num_blocks:
                return float(case.visit[last]) / 2 if push else 0.0
            best = INFINITY
            for j, hosted in enumerate(case.ranges):
                if hosted is None or at not in hosted or used >> j & 1:
                    continue
                for stop in range(at + 1, hosted.stop + 1):
                    if case.room.wait_seconds(j, stop - at) <= limit:
                        best = min(best, seconds(last, j, stop - at) + onward(stop, j, used | 1 << j))
            return best

        return onward(0, -1, 0)

    return min((limit + cheapest_within(limit) for limit in limits), default=INFINITY)


def validate_choice(case: Case, push: bool, meter: Meter = UNLIMITED, best_seconds: float | None = None) -> None:
    """The search's chain is one, costs what it says, and no chain is better by more than it says."""
    costs = case.costs(push)
    expected = exhaustive(case, push) if best_seconds is None else best_seconds
    try:
        choice = ChainSearch(case.spans, costs).cheapest(case.room, meter)
    except OverBudgetError:
        assert meter is not UNLIMITED
        return
    if choice is None:
        assert expected == INFINITY
        return
    at = 0
    for j, blocks in choice.chain:
        hosted = case.ranges[j]
        assert blocks.start == at
        assert hosted is not None
        assert hosted.start <= blocks.start < blocks.stop <= hosted.stop
        at = blocks.stop
    assert at == case.num_blocks
    assert len({j for j, _ in choice.chain}) == len(choice.chain)
    assert choice.wait_seconds == max(case.room.wait_seconds(j, len(blocks)) for j, blocks in choice.chain)
    seconds = hop_seconds(case, push)
    peers = [-1, *(j for j, _ in choice.chain)]
    cost = sum(seconds(i, j, len(blocks)) for i, (j, blocks) in zip(peers, choice.chain, strict=False))
    assert choice.cost_seconds == pytest.approx(cost + (float(case.visit[peers[-1]]) / 2 if push else 0.0))
    assert choice.unproven_seconds == 0.0 or meter is not UNLIMITED
    near = pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert choice.total_seconds == near or choice.total_seconds > expected
    assert (
        choice.total_seconds - choice.unproven_seconds == near
        or choice.total_seconds - choice.unproven_seconds < expected
    )


@pytest.mark.long
@settings(max_examples=400, deadline=None)
@given(case=cases(), push=st.booleans())
def test_the_chain_is_the_best_of_all_where_room_is_scarce(case: Case, push: bool) -> None:
    """Releases in several steps, ties, peers without any room, peers that a walk would use twice."""
    validate_choice(case, push)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(case=cases(), push=st.booleans(), seconds=st.integers(0, 60))
def test_a_search_that_runs_out_of_time_gives_a_chain_and_a_bound_that_holds(
    case: Case, push: bool, seconds: int
) -> None:
    """Wherever the time ends: in the first pass, between two limits, while good chains are looked for."""
    validate_choice(case, push, Meter(SearchBudget(seconds=float(seconds)), Ticks()))


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(case=cases(), push=st.booleans(), nbytes=st.integers(100, 20_000))
def test_a_search_with_little_memory_evaluates_fewer_limits_at_once_or_settles(
    case: Case, push: bool, nbytes: int
) -> None:
    validate_choice(case, push, Meter(SearchBudget(nbytes=nbytes), lambda: 0.0))


def scarce(seed: int, n: int = 8, num_blocks: int = 9) -> Case:
    """Every cheap peer tempts the walks to come back to it, so several must be remembered at the same blocks."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 4, n)
    ranges = tuple(BlockRange(int(start), int(rng.integers(start + 4, num_blocks + 1))) for start in starts)
    table = []
    for _ in range(n):
        room = np.cumsum(rng.integers(0, 3, 4))
        waits = np.searchsorted(room, np.arange(1, num_blocks + 1))
        table.append(tuple(float(wait) * 1.5 if wait < len(room) else INFINITY for wait in waits))
    visit, per_block = rng.uniform(0.1, 3, n), rng.uniform(0, 0.3, n)
    return Case(num_blocks, ranges, TabulatedSteps(tuple(table)), visit, per_block, rng.uniform(0.1, 2, (n, n)))


@pytest.mark.parametrize("push", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_many_cheap_peers_with_room_for_two_blocks_each(seed: int, push: bool) -> None:
    validate_choice(scarce(seed), push)


def test_where_room_is_scarce_time_is_what_the_proof_takes() -> None:
    """The budget does end some of these searches, and a good chain is found all the same."""
    unproven, given_up = [], 0
    for seed in range(12):
        case = scarce(seed)
        search = ChainSearch(case.spans, case.costs(push=True))
        best, quick = search.cheapest(case.room), search.cheapest(case.room, Meter(SearchBudget(seconds=25.0), Ticks()))
        if best is not None:
            assert quick is not None
            unproven.append(quick.unproven_seconds)
            assert quick.total_seconds >= best.total_seconds or quick.total_seconds == pytest.approx(best.total_seconds)
            try:
                proven = search.cheapest(case.room, Meter(SearchBudget(seconds=1.0), Ticks()), settle=False)
            except OverBudgetError:
                given_up += 1
            else:
                assert proven == best
    assert max(unproven) > 0
    assert given_up > 6


@pytest.mark.long
@pytest.mark.parametrize("push", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_a_search_may_run_out_of_time_at_any_moment(seed: int, push: bool) -> None:
    """Also between the proof and its end: nothing is open then, and the chain is the best."""
    case, needed = scarce(seed), Ticks()
    best = exhaustive(case, push)
    ChainSearch(case.spans, case.costs(push)).cheapest(case.room, Meter(SearchBudget(seconds=1e9), needed))
    for seconds in range(int(needed.now)):
        validate_choice(case, push, Meter(SearchBudget(seconds=float(seconds)), Ticks()), best)


@pytest.mark.parametrize("push", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_costs_without_ties_and_waits_worth_as_much_as_the_costs(seed: int, push: bool) -> None:
    """Several rounds: limits that look good turn out to belong to walks that are no chains, after segments were cut."""
    rng = np.random.default_rng(seed)
    n, num_blocks = 6, 8
    ranges, table = [], []
    for _ in range(n):
        size = int(rng.integers(2, num_blocks + 1))
        start = int(rng.integers(0, num_blocks - size + 1))
        ranges.append(BlockRange(start, start + size))
        blocks = int(rng.integers(1, 3)) if rng.random() < 0.9 else num_blocks
        wait = 2.0 if rng.random() < 0.3 else 0.0
        row = [wait] * blocks
        for _ in range(int(rng.integers(0, 4))):
            wait += float(rng.integers(1, 6))
            row += [wait] * int(rng.integers(1, 3))
        table.append(tuple((row + [INFINITY] * num_blocks)[:num_blocks]))
    visit, per_block = rng.uniform(0.5, 4, n), rng.uniform(0.05, 0.5, n)
    between = rng.uniform(0.2, 4, (n, n))
    validate_choice(Case(num_blocks, tuple(ranges), Steps(tuple(table)), visit, per_block, between), push)


@pytest.mark.parametrize("push", [False, True])
def test_the_search_keeps_nothing_of_an_earlier_state_of_the_room(push: bool) -> None:
    """One search answers for many requests: what it keeps belongs to the total room that it was found for."""
    ranges = (BlockRange(0, 4), BlockRange(0, 4), BlockRange(2, 4))
    costs = np.array([1.0, 5.0, 1.0])
    between = np.ones((3, 3))
    small, large = (INFINITY,) * 4, (0.0,) * 4
    half = (0.0, 0.0, INFINITY, INFINITY)
    searches = []
    for table in ((large, large, large), (small, large, large), (half, large, large), (large, large, large)):
        case = Case(4, ranges, Steps(table), costs, costs, between)
        searches = searches or [ChainSearch(case.spans, case.costs(push))]
        choice = searches[0].cheapest(case.room)
        assert choice is not None
        assert choice.total_seconds == pytest.approx(exhaustive(case, push))
