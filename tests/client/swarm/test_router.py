"""The router on a view: it says why there is no chain, and keeps the loop free and its budget in made-up swarms."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from blockswarm.client.chain.machine.events import HopChoice
from blockswarm.client.survey.survey import predict
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.router import ViewRouter
from blockswarm.client.swarm.view import SwarmView
from blockswarm.client.timing import ClientTiming
from blockswarm.proto.errors import NoChainError, PeerBusy, PeerUnavailable, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.routing.route.budget import Meter, SearchBudget
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    KvRelease,
    PeerId,
    PeerSpec,
    RequestSpec,
)
from support.known_peers import known_peer
from support.loop_watchdog import watched_loops


def peer(name: str, start: int, stop: int, free: int, *releases: KvRelease, total: int = 1000) -> PeerSpec:
    return PeerSpec(
        PeerId(name),
        BlockRange(start, stop),
        ComputeCost(0.01),
        kv_tokens_total=total,
        kv_tokens_free=free,
        releases=releases,
    )


WHOLE = BlockRange(0, 4)


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def view_of(*peers: PeerSpec | KnownPeer, clock: Clock | None = None, num_blocks: int = 4) -> SwarmView:
    """The view of a client that has seen these peers."""
    view = SwarmView(Identity.generate(), None, (), "ab" * 32, num_blocks, None, clock=clock or Clock())  # type: ignore[arg-type]
    seen = [peer if isinstance(peer, KnownPeer) else known_peer(peer) for peer in peers]
    asyncio.run(view.see({peer.record.spec.id: peer for peer in seen}))
    return view


def choose(*peers: PeerSpec, blocks: BlockRange = WHOLE, min_precision: str | None = None) -> tuple[HopChoice, ...]:
    """The choice of the router of a swarm of four blocks at time 0."""
    router = ViewRouter(view_of(*peers), clock=Clock())
    return asyncio.run(router.choose(blocks, frozenset(), RequestSpec(10, 10), min_precision))


def complaint(*peers: PeerSpec, blocks: BlockRange = WHOLE, min_precision: str | None = None) -> SwarmError:
    """The error that the router of a swarm of four blocks raises."""
    with pytest.raises(SwarmError) as caught:
        choose(*peers, blocks=blocks, min_precision=min_precision)
    return caught.value


def test_a_block_without_host_is_named_even_where_others_are_full() -> None:
    error = complaint(peer("a", 0, 2, 1000), peer("b", 2, 3, 0))
    assert isinstance(error, NoChainError)
    assert error.missing_blocks == (3,)


def test_full_peers_give_a_time_to_come_back() -> None:
    error = complaint(peer("a", 0, 2, 1000), peer("b", 2, 4, 0, KvRelease(12.0, 1)))
    assert isinstance(error, PeerBusy)
    assert error.retry_after_seconds == 12.0
    assert "blocks 2:4 is full" in str(error)


def test_blocks_are_counted_from_the_model_s_first_in_a_gap_too() -> None:
    assert "blocks 3:4 is full" in str(complaint(peer("b", 2, 4, 0), blocks=BlockRange(3, 4)))


def test_a_request_too_large_for_empty_peers_need_not_come_back() -> None:
    error = complaint(peer("a", 0, 2, 1000), peer("b", 2, 4, 0, total=10))
    assert isinstance(error, NoChainError)
    assert "blocks 2:4 is too small for the request of 20 tokens; about 5 would fit" in str(error)
    assert "--max-new-tokens" in error.hint
    assert "missing blocks" not in error.hint, "none is missing"


def test_a_choice_says_which_peer_has_to_be_waited_for() -> None:
    """A needs no wait, B has room for two blocks of 20 tokens when its second release is due."""
    first, second = choose(
        peer("a", 0, 2, 1000), peer("b", 2, 4, 10, KvRelease(3.0, 20), KvRelease(8.0, 20), KvRelease(9.0, 900))
    )
    assert (first.wait_seconds, second.wait_seconds) == (0.0, 8.0)


def test_only_peers_that_are_precise_enough_are_chosen() -> None:
    coarse = replace(peer("a", 0, 4, 1000), numeric_format="int8", cost=ComputeCost(1e-4))
    fine = replace(peer("b", 0, 4, 1000), numeric_format="bfloat16")
    assert [hop.numeric_format for hop in choose(coarse, fine)] == ["int8"]
    assert [hop.numeric_format for hop in choose(coarse, fine, min_precision="float16")] == ["bfloat16"]


def test_blocks_that_are_only_served_with_less_precision_are_named_with_it() -> None:
    coarse = replace(peer("c", 2, 4, 1000), numeric_format="int8")
    error = complaint(peer("b", 0, 2, 1000), coarse, min_precision="bfloat16")
    assert isinstance(error, NoChainError)
    assert error.missing_blocks == (2, 3)
    assert "blocks 2:4 in bfloat16 or more precisely" in str(error)
    assert "precisely" not in str(complaint(peer("b", 0, 2, 1000), min_precision="bfloat16"))
    assert complaint(coarse, min_precision="bfloat16", blocks=BlockRange(2, 4)).missing_blocks == (2, 3)  # type: ignore[attr-defined]


def rooms(view: SwarmView, *needs: int) -> list[float]:
    """When a request that needs that room of the only peer would be admitted, on the view's clock."""
    current = view.current()
    meter = Meter(SearchBudget(), lambda: 0.0)
    waits = []
    for need in needs:
        (choice,) = current.choose(WHOLE, frozenset(), RequestSpec(1, 1, kv_tokens=need), None, meter, settle=True)
        waits.append(current.now_seconds + choice.wait_seconds)
    return waits


def test_a_peer_that_refused_is_full_until_it_said_and_then_as_announced() -> None:
    """Its blocks are not missing meanwhile: the router counts on the room that it promised."""
    clock = Clock(1000.0)
    spec = peer("a", 0, 4, 500, KvRelease(1100.0, 500))
    view = view_of(spec, clock=clock)
    assert rooms(view, 125, 126) == [1000.0, 1100.0]
    view.ban(spec.id, PeerBusy(20.0))
    assert rooms(view, 1, 250) == [1020.0, 1020.0]
    clock.now = 1020.0
    assert rooms(view, 125, 126) == [1020.0, 1100.0]
    view.ban(spec.id, PeerUnavailable("gone"))
    with pytest.raises(NoChainError) as caught:
        rooms(view, 1)
    assert caught.value.missing_blocks == (0, 1, 2, 3)


def test_announced_releases_are_seen_on_this_clock() -> None:
    ahead = known_peer(peer("a", 0, 4, 0, KvRelease(1100.0, 500)), clock_offset_seconds=25.0)
    assert rooms(view_of(ahead, clock=Clock(1000.0)), 1) == [1075.0]


# --- a swarm that is made up to keep clients busy ---

ROUTES = Path(__file__).resolve().parents[3] / "scripts" / "benchlib" / "routes.py"
BUDGET = ClientTiming(route_seconds=0.3)


@pytest.fixture(scope="module")
def benchmark_of_routes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_routes", ROUTES)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made_up(benchmark_of_routes: ModuleType) -> SwarmView:
    """30 peers; the exact search takes a minute and gigabytes."""
    rng = np.random.default_rng(7)
    specs = [benchmark_of_routes.made_up_peer(rng, number) for number in range(benchmark_of_routes.MADE_UP_PEERS)]
    view = SwarmView(
        Identity.generate(),
        None,
        (),
        "ab" * 32,
        40,
        None,
        clock=Clock(benchmark_of_routes.NOW),  # type: ignore[arg-type]
    )
    asyncio.run(view.see({spec.id: benchmark_of_routes.known_of(spec) for spec in specs}))
    return view


ALL = BlockRange(0, 40)
GREEDY = RequestSpec(100, 64, kv_tokens=500)


@pytest.mark.long
def test_a_made_up_swarm_takes_no_more_than_the_budget_and_the_loop_goes_on(
    made_up: SwarmView, caplog: pytest.LogCaptureFixture
) -> None:
    async def route() -> tuple[HopChoice, ...]:
        return await ViewRouter(made_up, BUDGET).choose(ALL, frozenset(), GREEDY)

    with caplog.at_level(logging.INFO), watched_loops() as watch:
        began = time.process_time()
        choices = asyncio.run(route())
        seconds = time.process_time() - began
    assert [choice.blocks.start for choice in choices] == [0, *(choice.blocks.stop for choice in choices[:-1])]
    assert choices[-1].blocks.stop == 40
    assert len({choice.peer for choice in choices}) == len(choices)
    assert seconds < 4 * BUDGET.route_seconds  # the proof, half of that again, and a last step
    assert watch.longest_seconds < 0.1, watch.longest
    unproven_seconds = choices[0].unproven_seconds
    assert unproven_seconds > 0
    assert f"not proven to be the best: another one may be done {unproven_seconds:.2f} s sooner" in caplog.text


@pytest.mark.long
def test_a_made_up_swarm_takes_no_more_memory_than_the_budget(made_up: SwarmView) -> None:
    meter = Meter(SearchBudget(seconds=0.6, nbytes=8 << 20), time.thread_time)
    tracemalloc.start()
    try:
        made_up.current().choose(ALL, frozenset(), GREEDY, None, meter, settle=True)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20  # what is estimated, and what is Python's own
    finally:
        tracemalloc.stop()


def test_a_cancelled_choice_ends_its_thread_and_the_next_one_is_answered(made_up: SwarmView) -> None:
    async def play() -> tuple[HopChoice, ...]:
        loop, searching = asyncio.get_running_loop(), asyncio.Event()

        def clock() -> float:
            if threading.current_thread() is not threading.main_thread():
                loop.call_soon_threadsafe(searching.set)
            return time.thread_time()

        router = ViewRouter(made_up, ClientTiming(route_seconds=60.0), clock)
        choosing = asyncio.create_task(router.choose(ALL, frozenset(), GREEDY))
        await searching.wait()
        choosing.cancel()
        await asyncio.gather(choosing, return_exceptions=True)
        assert choosing.cancelled()
        return await router.choose(ALL, frozenset(), RequestSpec(10, 10, kv_tokens=1))

    began = time.process_time()
    assert len(asyncio.run(play())) >= 1  # which waits for its threads to end
    assert time.process_time() - began < 10.0


def test_a_search_that_waits_for_its_turn_knows_what_has_failed_meanwhile(made_up: SwarmView) -> None:
    """Else a repair gets the peers that it is there to replace."""

    async def play() -> None:
        loop, searching = asyncio.get_running_loop(), asyncio.Event()

        def clock() -> float:
            if threading.current_thread() is not threading.main_thread():
                loop.call_soon_threadsafe(searching.set)
            return time.thread_time()

        router = ViewRouter(made_up, ClientTiming(route_seconds=60.0), clock)
        first = asyncio.create_task(router.choose(ALL, frozenset(), GREEDY))
        await searching.wait()
        second = asyncio.create_task(router.choose(ALL, frozenset(), GREEDY))
        for _ in range(3):
            await asyncio.sleep(0)
        for peer in made_up.peers:
            made_up.ban(peer, PeerUnavailable("gone"))
        first.cancel()
        with pytest.raises(NoChainError):
            await second

    try:
        asyncio.run(play())
    finally:
        made_up.bans.pardon(made_up.peers)


def test_a_small_swarm_is_routed_without_a_thread() -> None:
    before = threading.active_count()
    assert [hop.peer for hop in choose(peer("a", 0, 2, 1000), peer("b", 2, 4, 1000))] == ["a", "b"]
    assert threading.active_count() == before


def test_predicted_times_are_those_of_the_last_look() -> None:
    """They are kept from one look to the next, since every step asks; a peer that has left counts for nothing."""
    slow, fast = (replace(peer("a", 0, 4, 1000), cost=ComputeCost(seconds)) for seconds in (0.01, 0.001))
    view = view_of(slow)
    router = ViewRouter(view)
    chain = [(slow.id, WHOLE)]
    rtt = view.peers[slow.id].rtt_seconds
    assert [router.predict_seconds(chain, 1) for _ in range(2)] == [pytest.approx(rtt + 0.04)] * 2
    assert router.predict_seconds(chain, 5) != router.predict_seconds(chain, 1)
    asyncio.run(view.see({fast.id: known_peer(fast)}))
    assert router.predict_seconds(chain, 1) == pytest.approx(rtt + 0.004)
    asyncio.run(view.see({}))
    assert router.predict_seconds(chain, 1) == 0.0


def test_times_are_predicted_with_the_costs_that_peers_are_chosen_for() -> None:
    """A newcomer has not measured what a visit takes: it is routed, and predicted, with the median of the others."""
    known = [replace(peer(name, 0, 4, 1000), cost=ComputeCost(0.01, visit=0.03)) for name in "abc"]
    newcomer = replace(peer("d", 0, 4, 1000), cost=ComputeCost(0.001))
    view = view_of(*known, newcomer)
    router, chain = ViewRouter(view), [(newcomer.id, WHOLE)]
    seconds = view.peers[newcomer.id].rtt_seconds + 0.03 + 4 * 0.001
    assert router.predict_seconds(chain, 1) == pytest.approx(seconds)
    assert router.predict_request(chain, RequestSpec(10, 10)).token_seconds == pytest.approx(seconds)
    chosen = asyncio.run(router.choose(WHOLE, frozenset(), RequestSpec(10, 10)))
    assert predict(chosen, view.prepared, push=True).step_seconds == pytest.approx(seconds)
