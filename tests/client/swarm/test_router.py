"""No chain exists: no host of a block, no room, or a request too large; and the client says which."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from blockswarm.client.chain.machine.events import HopChoice
from blockswarm.client.swarm.bans import Bans
from blockswarm.client.swarm.router import ViewRouter
from blockswarm.client.swarm.view import KnownPeer, SwarmView
from blockswarm.client.timing import ClientTiming
from blockswarm.proto.errors import NoChainError, PeerBusy, PeerUnavailable, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.messages.calls import PingReply
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
from blockswarm.routing.trust import weigh


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


def choose(*peers: PeerSpec, blocks: BlockRange = WHOLE, min_precision: str | None = None) -> tuple[HopChoice, ...]:
    """The choice of the router of a swarm of four blocks at time 0."""
    known = {
        p.id: SimpleNamespace(
            rtt_seconds=0.05,
            record=SimpleNamespace(spec=p),
            address=PeerAddress(p.id, "h:1"),
            encoded=b"",
            run=(p.id, 0),
        )
        for p in peers
    }
    view = SimpleNamespace(
        snapshot=lambda num_blocks: Swarm(ModelSpec(num_blocks, 0.0, 0.0), peers),
        peers=known,
        bans=Bans(lambda: 0.0, ClientTiming()),
        trust=weigh(peers, {}, {}),
    )
    router = ViewRouter(view, 4)  # type: ignore[arg-type]
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
    assert "too small for the request" in str(error)


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


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def known(spec: PeerSpec, offset_seconds: float = 0.0) -> KnownPeer:
    record = SimpleNamespace(spec=spec, incarnation=1)
    return KnownPeer(record, b"", PeerAddress(spec.id, "h:1"), 0.05, offset_seconds, PingReply())  # type: ignore[arg-type]


def test_a_peer_that_refused_is_full_until_it_said_and_then_as_announced() -> None:
    """Its blocks are not missing meanwhile: the router counts on the room that it promised."""
    clock = Clock()
    view = SwarmView(Identity.generate(), None, (), "ab" * 32, None, clock)  # type: ignore[arg-type]
    spec = peer("a", 0, 4, 500, KvRelease(1100.0, 500))
    view.peers = {spec.id: known(spec)}
    view.ban(spec.id, PeerBusy(20.0))
    (full,) = view.snapshot(4).peers
    assert (full.kv_tokens_free, full.releases) == (0, (KvRelease(1020.0, 1000),))
    clock.now = 1020.0
    assert view.snapshot(4).peers == (spec,)
    view.ban(spec.id, PeerUnavailable("gone"))
    assert view.snapshot(4).peers == ()


def test_announced_releases_are_seen_on_this_clock() -> None:
    view = SwarmView(Identity.generate(), None, (), "ab" * 32, None, Clock())  # type: ignore[arg-type]
    spec = peer("a", 0, 4, 0, KvRelease(1100.0, 500))
    view.peers = {spec.id: known(spec, offset_seconds=25.0)}
    assert view.snapshot(4).peers[0].releases == (KvRelease(1075.0, 500),)
