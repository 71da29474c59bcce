"""PETALS does what PETALS does: sizes, joining, rebalancing, and the penalty for full servers."""

from __future__ import annotations

import numpy as np
import pytest
from blockswarm.routing.papers.baselines import (
    PetalsRouter,
    PetalsSpec,
    petals_place,
    petals_pool_sessions,
    petals_pool_slots,
    petals_should_move,
    petals_sizes,
    petals_throughput,
)
from blockswarm.routing.perf import PerfModel
from blockswarm.routing.route.wsrr import Ledger
from blockswarm.routing.swarm import BlockRange
from hypothesis import given, settings
from hypothesis import strategies as st

BLOOM_BLOCK = 2_466_437_120 * 4.25 / 8 * 1.01
CACHE = 0.234881024e9


def bloom(memory_gb: list[float], limits: list[int]) -> tuple[PerfModel, PetalsSpec]:
    n = len(memory_gb)
    ones = np.ones(n)
    model = PerfModel(
        70, BLOOM_BLOCK, 0.0084869e9, 128, np.array(memory_gb) * 1e9, np.array(limits), 0.003 * ones, 0.03 * ones,
        0.1 * ones[None], 0.1 * ones[None],
    )  # fmt: skip
    spec = PetalsSpec(
        tuple(range(n)), 14336, CACHE, np.full(n, 20829.0), np.full(n, 3020.0), 0.018, 10.0,
        np.zeros((n + 1, n + 1)), 250.0,
    )  # fmt: skip
    return model, spec


def test_the_papers_53_and_4_blocks() -> None:
    """PETALS places 53 blocks on an A100 of 86.13 GB and 4 on a slice of 9.1 GB (capped)."""
    model, spec = bloom([86.13, 9.1, 1.0], [70, 4, 70])
    sizes = petals_sizes(model, spec)
    assert sizes.tolist() == [53, 4, 0]
    assert petals_pool_slots(model, spec, sizes).tolist()[0] == int(53 * CACHE // 0.0084869e9)
    assert petals_pool_sessions(model, spec, sizes).tolist() == [27, 27, 0]
    assert petals_throughput(spec, sizes)[0] == pytest.approx(20829 / 27)


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_server_joins_at_the_weakest_window(data: st.DataObject) -> None:
    """Replayed server by server against the sorted vectors of all windows."""
    blocks = data.draw(st.integers(1, 8))
    sizes = data.draw(st.lists(st.integers(0, blocks), min_size=1, max_size=8))
    rates = [float(data.draw(st.integers(1, 3))) for _ in sizes]
    order = data.draw(st.permutations(range(len(sizes))))
    placed = petals_place(blocks, np.array(sizes), np.array(rates), order)
    totals = [0.0] * blocks
    for j in order:
        hosted = placed[j]
        if hosted is None:
            assert sizes[j] == 0
            continue
        vectors = [sorted(totals[a : a + sizes[j]]) for a in range(blocks - sizes[j] + 1)]
        assert vectors.index(min(vectors)) == hosted.start
        for block in hosted:
            totals[block] += rates[j]


def test_a_server_moves_only_for_a_clearly_better_balance() -> None:
    """Two on the first half, one on the second: moving does not help; three against one: it does."""
    first, second = BlockRange(0, 2), BlockRange(2, 4)
    rng = np.random.default_rng(0)
    assert not petals_should_move([first, first, second], [1.0, 1.0, 1.0], 0, 4, rng)
    assert petals_should_move([first, first, first, second], [1.0, 1.0, 1.0, 1.0], 0, 4, rng)


def test_a_server_stays_if_leaving_would_break_the_swarm() -> None:
    rng = np.random.default_rng(0)
    assert not petals_should_move([BlockRange(0, 2), BlockRange(2, 4), BlockRange(2, 4)], [1.0] * 3, 0, 4, rng)


def test_exactly_full_servers_are_penalised_and_over_booked_ones_are_not() -> None:
    ones = np.ones(2)
    model = PerfModel(2, 1.0, 1.0, 2, 9 * ones, np.full(2, 2), ones, ones, ones[None], ones[None])
    spec = PetalsSpec((0, 1), 1, 1.0, ones, ones, 0.018, 10.0, np.array([[0, 1.0, 2], [1, 0, 1], [2, 1, 0]]), 0.0)
    span = BlockRange(0, 2)
    router = PetalsRouter(model, spec, (span, span), np.array([1, 1]), 0)
    ledger = Ledger([4, 4])
    free = router.route(ledger, 0.0)
    assert free is not None
    assert free.chain == ((0, span),)
    assert free.path_cost_seconds == pytest.approx(0.5 + 0.018 + 2 + 0.5)
    ledger.book(free.chain, 5.0)
    full = router.route(ledger, 0.0)
    assert full is not None
    assert full.chain == ((1, span),)
    ledger.book(((0, span),), 6.0)
    over = router.route(ledger, 0.0)
    assert over is not None
    assert (over.chain, over.wait_seconds) == (((0, span),), 5.0)
