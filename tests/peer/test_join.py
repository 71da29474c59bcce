"""How a peer gets into a swarm, with a real node of the DHT."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from blockswarm.peer.config import BlockRequest, PeerConfig
from blockswarm.peer.join import join_swarm
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import WrongSwarm
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.transport import Dialer, Handlers, serve
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION

pytestmark = [
    pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning"),  # hivemind's
    pytest.mark.skipif(sys.platform == "win32", reason="hivemind has no wheel for Windows"),
]


def a_config(folder: Path, announce: tuple[str, ...], dht_port: int = 0) -> PeerConfig:
    """The first peer of a new swarm, on loopback."""
    return PeerConfig(
        model="model", blocks=BlockRequest(), initial_peers=(), identity_path=folder / "key", host="127.0.0.1", port=0,
        announce=announce, dht_port=dht_port, swarm_key_path=None, allowed_peers=frozenset(), kv_tokens=1,
        replay_bytes=0, prefix_cache_bytes=0, device="cpu", dtype="auto", quantize="none", threads=1, nice=False,
        data_folder=folder, metrics_host="127.0.0.1", metrics_port=None, name="", revision=None,
    )  # fmt: skip


async def visible_maddrs(config: PeerConfig) -> tuple[str, ...]:
    async with join_swarm(config, Dialer(), "0" * 64, None) as directory:
        return await directory.visible_maddrs()


def test_the_dht_too_is_told_the_announced_host(tmp_path: Path) -> None:
    """A peer behind a forwarded port would otherwise lead others to an address that only its own network knows."""
    config = a_config(tmp_path, ("192.0.2.7:4000", "[2001:db8::7]:4000", "peer.example.org:4000"))
    hosts = [maddr.partition("/tcp/")[0] for maddr in asyncio.run(visible_maddrs(config))]
    assert hosts == ["/ip4/192.0.2.7", "/ip6/2001:db8::7", "/dns/peer.example.org"]


def test_a_swarm_of_another_protocol_is_not_joined(tmp_path: Path) -> None:
    """Its model has another digest there, so without the version the user would look for a difference in the files."""

    async def ping(request: pb.PingRequest, context: object) -> pb.PingReply:
        return pb.PingReply(protocol=2, model_digest="1" * 64, model_name="the same model")

    async def unused(*args: object) -> None:
        raise AssertionError("not called in this test")

    async def main() -> None:
        old, dialer = Identity.generate(), Dialer()
        server, port = await serve(old, Handlers(unused, unused, unused, ping), "127.0.0.1", 0)
        config = replace(a_config(tmp_path, ()), initial_peers=(PeerAddress(old.peer_id, f"127.0.0.1:{port}"),))
        try:
            with pytest.raises(WrongSwarm, match=rf"protocol {PROTOCOL_VERSION} .* 2\b"):
                async with join_swarm(config, dialer, "0" * 64, None):
                    pass
        finally:
            await dialer.close()
            await server.stop(grace=0)

    asyncio.run(main())


def test_without_an_announced_host_the_dht_names_its_own(tmp_path: Path) -> None:
    (visible,) = asyncio.run(visible_maddrs(a_config(tmp_path, ())))
    assert visible.startswith("/ip4/127.0.0.1/tcp/")
