"""CG-BP against a slow transcription of the algorithm, its bound, feasibility, and the rules for R."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
from blockswarm.routing.perf import PerfModel
from blockswarm.routing.place import cgbp
from blockswarm.routing.swarm import ComputeCost, ModelSpec, PeerId, PeerSpec, RequestSpec, Swarm
from hypothesis import assume, given, settings
from hypothesis import strategies as st


@st.composite
def models(draw: st.DrawFn) -> PerfModel:
    """Small swarms with integer data, so that exact arithmetic is possible; some peers are too small for a block."""
    n, blocks = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    numbers = st.lists(st.integers(0, 40), min_size=n, max_size=n)
    return PerfModel(
        num_blocks=blocks,
        block_bytes=4.0,
        session_bytes=1.0,
        new_tokens=draw(st.integers(1, 5)),
        memory_bytes=np.array(draw(numbers), dtype=float),
        block_limit=np.full(n, draw(st.sampled_from([blocks, 2])), dtype=np.int64).clip(max=blocks),
        decode_seconds=np.array(draw(numbers), dtype=float),
        prefill_seconds=np.array(draw(numbers), dtype=float),
        rtt_seconds=np.array([draw(numbers) for _ in range(2)], dtype=float),
        prefill_rtt_seconds=np.array([draw(numbers) for _ in range(2)], dtype=float),
    )


def transcription(model: PerfModel, R: int) -> tuple[list[int | None], int] | None:
    """Steps 1 and 2 of the specification, word for word, in exact rationals: first blocks and K."""
    L, n = model.num_blocks, model.num_peers
    m = [min(int(model.memory_bytes[j] // (4 + R)), int(model.block_limit[j])) for j in range(n)]
    used = [j for j in range(n) if m[j] > 0]
    far = [int(model.rtt_seconds[:, j].max()) for j in range(n)]
    t = {j: Fraction(far[j] + int(model.decode_seconds[j]) * m[j], m[j]) for j in used}
    f = {j: int((model.memory_bytes[j] - 4 * m[j]) // m[j]) for j in used}
    if not used:
        return None
    dummy = max(t.values()) + 1
    C, T, K = [0] * L, [R * dummy] * L, 0
    a: list[int | None] = [None] * n
    for rank, j in enumerate(sorted(used, key=lambda j: t[j]), start=1):
        windows = range(L - m[j] + 1)
        if min(C) < R:
            usable = [w for w in windows if min(C[w : w + m[j]]) < R]
            start = max(usable, key=lambda w: (sum(T[w : w + m[j]]), -w))
        else:
            start = min(windows, key=lambda w: (sorted(C[w : w + m[j]]), w))
        for b in range(start, start + m[j]):
            T[b] -= (dummy - t[j]) * min(max(R - C[b], 0), f[j])
            C[b] += f[j]
        a[j] = start
        if not K and min(C) >= R:
            K = rank
    return (a, K) if K else None


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(model=models(), concurrency=st.integers(1, 8))
def test_the_placement_is_the_specifications(model: PerfModel, concurrency: int) -> None:
    expected = transcription(model, concurrency)
    if expected is None:
        assert not cgbp.is_feasible(model, concurrency)
        with pytest.raises(cgbp.InfeasiblePlacementError):
            cgbp.place(model, concurrency)
        with pytest.raises(cgbp.InfeasiblePlacementError):
            cgbp.bound_of_placement(model, concurrency)
        return
    plan = cgbp.place(model, concurrency)
    assert ([r.start if r else None for r in plan.ranges], plan.covering) == expected
    assert cgbp.bound_of_placement(model, concurrency) == plan.bound_seconds


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(model=models(), concurrency=st.integers(1, 8))
def test_a_feasible_placement_keeps_its_promises(model: PerfModel, concurrency: int) -> None:
    """Every block has R sessions, memory holds R sessions through all blocks, and Theorem 2 bounds every client."""
    assume(cgbp.is_feasible(model, concurrency))
    plan = cgbp.place(model, concurrency)
    assert (plan.capacities >= concurrency).all()
    assert (plan.full_sessions[plan.sizes > 0] >= concurrency).all()
    for client in range(model.num_clients):
        chain = cgbp.cheapest_token_chain(model, plan.ranges, client)
        assert chain is not None
        assert chain.cost <= plan.bound_seconds * (1 + 1e-9) + 1e-9


@pytest.mark.long
@given(model=models())
@settings(max_examples=100, deadline=None)
def test_r_max_is_where_feasibility_ends(model: PerfModel) -> None:
    most = cgbp.largest_feasible_concurrency(model)
    assert most == 0 or cgbp.is_feasible(model, most)
    assert not cgbp.is_feasible(model, most + 1)


@pytest.mark.long
@given(model=models())
@settings(max_examples=100, deadline=None)
def test_distinct_concurrencies_cover_every_placement(model: PerfModel) -> None:
    """Between two of them the sizes, and so the placement, do not change."""
    found = cgbp.distinct_concurrencies(model)
    sizes = {tuple(cgbp.conservative_sizes(model, r).tolist()) for r in found}
    every = range(1, cgbp.largest_feasible_concurrency(model) + 1)
    assert sizes == {tuple(cgbp.conservative_sizes(model, r).tolist()) for r in every}
    assert found == sorted(set(found))


@pytest.mark.long
@given(model=models(), demand=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_a_harmless_r_is_at_least_the_demand_and_no_slower(model: PerfModel, demand: int) -> None:
    assume(cgbp.is_feasible(model, demand))
    chosen = cgbp.harmless_concurrency(model, demand)
    assert chosen >= demand
    before, after = (cgbp.mean_request_seconds(model, cgbp.place(model, r).ranges) for r in (demand, chosen))
    assert after <= before * (1 + 1e-6) + 1e-9


def big(n: int) -> PerfModel:
    ones = np.ones(n)
    return PerfModel(
        8, 1.0, 0.01, 10, 4 * ones, np.full(n, 8), 0.01 * ones, 0.01 * ones, 0.1 * ones[None], 0.1 * ones[None]
    )


def test_the_published_rule_rounds_halves_up_and_is_at_least_one() -> None:
    assert cgbp.poisson_concurrency(0.25, 1.0) == 1
    assert cgbp.poisson_concurrency(4.0, 1.0) == 6
    assert cgbp.poisson_concurrency(1e-9, 1.0) == 1


def test_the_published_ratio_to_the_optimum_is_unbounded_as_stated() -> None:
    """L^2 identical servers with L + 1 units of memory: CG-BPRR splits what each could hold alone."""
    L = 4
    n = L * L
    ones = np.ones(n)
    model = PerfModel(L, 1.0, 1.0 / L, 2, (L + 1) * ones, np.full(n, L), ones, ones, 5 * ones[None], 5 * ones[None])
    plan = cgbp.place(model, L * L)
    chain = cgbp.cheapest_token_chain(model, plan.ranges, 0)
    assert chain is not None
    assert chain.cost == pytest.approx(L * (5 + 1))


def test_infeasible_blocks_are_named_as_runs() -> None:
    with pytest.raises(cgbp.InfeasiblePlacementError, match="blocks 3-7 cannot be placed") as caught:
        cgbp.place(big(1), 1)
    assert caught.value.missing_blocks == (3, 4, 5, 6, 7)
    assert cgbp.format_blocks([1, 2, 3, 7]) == "1-3, 7"


def test_over_a_snapshot(validators: ModuleType) -> None:
    request = RequestSpec(prompt_tokens=6, new_tokens=4)
    peers = tuple(
        PeerSpec(PeerId(f"p{j}"), None, ComputeCost(0.01 * (j + 1)), memory_bytes=6.0 + j, max_blocks=3)
        for j in range(4)
    )
    swarm = Swarm(ModelSpec(6, 1.0, 0.1), peers)
    placement, plan = cgbp.place_swarm(swarm, request=request, client_rtt_seconds=np.full((1, 4), 0.1), concurrency=1)
    validators.validate_placement(placement, swarm, session_bytes=1.0, concurrency=1)
    assert [placement.ranges.get(peer.id) for peer in peers] == list(plan.ranges)
