"""The prediction of a chain's steps adds up to what the router minimises."""

from __future__ import annotations

import pytest
from blockswarm.routing.releases import Room
from blockswarm.routing.route.predict import predict_step
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    KvRelease,
    ModelSpec,
    PeerId,
    PeerSpec,
    RequestSpec,
    Swarm,
)
from hypothesis import given
from hypothesis import strategies as st
from support.routes import cheapest_route

NOW = 50.0
COSTS = st.builds(ComputeCost, *(st.integers(0, 20).map(lambda n: n / 100) for _ in range(5)))


@pytest.mark.long
@given(
    costs=st.tuples(COSTS, COSTS, COSTS),
    rtts=st.tuples(*(st.integers(0, 30).map(lambda n: n / 100) for _ in range(6))),
    free=st.tuples(*(st.sampled_from([0, 60, 200]) for _ in range(3))),
    push=st.booleans(),
)
def test_the_steps_of_a_request_take_as_long_as_its_route_costs(
    costs: tuple[ComputeCost, ...], rtts: tuple[float, ...], free: tuple[int, ...], push: bool
) -> None:
    """One prefill and the decode steps, at their mean context; the wait is the router's, too."""
    ranges = (BlockRange(0, 2), BlockRange(1, 4), BlockRange(3, 6))
    peers = tuple(
        PeerSpec(PeerId(name), blocks, cost, kv_tokens_total=200, kv_tokens_free=room,
                 releases=(KvRelease(NOW + 7.0, 200),))
        for name, blocks, cost, room in zip("abc", ranges, costs, free, strict=True)
    )  # fmt: skip
    swarm = Swarm(ModelSpec(6, 1.0, 1.0), peers, now_seconds=NOW)
    client = dict(zip((peer.id for peer in peers), rtts[:3], strict=True))
    between = {frozenset(pair): rtt for pair, rtt in zip(("ab", "bc", "ac"), rtts[3:], strict=True)}

    def peer_rtt(first: PeerId, second: PeerId) -> float:
        return between[frozenset((first, second))]

    request = RequestSpec(prompt_tokens=12, new_tokens=9)
    route = cheapest_route(swarm, request=request, client_rtt_seconds=client, peer_rtt_seconds=peer_rtt, push=push)
    chain = [(swarm.peer(hop.peer), hop.blocks) for hop in route.hops]
    ways = {"client_rtt_seconds": client, "peer_rtt_seconds": peer_rtt if push else None}
    prefill = predict_step(chain, tokens=12, kv_tokens_per_block=request.kv_tokens_per_block, now_seconds=NOW, **ways)
    decode = predict_step(chain, tokens=1, context_tokens=request.mean_context_tokens, **ways)
    assert prefill.step_seconds + 8 * decode.step_seconds == pytest.approx(route.cost_seconds)
    assert prefill.wait_seconds == route.wait_seconds
    assert decode.wait_seconds == 0.0


def test_every_hop_says_its_way_its_computation_and_its_wait() -> None:
    a = PeerSpec(PeerId("a"), BlockRange(0, 4), ComputeCost(0.01), kv_tokens_free=100)
    b = PeerSpec(PeerId("b"), BlockRange(4, 6), ComputeCost(0.1), releases=(KvRelease(60.0, 500),))
    chain = [(a, BlockRange(0, 4)), (b, BlockRange(4, 6))]
    client = {a.id: 0.2, b.id: 0.4}
    times = predict_step(
        chain, tokens=1, client_rtt_seconds=client, peer_rtt_seconds=lambda node, other: 0.1,
        kv_tokens_per_block=25, now_seconds=NOW,
    )  # fmt: skip
    assert [hop.way_seconds for hop in times.hops] == pytest.approx([0.1, 0.05])
    assert [hop.compute_seconds for hop in times.hops] == pytest.approx([0.04, 0.2])
    assert [hop.wait_seconds for hop in times.hops] == [0.0, Room(0, b.releases).wait_seconds(50, NOW)] == [0.0, 10.0]
    assert times.return_seconds == 0.2
    assert (times.step_seconds, times.wait_seconds) == (pytest.approx(0.59), 10.0)
    hub = predict_step(chain, tokens=1, client_rtt_seconds=client, peer_rtt_seconds=None)
    assert hub.step_seconds == pytest.approx(0.6 + 0.24), "every hop is a round trip from the client"
    empty = predict_step((), tokens=1, client_rtt_seconds={}, peer_rtt_seconds=None)
    assert (empty.step_seconds, empty.wait_seconds) == (0.0, 0.0)
