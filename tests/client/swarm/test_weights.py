"""Networks vote about the weights, as the client reached the peers; ids, ports and names do not."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.view import SwarmView
from blockswarm.client.swarm.weights import WeightTrust
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress, Reach, RelayedAddress
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec
from blockswarm.routing.trust import Evidence

GOOD, BAD = b"g" * 8, b"b" * 8
RELAY = PeerId("relay")


def known(name: str, block_hash: bytes, target: str, relayed: bool = False) -> KnownPeer:
    """A peer of two blocks that was reached at `target`, or through a relay there."""
    spec = PeerSpec(PeerId(name), BlockRange(0, 2), ComputeCost(0.01), block_hashes=(block_hash,) * 2)
    address: Reach = PeerAddress(spec.id, target)
    if relayed:
        address = RelayedAddress(spec.id, PeerAddress(RELAY, target))
    return KnownPeer(SimpleNamespace(spec=spec, incarnation=1), b"", address, 0.05, 0.0, pb.PingReply())  # type: ignore[arg-type]


def by_id(*peers: KnownPeer) -> dict[PeerId, KnownPeer]:
    return {peer.record.spec.id: peer for peer in peers}


HONEST = by_id(known("h1", GOOD, "8.8.1.1:1"), known("h2", GOOD, "8.8.2.1:1"), known("h3", GOOD, "[2600:1:2::1]:1"))


@pytest.mark.parametrize("relayed", [False, True], ids=["direct", "behind a relay"])
def test_twenty_ids_in_one_network_do_not_displace_three(relayed: bool) -> None:
    attackers = by_id(*(known(f"a{n}", BAD, f"9.9.9.{n}:{1000 + n}", relayed) for n in range(20)))
    trust = WeightTrust({}).among({**attackers, **HONEST})
    assert trust.believed == dict.fromkeys(HONEST, Evidence.MAJORITY)
    assert trust.doubted.keys() == attackers.keys()


def test_twenty_names_are_one_network() -> None:
    attackers = by_id(*(known(f"a{n}", BAD, f"host{n}.example{n}.org:1") for n in range(20)))
    assert WeightTrust({}).among({**attackers, **HONEST}).believed.keys() == HONEST.keys()


def test_what_is_proven_needs_no_vote() -> None:
    everywhere = by_id(*(known(f"a{n}", BAD, f"9.9.{n}.1:1") for n in range(20)))
    trust = WeightTrust({0: GOOD, 1: GOOD}).among({**everywhere, **HONEST})
    assert trust.believed == dict.fromkeys(HONEST, Evidence.PROVEN)


def test_a_peer_is_reported_when_it_is_first_doubted(caplog: pytest.LogCaptureFixture) -> None:
    weights = WeightTrust({})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            weights.among({**HONEST, **by_id(known("liar", BAD, "9.9.9.9:1"))})
    assert [record.message for record in caplog.records if "liar" in record.message] == [caplog.records[0].message]


def test_doubted_peers_are_not_usable() -> None:
    view = SwarmView(Identity.generate(), None, (), "ab" * 32, 2, None)  # type: ignore[arg-type]
    liar = known("liar", BAD, "9.9.9.9:1")
    asyncio.run(view.see({**HONEST, **by_id(liar)}))
    assert [usable.record.spec.id for usable in view.usable()] == sorted(HONEST)
    assert [spec.id for spec in view.current().prepared.finder.peers] == sorted(HONEST)
