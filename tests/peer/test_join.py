"""How a peer gets into a swarm, and finds it again, with real nodes of the DHT."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blockswarm.peer.config import BlockRequest, PeerConfig
from blockswarm.peer.join import RememberedPeers, join_swarm, remember_swarm
from blockswarm.peer.offer.lookups import RecentLookups
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.errors import PeerUnavailable, WrongSwarm
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.transport import Dialer, Handlers, serve
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply, PingRequest
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec, PeerState
from support.directories import a_record, until

pytestmark = [
    pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning"),  # hivemind's
    pytest.mark.skipif(sys.platform == "win32", reason="hivemind has no wheel for Windows"),
]


DIGEST = "0" * 64


def a_config(folder: Path, announce: tuple[str, ...], dht_port: int = 0) -> PeerConfig:
    """The first peer of a new swarm, on loopback."""
    return PeerConfig(
        model="model", blocks=BlockRequest(), initial_peers=(), identity_path=folder / "key", host="127.0.0.1", port=0,
        announce=announce, dht_port=dht_port, swarm_key_path=None, allowed_peers=frozenset(), kv_tokens=1,
        replay_bytes=0, prefix_cache_bytes=0, device="cpu", dtype="auto", quantize="none", threads=1, nice=False,
        data_folder=folder, metrics_host="127.0.0.1", metrics_port=None, name="", revision=None,
    )  # fmt: skip


async def visible_maddrs(config: PeerConfig) -> tuple[str, ...]:
    async with join_swarm(config, Dialer(), DIGEST, None) as (directory, _):
        return await directory.visible_maddrs()


def test_the_dht_too_is_told_the_announced_host(tmp_path: Path) -> None:
    """A peer behind a forwarded port would otherwise lead others to an address that only its own network knows."""
    config = a_config(tmp_path, ("192.0.2.7:4000", "[2001:db8::7]:4000", "peer.example.org:4000"))
    hosts = [maddr.partition("/tcp/")[0] for maddr in asyncio.run(visible_maddrs(config))]
    assert hosts == ["/ip4/192.0.2.7", "/ip6/2001:db8::7", "/dns/peer.example.org"]


def test_a_swarm_of_another_protocol_is_not_joined(tmp_path: Path) -> None:
    """Its model has another digest there, so without the version the user would look for a difference in the files."""

    async def ping(request: PingRequest) -> PingReply:
        return PingReply(protocol=2, model_digest="1" * 64, model_name="the same model")

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


@pytest.mark.long
def test_without_an_announced_host_the_dht_names_its_own(tmp_path: Path) -> None:
    (visible,) = asyncio.run(visible_maddrs(a_config(tmp_path, ())))
    assert visible.startswith("/ip4/127.0.0.1/tcp/")


@asynccontextmanager
async def pinged_peer(dht_addresses: Sequence[str]) -> AsyncIterator[PeerAddress]:
    """A peer that answers pings and does nothing else."""
    identity = Identity.generate()

    async def nothing(*_: Any) -> Any:
        raise AssertionError("only pings are expected")

    async def ping(_request: PingRequest) -> PingReply:
        return PingReply(
            clock=time.time(), peer_id=identity.peer_id, protocol=PROTOCOL_VERSION, model_digest=DIGEST,
            dht_addresses=dht_addresses,
        )  # fmt: skip

    server, port = await serve(identity, Handlers(nothing, nothing, nothing, ping), "127.0.0.1", 0)
    try:
        yield PeerAddress(identity.peer_id, f"127.0.0.1:{port}")
    finally:
        await server.stop(grace=0)


@pytest.mark.swarm
@pytest.mark.long
def test_initial_peers_without_a_dht_are_no_leave_to_begin_a_swarm(tmp_path: Path) -> None:
    """A peer that is just starting answers before its node of the DHT is up."""

    async def scenario() -> None:
        async with pinged_peer([]) as address:
            config = replace(a_config(tmp_path, ()), initial_peers=(address,))
            with pytest.raises(PeerUnavailable, match="in no DHT yet"):
                await visible_maddrs(config)

    asyncio.run(scenario())


@pytest.mark.swarm
@pytest.mark.long
def test_peers_that_were_met_make_up_for_initial_peers_that_are_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first peer of all is often an initial peer of everybody; and it begins the swarm anew with --new-swarm."""

    async def scenario() -> None:
        dialer = Dialer()
        async with join_swarm(a_config(tmp_path / "first", ()), dialer, DIGEST, None) as (first, _):
            maddrs = await first.visible_maddrs()
            async with pinged_peer(["nonsense", *maddrs]) as address:
                second = replace(a_config(tmp_path / "second", ()), initial_peers=(address,))
                async with join_swarm(second, dialer, DIGEST, None) as (directory, _):
                    await directory.announce(a_record(Identity.generate(), "name", time.time() + 60))
                    await until(lambda: directory.met_maddrs)
                    RememberedPeers(second.data_folder, DIGEST, None).save(directory.met_maddrs)
            async with join_swarm(second, dialer, DIGEST, None) as (directory, _):
                assert len(await directory.lookup("name")) == 1
            async with join_swarm(replace(second, initial_peers=()), dialer, DIGEST, None) as (directory, _):
                assert len(await directory.lookup("name")) == 1
        with pytest.raises(PeerUnavailable, match="cannot be reached"):
            await visible_maddrs(replace(second, timing=PeerTiming(join_seconds=0.0)))
        caplog.clear()
        alone = replace(second, initial_peers=(), timing=PeerTiming(join_remembered_seconds=0.0))
        async with join_swarm(alone, dialer, DIGEST, None) as (directory, _):
            assert directory.isolated
        await dialer.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert any("the swarm begins anew" in line for line in caplog.messages)


# --- what is remembered --------------------------------------------------------------------------------------------


def test_every_swarm_is_remembered_on_its_own(tmp_path: Path) -> None:
    folder, key = tmp_path / "new", SwarmKey.generate()
    remembered = RememberedPeers(folder, DIGEST, None)
    assert remembered.load() == ()
    remembered.save(["/ip4/192.0.2.1/tcp/1/p2p/a"] * 1000)
    assert set(RememberedPeers(folder, DIGEST, None).load()) == {"/ip4/192.0.2.1/tcp/1/p2p/a"}
    assert RememberedPeers(folder, "1" * 64, None).load() == ()
    assert RememberedPeers(folder, DIGEST, key).load() == ()
    remembered.save([])
    assert remembered.load() == ()


@pytest.mark.parametrize("content", ["", "{}", "[1, null]", '"x"', "[" * 60_000, "\x00\xff", f'["{"x" * 5000}"]'])
def test_a_garbled_file_is_an_empty_one(tmp_path: Path, content: str) -> None:
    remembered = RememberedPeers(tmp_path, DIGEST, None)
    remembered.save(["/ip4/192.0.2.1/tcp/1/p2p/a"])
    (path,) = tmp_path.iterdir()
    path.write_bytes(content.encode("latin-1"))
    assert remembered.load() == ()
    path.write_text("[]" + " " * 10**6)
    assert remembered.load() == ()


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    RememberedPeers(tmp_path / "file", DIGEST, None).save(["/ip4/192.0.2.1/tcp/1/p2p/a"])


class MetDirectory:
    """A directory that has met peers and finds records."""

    isolated = False

    def __init__(self, records: Sequence[SignedRecord]) -> None:
        self.met_maddrs: tuple[str, ...] = tuple(f"/ip4/192.0.2.1/tcp/1/p2p/{record.peer_id}" for record in records)
        self.records = records

    def forget(self, peer_id: str) -> None:
        self.met_maddrs = tuple(maddr for maddr in self.met_maddrs if not maddr.endswith(peer_id))

    async def lookup(self, name: str) -> Sequence[SignedRecord]:
        return self.records


def test_a_peer_that_left_is_not_expected_back(tmp_path: Path) -> None:
    def record(state: PeerState) -> SignedRecord:
        identity = Identity.generate()
        spec = PeerSpec(identity.peer_id, BlockRange(0, 2), ComputeCost(1e-3), state, block_hashes=(b"8" * 8,) * 2)
        return sign_peer_record(identity, PeerRecord(DIGEST, spec), None, time.time() + 60)

    async def scenario() -> None:
        directory: Any = MetDirectory([record(PeerState.SERVING), record(PeerState.LEAVING)])
        stays, _ = directory.met_maddrs
        lookups = RecentLookups(directory, DIGEST, None, time.time, PeerTiming())
        remembered = RememberedPeers(tmp_path, DIGEST, None)
        task = asyncio.create_task(remember_swarm(directory, lookups, remembered, None, PeerTiming()))
        while remembered.load() != (stays,):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert directory.met_maddrs == (stays,)
        task.cancel()
        await lookups.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))
