"""The exact programs against exhaustive search over placements and chains on tiny swarms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from blockswarm.routing.hops import HopGraph
from blockswarm.routing.papers.milp import NoSolutionError, TooLargeError, solve_bprr, solve_routing
from blockswarm.routing.perf import PerfModel, Segment
from blockswarm.routing.place.cgbp import cheapest_token_chain, place
from blockswarm.routing.swarm import BlockRange


def random_model(rng: np.random.Generator, clients: int = 1) -> PerfModel:
    n, blocks = int(rng.integers(2, 4)), int(rng.integers(2, 5))
    return PerfModel(
        num_blocks=blocks,
        block_bytes=1e9,
        session_bytes=0.25e9,
        new_tokens=10,
        memory_bytes=rng.integers(2, 7, n) * 1e9,
        block_limit=np.full(n, blocks, dtype=np.int64),
        decode_seconds=rng.integers(1, 20, n) / 1e3,
        prefill_seconds=rng.integers(1, 20, n) / 1e3,
        rtt_seconds=rng.integers(5, 80, (clients, n)) / 1e3,
        prefill_rtt_seconds=rng.integers(5, 80, (clients, n)) / 1e3,
    )


def chains_of(model: PerfModel, ranges: tuple[BlockRange | None, ...], at: int = 0) -> Iterator[tuple[Segment, ...]]:
    if at == model.num_blocks:
        yield ()
        return
    for j, hosted in enumerate(ranges):
        if hosted is not None and at in hosted:
            for rest in chains_of(model, ranges, hosted.stop):
                yield ((j, BlockRange(at, hosted.stop)), *rest)


def best_routing(model: PerfModel, ranges: tuple[BlockRange | None, ...], clients: list[int]) -> float:
    """The cheapest choice of a chain per request that fits in memory."""
    sizes = np.array([len(r) if r else 0 for r in ranges])
    every = list(chains_of(model, ranges))
    best = float("inf")
    for chosen in itertools.product(every, repeat=len(clients)):
        if (model.used_bytes(sizes, chosen) <= model.memory_bytes * (1 + 1e-9)).all():
            cost = sum(model.new_tokens * model.token_seconds(c, p) for c, p in zip(clients, chosen, strict=True))
            best = min(best, cost)
    return best


def every_placement(model: PerfModel) -> Iterator[tuple[BlockRange, ...]]:
    spans = [BlockRange(a, b) for a in range(model.num_blocks) for b in range(a + 1, model.num_blocks + 1)]
    for ranges in itertools.product(spans, repeat=model.num_peers):
        if all(len(r) * model.block_bytes <= m for r, m in zip(ranges, model.memory_bytes, strict=True)):
            yield ranges


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_placement_and_routing_together_reach_the_exhaustive_optimum(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    expected = min((best_routing(model, ranges, [0, 0]) for ranges in every_placement(model)), default=float("inf"))
    if expected == float("inf"):
        with pytest.raises(NoSolutionError):
            solve_bprr(model, [2], time_limit_seconds=60)
        return
    solved = solve_bprr(model, [2], time_limit_seconds=60)
    assert solved.total_seconds == pytest.approx(expected)
    assert best_routing(model, solved.ranges, [0, 0]) == pytest.approx(expected)
    assert sum(10 * model.token_seconds(0, chain) for chain in solved.chains) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(8))
def test_routing_for_a_placement_reaches_the_exhaustive_optimum(seed: int) -> None:
    """Two clients, and memory that forces some requests off the cheapest chain."""
    rng = np.random.default_rng(100 + seed)
    model = random_model(rng, clients=2)
    every = list(every_placement(model))
    ranges = every[int(rng.integers(len(every)))]
    expected = best_routing(model, ranges, [0, 0, 1])
    if expected == float("inf"):
        with pytest.raises(NoSolutionError):
            solve_routing(model, ranges, [2, 1], time_limit_seconds=60)
        return
    solved = solve_routing(model, ranges, [2, 1], time_limit_seconds=60)
    assert solved.total_seconds == pytest.approx(expected)
    assert len(solved.chains) == 3


def test_with_room_for_all_the_heuristic_routing_is_the_exact_one() -> None:
    """Lemma 3: under CG-BP for R requests memory cannot bind, so everyone takes the cheapest chain."""
    model = random_model(np.random.default_rng(3))
    plan = place(model, 2)
    chain = cheapest_token_chain(model, plan.ranges, 0)
    assert chain is not None
    assert solve_routing(model, plan.ranges, [2], time_limit_seconds=60).total_seconds == pytest.approx(20 * chain.cost)
    assert HopGraph(model.num_blocks, plan.ranges).hops()


def test_servers_too_small_for_a_block_are_left_out() -> None:
    model = random_model(np.random.default_rng(3))
    small = PerfModel(
        **{**vars(model), "memory_bytes": np.append(model.memory_bytes[:-1], 0.5e9)},
    )
    try:
        assert solve_bprr(small, [1], time_limit_seconds=60).ranges[-1] is None
    except NoSolutionError:
        assert not any(best_routing(small, (*r[:-1], None), [0]) < float("inf") for r in every_placement(model))


def test_a_program_that_could_not_be_solved_is_refused() -> None:
    ones = np.ones(60)
    model = PerfModel(9, 1.0, 0.1, 2, 9 * ones, np.full(60, 9), ones, ones, ones[None], ones[None])
    with pytest.raises(TooLargeError):
        solve_bprr(model, [50], time_limit_seconds=1)
