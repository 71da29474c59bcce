"""Our R is the best of all by its own prediction, whatever the search skips; and it carries the load."""

from __future__ import annotations

import numpy as np
import pytest
from blockswarm.routing.chains import gca
from blockswarm.routing.perf import PerfModel
from blockswarm.routing.place import cgbp
from blockswarm.routing.place.concurrency import (
    LOAD_MARGIN,
    best_concurrency,
    cheapest_cover,
    predicted,
)
from blockswarm.routing.timing import OVERLOAD_SECONDS
from hypothesis import assume, given, settings
from hypothesis import strategies as st


@st.composite
def models(draw: st.DrawFn) -> PerfModel:
    """Small swarms with up to a few hundred feasible R; some peers are too small for a block."""
    n, blocks = draw(st.integers(1, 7)), draw(st.integers(1, 9))

    def hundredths(low: int, high: int, count: int = n) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(low, high), min_size=count, max_size=count))) / 100

    return PerfModel(
        num_blocks=blocks,
        block_bytes=1.0,
        session_bytes=draw(st.sampled_from([0.04, 0.2, 1.0])),
        new_tokens=draw(st.integers(1, 30)),
        memory_bytes=hundredths(50, 1200),
        block_limit=np.full(n, draw(st.sampled_from([blocks, 2])), dtype=np.int64).clip(max=blocks),
        decode_seconds=hundredths(1, 20),
        prefill_seconds=hundredths(1, 20),
        rtt_seconds=np.array([hundredths(1, 100), hundredths(1, 100)]),
        prefill_rtt_seconds=np.array([hundredths(1, 100), hundredths(1, 100)]),
    )


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(model=models(), rate=st.sampled_from([0.01, 0.3, 3.0, 50.0]), fixed=st.sampled_from([0.0, 10.0]))
def test_the_chosen_r_is_the_best_of_all(model: PerfModel, rate: float, fixed: float) -> None:
    """The least prediction over every distinct R, and the largest R of those that share it."""
    assume(cgbp.is_feasible(model, 1))
    merits = {r: predicted(model, r, LOAD_MARGIN * rate, fixed) for r in cgbp.distinct_concurrencies(model)}
    best = min(merits.values())
    assert best_concurrency(model, rate, fixed) == max(r for r, merit in merits.items() if merit == best)


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(model=models(), concurrency=st.integers(1, 20))
def test_no_chain_is_cheaper_than_the_cheapest_cover(model: PerfModel, concurrency: int) -> None:
    """The bound that the search drops R by, under CG-BP's placement for that R and for any larger one."""
    costs = model.mean_request_hop_seconds()
    for placed_for in (concurrency, 2 * concurrency):
        assume(cgbp.is_feasible(model, placed_for))
        plan = cgbp.place(model, placed_for)
        fastest = next(gca(model.num_blocks, plan.ranges, model.cache_slots(plan.sizes).tolist(), *costs))
        cover = cheapest_cover(model.num_blocks, cgbp.conservative_sizes(model, concurrency), *costs)
        assert cover <= fastest.service_seconds * (1 + 1e-9)


def uniform(n: int, blocks: int, memory_bytes: float, session_bytes: float) -> PerfModel:
    ones = np.ones(n)
    return PerfModel(
        num_blocks=blocks,
        block_bytes=1.0,
        session_bytes=session_bytes,
        new_tokens=10,
        memory_bytes=memory_bytes * ones,
        block_limit=np.full(n, blocks),
        decode_seconds=0.01 * ones,
        prefill_seconds=0.01 * ones,
        rtt_seconds=0.1 * ones[None],
        prefill_rtt_seconds=0.1 * ones[None],
    )


def test_r_grows_with_the_load_and_never_exceeds_r_max() -> None:
    model = uniform(12, 8, 4.0, 0.01)
    chosen = [best_concurrency(model, rate, 0.0) for rate in (0.1, 20.0, 100.0, 1e6)]
    assert chosen[0] <= chosen[-1] <= cgbp.largest_feasible_concurrency(model)
    assert all(r >= 1 for r in chosen)


def test_a_load_that_no_r_carries_gets_the_best_r_for_an_overload() -> None:
    """Queued for half of the overload's excess, served with every slot taken."""
    model = uniform(12, 8, 4.0, 0.01)
    expected = {}
    for concurrency in cgbp.distinct_concurrencies(model):
        plan = cgbp.place(model, concurrency)
        slots = model.cache_slots(plan.sizes).tolist()
        chains = list(gca(model.num_blocks, plan.ranges, slots, *model.mean_request_hop_seconds()))
        capacity = sum(chain.capacity for chain in chains)
        rate = sum(chain.capacity / chain.service_seconds for chain in chains)
        assert rate < LOAD_MARGIN * 1e6
        expected[concurrency] = capacity / rate + OVERLOAD_SECONDS / 2 * (LOAD_MARGIN * 1e6 / rate - 1)
    assert expected[best_concurrency(model, 1e6, 0.0)] == pytest.approx(min(expected.values()), rel=1e-5)


@pytest.mark.long
def test_a_search_cut_short_still_gives_a_feasible_r() -> None:
    """Many peers of many sizes: the more placements, the better the prediction, and one is enough for an answer."""
    rng = np.random.default_rng(3)
    n = 200
    model = PerfModel(
        num_blocks=40,
        block_bytes=1.0,
        session_bytes=0.01,
        new_tokens=20,
        memory_bytes=rng.uniform(3, 12, n),
        block_limit=np.full(n, 40),
        decode_seconds=rng.uniform(0.01, 0.05, n),
        prefill_seconds=rng.uniform(0.01, 0.05, n),
        rtt_seconds=rng.uniform(0.02, 0.3, (1, n)),
        prefill_rtt_seconds=rng.uniform(0.02, 0.3, (1, n)),
    )
    found = [best_concurrency(model, 2.0, 0.0, most_peers_placed=count * n) for count in (1, 10, 40)]
    assert all(cgbp.is_feasible(model, r) for r in found)
    merits = [predicted(model, r, LOAD_MARGIN * 2.0, 0.0) for r in found]
    assert merits == sorted(merits, reverse=True)


def test_an_infeasible_swarm_is_refused() -> None:
    with pytest.raises(cgbp.InfeasiblePlacementError, match="blocks 3-7 cannot be placed"):
        best_concurrency(uniform(1, 8, 4.0, 0.01), 1.0, 0.0)
