"""The prediction of a chain's steps adds up to what the router minimises."""

from __future__ import annotations

import pytest
from blockswarm.routing.releases import Room
from blockswarm.routing.route.predict import predict_request, predict_step
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
COSTS = st.builds(ComputeCost, *(st.integers(0, 20).map(lambda n: n / 100) for _ in range(6)))


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
    a = PeerSpec(PeerId("a"), BlockRange(0, 4), ComputeCost(0.01, visit=0.03), kv_tokens_free=100)
    b = PeerSpec(PeerId("b"), BlockRange(4, 6), ComputeCost(0.1), releases=(KvRelease(60.0, 500),))
    chain = [(a, BlockRange(0, 4)), (b, BlockRange(4, 6))]
    client = {a.id: 0.2, b.id: 0.4}
    times = predict_step(
        chain, tokens=1, client_rtt_seconds=client, peer_rtt_seconds=lambda node, other: 0.1,
        kv_tokens_per_block=25, now_seconds=NOW,
    )  # fmt: skip
    assert [hop.way_seconds for hop in times.hops] == pytest.approx([0.1, 0.05])
    assert [hop.visit_seconds for hop in times.hops] == [0.03, 0.0]
    assert [hop.compute_seconds for hop in times.hops] == pytest.approx([0.04, 0.2])
    assert [hop.wait_seconds for hop in times.hops] == [0.0, Room(0, b.releases).wait_seconds(50, NOW)] == [0.0, 10.0]
    assert times.return_seconds == 0.2
    assert (times.step_seconds, times.wait_seconds) == (pytest.approx(0.62), 10.0)
    hub = predict_step(chain, tokens=1, client_rtt_seconds=client, peer_rtt_seconds=None)
    assert hub.step_seconds == pytest.approx(0.6 + 0.03 + 0.24), "every hop is a round trip from the client"
    empty = predict_step((), tokens=1, client_rtt_seconds={}, peer_rtt_seconds=None)
    assert (empty.step_seconds, empty.wait_seconds) == (0.0, 0.0)


def visited(name: str, seconds: float, per_token: float, visit: float = 0.0) -> PeerSpec:
    cost = ComputeCost(seconds, 0.0, 0.001, 0.0, per_token, visit)
    return PeerSpec(PeerId(name), BlockRange(0, 2), cost, kv_tokens_total=1000, kv_tokens_free=1000)


def test_a_long_prompt_goes_down_the_chain_in_steps_that_follow_each_other() -> None:
    """By hand: steps of 10, 10 and 5 tokens over two blocks each; the second peer is the slower one."""
    chain = [(visited("a", 0.01, 0.001), BlockRange(0, 2)), (visited("b", 0.02, 0.002), BlockRange(2, 4))]
    rtts = {PeerId("a"): 0.2, PeerId("b"): 0.4}
    times = predict_request(
        chain,
        RequestSpec(25, 10),
        step_tokens=10,
        client_rtt_seconds=rtts,
        peer_rtt_seconds=lambda a, b: 0.1,
    )
    # a: 0.1 + 0.02 = 0.12, the way: 0.17, then b is busy without a break for 0.04 + 0.04 + 0.02, and the way back.
    assert times.first_token_seconds == pytest.approx(0.4 + 0.17 + 0.10 + 0.2)
    # 0.1 + 0.05 + 0.2 on the way; per block 0.01 and 0.02, and 30 tokens of context at 0.001.
    assert times.token_seconds == pytest.approx(0.35 + 2 * (0.01 + 0.03) + 2 * (0.02 + 0.03))
    assert times.wait_seconds == 0
