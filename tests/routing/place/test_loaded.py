"""Request times on a placement: the cheapest chain against brute force, the load against queueing by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from blockswarm.routing.perf import PerfModel
from blockswarm.routing.place.loaded import cheapest_chains, request_times
from hypothesis import given, settings
from hypothesis import strategies as st

SESSION_BYTES = 0.1


def model(peers: list[tuple[float, float]], rtt_seconds: list[list[float]], num_blocks: int = 6) -> PerfModel:
    """Peers of (memory in blocks, seconds per block and token); round trips (C, n); requests of eleven tokens."""
    seconds = np.array([pace for _, pace in peers])
    rtt = np.array(rtt_seconds)
    return PerfModel(
        num_blocks=num_blocks,
        block_bytes=1.0,
        session_bytes=SESSION_BYTES,
        new_tokens=11,
        memory_bytes=np.array([memory for memory, _ in peers]),
        block_limit=np.full(len(peers), num_blocks),
        decode_seconds=seconds,
        prefill_seconds=2 * seconds,
        rtt_seconds=rtt,
        prefill_rtt_seconds=rtt,
    )


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_cheapest_chains_equal_brute_force(seed):
    """One pass over the blocks against every way of covering them; the blocks used add up and explain the time."""
    rng = random.Random(seed)
    count, clients = rng.randint(1, 5), rng.randint(1, 3)
    rtt = [[rng.uniform(0, 0.5) for _ in range(count)] for _ in range(clients)]
    perf = model([(99.0, rng.uniform(0.001, 0.1)) for _ in range(count)], rtt)
    starts = [rng.randint(0, 5) for _ in range(count)]
    ranges = np.array([(start, rng.randint(start + 1, 6)) for start in starts])

    def brute(client: int, block: int) -> float:
        if block == 6:
            return 0.0
        costs = [math.inf]
        for j, (start, stop) in enumerate(ranges.tolist()):
            if start <= block < stop:
                for end in range(block + 1, stop + 1):
                    hop = 11 * rtt[client][j] + 12 * float(perf.decode_seconds[j]) * (end - block)
                    costs.append(hop + brute(client, end))
        return min(costs)

    found = cheapest_chains(perf, ranges)
    assert found.seconds == pytest.approx([brute(client, 0) for client in range(clients)])
    if np.isfinite(found.seconds).all():
        assert (found.blocks_used.sum(axis=1) == 6).all()
        assert (found.blocks_used <= ranges[:, 1] - ranges[:, 0]).all()
        least = (11 * np.array(rtt) * (found.blocks_used > 0)).sum(axis=1) + found.blocks_used @ (
            12 * perf.decode_seconds
        )
        assert (found.seconds >= least - 1e-9).all()


def waiting_at(places: int, load: float, seconds: float) -> float:
    """Expected time where all share `places`: those that come too late wait for a share of the sessions to end."""
    upto = range(int(load + 3 * math.sqrt(load)) + 2)
    weights = [load**n / math.factorial(n) for n in upto]
    times = [seconds * (1 + max(0, n + 1 - places) / (places + 1)) for n in upto]
    return sum(w * t for w, t in zip(weights, times, strict=True)) / sum(weights)


@pytest.mark.parametrize(("places", "load"), [(1, 1.0), (2, 1.0), (2, 5.6), (40, 5.6)])
def test_one_peer_is_a_queue(places, load):
    """All of the model on one peer with room for `places` sessions."""
    perf = model([(6 + 6 * SESSION_BYTES * places, 0.01)], [[0.1]])
    times = request_times(perf, np.array([(0, 6)]), np.ones(1), load)
    assert times.alone[0] == pytest.approx(11 * 0.1 + 12 * 6 * 0.01)
    assert times.among_others == pytest.approx(waiting_at(places, load, times.alone[0]))


def test_a_slow_peer_helps_who_would_wait_longer_at_the_fast_one():
    """Room for one on the fast peer; on the slow one, a quarter slower, for all: waiting takes half of the time."""
    fast, slow = (6 + 6 * SESSION_BYTES, 0.04), (60.0, 0.05)
    ranges = np.array([(0, 6), (0, 6)])
    times = request_times(model([fast, slow], [[0.0, 0.0]]), ranges, np.ones(1), 1.0)
    alone = 12 * 6 * 0.04
    nobody_there = 1 / sum(1 / math.factorial(n) for n in range(6))
    assert times.among_others == pytest.approx(alone * (nobody_there + 1.25 * (1 - nobody_there)))
    without = request_times(model([fast], [[0.0]]), ranges[:1], np.ones(1), 1.0)
    assert times.among_others < without.among_others


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_others_never_make_it_faster(seed):
    """More load never shortens a request, and none falls below its time alone."""
    rng = random.Random(seed)
    count, clients = rng.randint(1, 6), rng.randint(1, 3)
    perf = model(
        [(rng.uniform(2, 12), rng.uniform(0.001, 0.1)) for _ in range(count)],
        [[rng.uniform(0, 0.5) for _ in range(count)] for _ in range(clients)],
    )
    sizes = [rng.randint(1, min(6, int(memory))) for memory in perf.memory_bytes]
    starts = [rng.randint(0, 6 - size) for size in sizes]
    ranges = np.array([(start, start + size) for start, size in zip(starts, sizes, strict=True)])
    weights = np.array([rng.uniform(0.1, 2.0) for _ in range(clients)])
    light, heavy = (request_times(perf, ranges, weights, load) for load in (0.5, 4.0))
    assert (light.alone == heavy.alone).all()
    assert light.among_others <= heavy.among_others
    if math.isfinite(light.among_others):
        assert light.among_others >= np.average(light.alone, weights=weights) * (1 - 1e-9)
    else:
        assert not np.isfinite(light.alone).all()


def test_a_peer_without_room_for_a_session_does_not_count():
    perf = model([(6.5, 0.01)], [[0.1]])
    assert request_times(perf, np.array([(0, 6)]), np.ones(1), 1.0).among_others == math.inf


@pytest.mark.filterwarnings("error")
def test_among_very_many_others_a_missing_chain_still_takes_for_ever():
    """The probability of the rarest numbers of others underflows to 0, and 0 times infinity is no number."""
    perf = model([(100.0, 0.01)], [[0.1]])
    assert request_times(perf, np.array([(0, 5)]), np.ones(1), 10_000.0).among_others == math.inf
