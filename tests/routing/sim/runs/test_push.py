"""Pushing from peer to peer: a request's time by hand and by the performance model, its chain by brute force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blockswarm.routing.papers.instances import load_instance
from blockswarm.routing.perf import PerfModel, Segment
from blockswarm.routing.place.cgbp import place
from blockswarm.routing.route.lattice import Spans
from blockswarm.routing.sim.runs.policies import MissingFieldError, prepare
from blockswarm.routing.sim.runs.published import no_progress
from blockswarm.routing.sim.runs.push import PushTimes
from blockswarm.routing.sim.worlds.scenario import load_scenario
from blockswarm.routing.swarm import BlockRange
from hypothesis import given, settings
from hypothesis import strategies as st

REFERENCE = Path(__file__).parents[2] / "reference"

# Client 0, then peers 0, 1, 2.
RAW = np.array(
    [
        [0.0, 0.10, 0.20, 0.30],
        [0.10, 0.0, 0.04, 0.06],
        [0.20, 0.04, 0.0, 0.08],
        [0.30, 0.06, 0.08, 0.0],
    ]
)


def model(token_overhead: float, prompt_overhead: float, raw: np.ndarray = RAW, clients: int = 1) -> PerfModel:
    n = len(raw) - clients
    return PerfModel(
        num_blocks=4,
        block_bytes=1.0,
        session_bytes=0.1,
        new_tokens=3,
        memory_bytes=np.full(n, 10.0),
        block_limit=np.full(n, 4),
        decode_seconds=np.arange(1, n + 1) / 100,
        prefill_seconds=np.arange(1, n + 1) / 10,
        rtt_seconds=raw[:clients, clients:] + token_overhead,
        prefill_rtt_seconds=raw[:clients, clients:] + prompt_overhead,
    )


CHAIN = ((1, BlockRange(0, 1)), (0, BlockRange(1, 3)), (2, BlockRange(3, 4)))


def test_a_token_makes_the_round_once() -> None:
    """Client -> 1 -> 0 -> 2 -> client: four messages, each half a raw round trip and half of the serialisation."""
    times = PushTimes(model(0.02, 0.06), RAW)
    raw = (0.20 + 0.04 + 0.06 + 0.30) / 2
    assert times.token_seconds(0, CHAIN) == pytest.approx(raw + 4 * 0.01 + 0.02 + 2 * 0.01 + 0.03)
    assert times.first_token_seconds(0, CHAIN) == pytest.approx(raw + 4 * 0.03 + 0.2 + 2 * 0.1 + 0.3)


def test_with_equal_serialisation_it_is_the_performance_models_push_chain() -> None:
    found = PushTimes(model(0.05, 0.05), RAW)
    total = found.first_token_seconds(0, CHAIN) + 2 * found.token_seconds(0, CHAIN)
    assert total == pytest.approx(found.model.push_request_seconds(0, CHAIN, RAW[1:, 1:] + 0.05))


def test_one_peer_alone_takes_what_it_takes_through_the_client() -> None:
    times, chain = PushTimes(model(0.02, 0.06), RAW), ((1, BlockRange(0, 4)),)
    assert times.first_token_seconds(0, chain) == pytest.approx(times.model.first_token_seconds(0, chain))
    assert times.token_seconds(0, chain) == pytest.approx(times.model.token_seconds(0, chain))


def chains(ranges: tuple[BlockRange | None, ...], num_blocks: int, done: int = 0) -> Iterator[tuple[Segment, ...]]:
    """Every chain of distinct peers that enters and leaves them anywhere."""
    if done == num_blocks:
        yield ()
    for j, hosted in enumerate(ranges):
        if hosted is not None and hosted.start <= done < hosted.stop:
            others = (*ranges[:j], None, *ranges[j + 1 :])
            for end in range(done + 1, hosted.stop + 1):
                for rest in chains(others, num_blocks, end):
                    yield ((j, BlockRange(done, end)), *rest)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_routers_costs_are_the_requests_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0, 0.3, (6, 6))
    times = PushTimes(model(0.02, 0.06, raw + raw.T, clients=2), raw + raw.T)
    ranges = (BlockRange(0, 2), BlockRange(1, 4), BlockRange(0, 3), BlockRange(2, 4))
    costs = times.costs(1, Spans.of(4, ranges))
    for chain in chains(ranges, 4):
        whole = times.first_token_seconds(1, chain) + 2 * times.token_seconds(1, chain)
        assert costs.chain_seconds(chain) == pytest.approx(whole)


def test_every_request_of_a_free_swarm_takes_the_cheapest_chain_there_is(tmp_path: Path) -> None:
    """Against all chains of the placement, for requests that never meet."""
    path = tmp_path / "scenario.toml"
    path.write_text(
        'seed = 3\nruns = 1\n[cluster]\ntopology = "abovenet"\nservers = 6\nfast_fraction = 0.5\nclients = 2\n'
        "[workload]\nrate_per_second = 0.0001\nrequests = 6\nnew_tokens = 8\n"
        "[model]\nnum_blocks = 6\nblock_gb = 2.5\nhidden_size = 14336\n"
    )
    instance = load_scenario(path).instance(0)
    assert instance.petals is not None
    times = PushTimes(instance.model, instance.petals.raw_rtt_seconds)
    prepared = prepare(instance, "ours_push", zero_fixed_delay=True)
    results = prepared.run(no_progress)
    hub = prepare(instance, "ours", zero_fixed_delay=True).run(no_progress)
    assert len({result.client for result in results}) == 2
    for result, through_client in zip(results, hub, strict=True):
        client = result.client
        best = min(
            times.first_token_seconds(client, chain) + 7 * times.token_seconds(client, chain)
            for chain in chains(prepared.ranges, 6)
        )
        assert result.total_seconds == pytest.approx(best + instance.initial_delay_seconds)
        assert result.total_seconds <= through_client.total_seconds + 1e-9


@pytest.mark.long
def test_raw_round_trips_are_needed_and_checked() -> None:
    instance = load_instance(REFERENCE / "abvt_C9_lam0.5_l64.json")
    assert instance.petals is not None
    assert prepare(instance, "ours_push").run(no_progress)
    with pytest.raises(MissingFieldError, match="rtt_raw: is needed"):
        prepare(replace(instance, petals=None), "ours_push")
    too_far = replace(instance.petals, raw_rtt_seconds=instance.petals.raw_rtt_seconds + 10)
    with pytest.raises(MissingFieldError, match="rtt_raw: raw round trips"):
        prepare(replace(instance, petals=too_far), "ours_push")


def test_the_placement_is_the_same_as_without_pushing() -> None:
    instance = load_instance(REFERENCE / "abvt_C9_lam0.5_l64.json")
    pushing, through_client = (prepare(instance, policy) for policy in ("ours_push", "ours"))
    assert pushing.ranges == through_client.ranges == place(instance.model, pushing.concurrency or 0).ranges
