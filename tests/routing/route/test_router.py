"""The product's router against brute force over every chain of a small swarm."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from blockswarm.routing.route.budget import Meter, OverBudgetError, SearchBudget
from blockswarm.routing.route.lattice import Lattice, Spans
from blockswarm.routing.route.router import NoRouteError, RouteFinder, RouteQuery
from blockswarm.routing.rtt import RttTable
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    Coordinate,
    KvRelease,
    ModelSpec,
    PeerId,
    PeerSpec,
    PeerState,
    RequestSpec,
    Swarm,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from support.routes import cheapest_route, query_of

NOW = 100.0
DOUBT_SECONDS = 0.35


@st.composite
def swarms(draw: st.DrawFn) -> Swarm:
    """Up to five peers over up to six blocks, scarce memory, coarse numbers so that everything interacts."""
    num_blocks = draw(st.integers(1, 6))
    peers = []
    for index in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, num_blocks - 1))
        stop = draw(st.integers(start + 1, num_blocks))
        releases = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40)), max_size=3))
        peers.append(
            PeerSpec(
                id=PeerId(f"p{index}"),
                blocks=BlockRange(start, stop),
                cost=ComputeCost(
                    draw(st.integers(0, 20)) / 10,
                    prefill_fixed=draw(st.integers(0, 5)) / 10,
                    visit=draw(st.integers(0, 5)) / 10,
                ),
                kv_tokens_total=1000,
                kv_tokens_free=draw(st.sampled_from([0, 10, 20, 30, 60])),
                releases=tuple(KvRelease(NOW + at, tokens) for at, tokens in sorted(releases)),
            )
        )
    return Swarm(ModelSpec(num_blocks, 1.0, 1.0), tuple(peers), now_seconds=NOW)


def every_chain(swarm: Swarm) -> Iterator[list[tuple[PeerSpec, BlockRange]]]:
    """All chains of distinct peers, each used on any part of its range."""

    def extend(chain: list[tuple[PeerSpec, BlockRange]], at: int) -> Iterator[list[tuple[PeerSpec, BlockRange]]]:
        if at == swarm.model.num_blocks:
            yield chain
        for peer in swarm.peers:
            assert peer.blocks is not None
            if at in peer.blocks and all(peer is not used for used, _ in chain):
                for stop in range(at + 1, peer.blocks.stop + 1):
                    yield from extend([*chain, (peer, BlockRange(at, stop))], stop)

    return extend([], 0)


def brute_force(
    swarm: Swarm,
    request: RequestSpec,
    client_rtt: dict[PeerId, float],
    peer_rtt: dict[tuple[str, str], float],
    push: bool,
    doubted: frozenset[PeerId] = frozenset(),
) -> float:
    """The least sum of costs + largest wait over all chains; infinite if none has room."""

    def wait(peer: PeerSpec, blocks: int) -> float:
        available, need = peer.kv_tokens_free, blocks * request.kv_tokens_per_block
        if available >= need:
            return 0.0
        for release in peer.releases:
            available += release.tokens
            if available >= need:
                return max(0.0, release.at_seconds - swarm.now_seconds)
        return float("inf")

    def cost(chain: list[tuple[PeerSpec, BlockRange]]) -> float:
        trips = request.new_tokens
        compute = sum(
            len(blocks) * (peer.cost.prefill_fixed + (trips - 1) * peer.cost.decode_fixed) for peer, blocks in chain
        )
        ids = [peer.id for peer, _ in chain]
        compute += trips * sum(peer.cost.visit for peer, _ in chain)
        compute += trips * sum(DOUBT_SECONDS for peer in ids if peer in doubted)
        if not push:
            return compute + trips * sum(client_rtt[i] for i in ids)
        between = sum(peer_rtt[i, j] for i, j in itertools.pairwise(ids))
        return compute + trips * (client_rtt[ids[0]] + between + client_rtt[ids[-1]]) / 2

    return min(
        (cost(chain) + max(wait(peer, len(blocks)) for peer, blocks in chain) for chain in every_chain(swarm)),
        default=float("inf"),
    )


@pytest.mark.long
@settings(max_examples=250, deadline=None)
@given(swarm=swarms(), push=st.booleans(), data=st.data())
def test_the_route_is_the_best_of_all_chains(
    swarm: Swarm, push: bool, data: st.DataObject, validators: ModuleType
) -> None:
    """Exactness: entry and exit inside ranges, waits that depend on the blocks used, no peer twice."""
    request = RequestSpec(prompt_tokens=6, new_tokens=data.draw(st.sampled_from([1, 4])))
    numbers = st.integers(0, 12).map(lambda tenths: tenths / 10)
    client_rtt = {peer.id: data.draw(numbers) for peer in swarm.peers}
    peer_rtt = {(a.id, b.id): data.draw(numbers) for a in swarm.peers for b in swarm.peers}
    expected = brute_force(swarm, request, client_rtt, peer_rtt, push)
    ask = {
        "request": request,
        "client_rtt_seconds": client_rtt,
        "peer_rtt_seconds": lambda a, b: peer_rtt[a, b],
        "push": push,
    }
    if expected == float("inf"):
        with pytest.raises(NoRouteError):
            cheapest_route(swarm, **ask)
        return
    route = cheapest_route(swarm, **ask)
    validators.validate_route(route, swarm, request)
    assert route.total_seconds == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.long
@settings(max_examples=250, deadline=None)
@given(swarm=swarms(), push=st.booleans(), data=st.data())
def test_a_query_of_a_prepared_finder_is_answered_as_if_its_swarm_were_the_whole(
    swarm: Swarm, push: bool, data: st.DataObject, validators: ModuleType
) -> None:
    """A part of the blocks, later than the snapshot, with peers that are excluded, doubted, full, or about to leave."""
    request = RequestSpec(prompt_tokens=6, new_tokens=4)
    numbers = st.integers(0, 12).map(lambda tenths: tenths / 10)
    client_rtt = {peer.id: data.draw(numbers) for peer in swarm.peers}
    peer_rtt = {(a.id, b.id): data.draw(numbers) for a in swarm.peers for b in swarm.peers}
    finder = RouteFinder(swarm, client_rtt, (lambda a, b: peer_rtt[a, b]) if push else None)
    start = data.draw(st.integers(0, swarm.model.num_blocks - 1))
    part = BlockRange(start, data.draw(st.integers(start + 1, swarm.model.num_blocks)))
    fates = {
        peer.id: data.draw(st.sampled_from(["used", "used", "excluded", "full", "doubted", "shrinking"]))
        for peer in swarm.peers
    }
    now = NOW + data.draw(st.integers(0, 20))
    query = RouteQuery(
        request,
        part,
        np.array([fates[peer.id] != "excluded" for peer in finder.peers]),
        now,
        {peer: now + 7.0 for peer, fate in fates.items() if fate == "full"},
        {peer: DOUBT_SECONDS for peer, fate in fates.items() if fate == "doubted"},
        {peer.id: first_half(peer.blocks) for peer in swarm.peers if fates[peer.id] == "shrinking"},
    )
    seen = [peer for p in swarm.peers if (peer := as_seen(p, fates[p.id], part, now)) is not None]
    rest = Swarm(ModelSpec(len(part), 1.0, 1.0), tuple(seen), now_seconds=now)
    doubted = frozenset(peer for peer, fate in fates.items() if fate == "doubted")
    expected = brute_force(rest, request, client_rtt, peer_rtt, push, doubted)
    if expected == float("inf"):
        with pytest.raises(NoRouteError):
            finder.cheapest_route(query)
        return
    route = finder.cheapest_route(query)
    hops = tuple(replace(h, blocks=BlockRange(h.blocks.start - start, h.blocks.stop - start)) for h in route.hops)
    validators.validate_route(replace(route, hops=hops), rest, request)
    assert route.total_seconds == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert max(hop.wait_seconds for hop in route.hops) == route.wait_seconds


def first_half(blocks: BlockRange | None) -> BlockRange:
    assert blocks is not None
    return BlockRange(blocks.start, blocks.start + (len(blocks) + 1) // 2)


def as_seen(peer: PeerSpec, fate: str, part: BlockRange, now: float) -> PeerSpec | None:
    """The peer with nothing but the part of its range, if it may be used."""
    assert peer.blocks is not None
    hosted = first_half(peer.blocks) if fate == "shrinking" else peer.blocks
    start, stop = max(hosted.start, part.start), min(hosted.stop, part.stop)
    if fate == "excluded" or start >= stop:
        return None
    if fate == "full":
        peer = replace(peer, kv_tokens_free=0, releases=(KvRelease(now + 7.0, peer.kv_tokens_total),))
    return replace(peer, blocks=BlockRange(start - part.start, stop - part.start))


def test_a_part_of_the_lattice_is_what_the_part_of_the_ranges_compiles_to() -> None:
    rng = np.random.default_rng(3)
    starts = rng.integers(0, 9, 12)
    spans = Spans.of(12, [BlockRange(int(s), int(rng.integers(s + 1, 13))) for s in starts])
    between = rng.uniform(0, 1, (12, 12))
    for links in (None, between):
        for part in (BlockRange(0, 5), BlockRange(3, 9), BlockRange(11, 12), BlockRange(0, 12)):
            ours, fresh = Lattice.of(spans, links).within(part), Lattice.of(spans.within(part), links)
            for name in ("peer", "entry", "exit", "source", "target"):
                assert np.array_equal(getattr(ours, name), getattr(fresh, name))
            for mine, theirs in zip(ours.links[1:], fresh.links[1:], strict=True):
                assert (mine is theirs is None) or np.array_equal(mine, theirs)  # type: ignore[arg-type]


@pytest.mark.parametrize("push", [False, True])
def test_of_too_many_peers_the_cheapest_for_each_block_are_searched_without_a_proof(push: bool) -> None:
    """The memory is bounded before anything is compiled; the chain is a good one, and says that it is not proven."""
    rng = np.random.default_rng(2)
    peers = []
    for number in range(60):
        start = int(rng.integers(0, 12))
        stop = int(rng.integers(start + 1, 25))
        peers.append(peer(f"p{number:02d}", start, stop, cost=ComputeCost(float(rng.uniform(0.01, 0.1)))))
    swarm = swarm_of(*peers, peer("q", 10, 24), num_blocks=24)
    rtts = {p.id: float(rng.uniform(0.01, 0.2)) for p in swarm.peers}
    table = RttTable(swarm, client_rtt_seconds=rtts) if push else None
    whole = RouteFinder(swarm, rtts, table)
    best = whole.cheapest_route(query_of(whole, RequestSpec(10, 10)))
    assert (best.unproven_seconds, np.isfinite(whole.work)) == (0.0, True)
    tracemalloc.start()
    small = RouteFinder(swarm, rtts, table, most_bytes=200_000)
    query = query_of(small, RequestSpec(10, 10))
    route = small.cheapest_route(query)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # with what is Python's own
    assert route.unproven_seconds == float("inf")
    assert best.total_seconds <= route.total_seconds <= 1.2 * best.total_seconds
    with pytest.raises(OverBudgetError):
        small.cheapest_route(query, settle=False)
    with pytest.raises(NoRouteError, match="no usable peer hosts blocks 23") as caught:
        small.cheapest_route(replace(query, usable=np.array([p.blocks.stop < 24 for p in small.peers])))  # type: ignore[union-attr]
    assert caught.value.missing_blocks == (23,)


def test_compiling_takes_no_more_memory_than_was_estimated() -> None:
    rng = np.random.default_rng(4)
    peers = [
        peer(f"p{number:03d}", int(start), int(start) + 20) for number, start in enumerate(rng.integers(0, 21, 150))
    ]
    swarm = swarm_of(*peers, num_blocks=40)
    rtts = {p.id: 0.05 for p in peers}
    spans = Spans.of(40, [p.blocks for p in peers])
    estimate = spans.lattice_bytes(np.arange(150), linked=True) + 32 * 150**2
    tracemalloc.start()
    RouteFinder(swarm, rtts, RttTable(swarm, client_rtt_seconds=rtts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.3 * estimate < peak < estimate


def test_where_the_budget_ends_before_any_chain_is_found_nobody_says_that_there_is_none() -> None:
    swarm = swarm_of(peer("a", 0, 4, kv_tokens_free=40), peer("b", 0, 4, kv_tokens_free=40))
    stopped = Meter(SearchBudget(), lambda: 0.0)
    stopped.stop()
    with pytest.raises(NoRouteError, match="there may be one") as caught:
        route_of(swarm, meter=stopped)
    assert not caught.value.proven
    assert (caught.value.missing_blocks, caught.value.full_blocks) == ((), ())
    assert route_of(swarm) in (["a", "b"], ["b", "a"])


def peer(name: str, start: int, stop: int, **fields: object) -> PeerSpec:
    defaults = {"cost": ComputeCost(0.01), "kv_tokens_total": 10_000, "kv_tokens_free": 10_000}
    return PeerSpec(id=PeerId(name), blocks=BlockRange(start, stop), **{**defaults, **fields})  # type: ignore[arg-type]


def route_of(swarm: Swarm, **fields: object) -> list[str]:
    ask = {
        "request": RequestSpec(10, 10),
        "client_rtt_seconds": {p.id: 0.05 for p in swarm.peers},
        "peer_rtt_seconds": lambda a, b: 0.05,
    }
    return [hop.peer for hop in cheapest_route(swarm, **{**ask, **fields}).hops]  # type: ignore[arg-type]


def swarm_of(*peers: PeerSpec, num_blocks: int = 4) -> Swarm:
    return Swarm(ModelSpec(num_blocks, 1.0, 1.0), tuple(sorted(peers, key=lambda p: p.id)))


def test_missing_blocks_are_named() -> None:
    with pytest.raises(NoRouteError) as caught:
        route_of(swarm_of(peer("a", 0, 1), peer("b", 3, 4), peer("c", 1, 4, state=PeerState.DRAINING)))
    assert caught.value.missing_blocks == (1, 2)


def test_blocks_without_room_are_told_apart_from_blocks_without_host() -> None:
    with pytest.raises(NoRouteError, match=r"no usable peer hosts blocks 3; no host of blocks 2 has room") as caught:
        route_of(swarm_of(peer("a", 0, 2), peer("b", 2, 3, kv_tokens_free=19)))
    assert caught.value.missing_blocks == (3,)
    assert caught.value.full_blocks == (2,)
    assert caught.value.retry_seconds == float("inf")


def test_full_peers_say_when_more_is_known() -> None:
    """Among the hosts of the full blocks, the one whose last announced release comes first counts."""
    late = {"kv_tokens_free": 0, "releases": (KvRelease(5.0, 1), KvRelease(50.0, 1))}
    soon = {"kv_tokens_free": 0, "releases": (KvRelease(7.0, 1),)}
    with pytest.raises(NoRouteError, match=r"no host of blocks 2, 3 has room .* or try again later") as caught:
        route_of(swarm_of(peer("a", 0, 2), peer("b", 2, 4, **late), peer("c", 2, 4, **soon)))
    assert (caught.value.missing_blocks, caught.value.full_blocks) == ((), (2, 3))
    assert caught.value.retry_seconds == 7.0


def test_a_request_larger_than_empty_peers_need_not_wait() -> None:
    with pytest.raises(NoRouteError, match=r"shorten it$") as caught:
        route_of(swarm_of(peer("a", 0, 2), peer("b", 2, 4, kv_tokens_free=19, kv_tokens_total=19)))
    assert caught.value.full_blocks == (2, 3)
    assert caught.value.retry_seconds == float("inf")


@pytest.mark.parametrize("push", [False, True])
def test_without_usable_peers_all_blocks_are_missing(push: bool) -> None:
    for swarm in (swarm_of(), swarm_of(peer("a", 0, 4, state=PeerState.DRAINING))):
        with pytest.raises(NoRouteError) as caught:
            route_of(swarm, push=push)
        assert caught.value.missing_blocks == (0, 1, 2, 3)
    with pytest.raises(NoRouteError) as caught:
        route_of(swarm_of(peer("a", 0, 4)), push=push, excluded=frozenset({PeerId("a")}))
    assert caught.value.missing_blocks == (0, 1, 2, 3)


def test_no_chain_of_distinct_peers_has_room() -> None:
    """One host with room for half of its blocks could only be used twice, which no chain may do."""
    with pytest.raises(NoRouteError) as caught:
        route_of(swarm_of(peer("a", 0, 4, kv_tokens_free=40)))
    assert caught.value.missing_blocks == caught.value.full_blocks == ()
    assert caught.value.retry_seconds == 0.0


def test_excluded_and_unreachable_peers_are_not_used() -> None:
    swarm = swarm_of(peer("a", 0, 4), peer("b", 0, 4, cost=ComputeCost(0.1)), peer("c", 0, 4, cost=ComputeCost(0.2)))
    assert route_of(swarm) == ["a"]
    assert route_of(swarm, excluded=frozenset({PeerId("a")})) == ["b"]
    assert route_of(swarm, client_rtt_seconds={PeerId("c"): 0.1}) == ["c"]


def test_push_follows_the_short_links_and_hub_the_near_peers() -> None:
    near = {PeerId("a"): 0.1, PeerId("b"): 0.1, PeerId("c"): 0.9}
    swarm = swarm_of(peer("a", 0, 2), peer("b", 2, 4), peer("c", 2, 4))
    rtt = {("a", "b"): 2.0, ("a", "c"): 0.01}
    ask = {"client_rtt_seconds": near, "peer_rtt_seconds": lambda a, b: rtt.get((a, b), 1.0)}
    assert route_of(swarm, push=True, **ask) == ["a", "c"]
    assert route_of(swarm, push=False, **ask) == ["a", "b"]


def test_the_table_and_a_plain_callable_give_the_same_route() -> None:
    peers = [peer(f"p{i}", i, i + 2, coordinate=Coordinate((i * 0.1, 0.0), 0.01)) for i in range(3)]
    swarm = swarm_of(*peers, peer("q", 1, 4, coordinate=Coordinate((0.0, 0.1), 0.01)))
    table = RttTable(swarm)
    assert route_of(swarm, peer_rtt_seconds=table) == route_of(swarm, peer_rtt_seconds=lambda a, b: table(a, b))


@pytest.mark.parametrize("rtt", [-0.1, float("inf")])
def test_absurd_round_trips_are_refused(rtt: float) -> None:
    with pytest.raises(ValueError, match="client_rtt_seconds"):
        route_of(swarm_of(peer("a", 0, 4)), client_rtt_seconds={PeerId("a"): rtt})
