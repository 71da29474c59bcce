"""Peers as a client knows them after a look, without any network."""

from __future__ import annotations

from types import SimpleNamespace

from blockswarm.client.swarm.known import KnownPeer
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.messages.calls import PingReply
from blockswarm.routing.swarm import PeerSpec


def known_peer(spec: PeerSpec, clock_offset_seconds: float = 0.0) -> KnownPeer:
    """A peer 50 ms away."""
    record = SimpleNamespace(spec=spec, incarnation=1, public_name="")
    encoded, address = f"record of {spec.id}".encode(), PeerAddress(spec.id, "h:1")
    return KnownPeer(record, encoded, address, 0.05, clock_offset_seconds, PingReply())  # type: ignore[arg-type]
