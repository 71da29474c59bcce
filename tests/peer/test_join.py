"""How a peer gets into a swarm, and finds it again, with real nodes of the DHT."""

from __future__ import annotations

import asyncio
import ipaddress
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
from blockswarm.peer.join import RememberedPeers, first_contacts, join_swarm, remember_swarm
from blockswarm.peer.offer.lookups import RecentLookups
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.errors import ModelMismatch, PeerUnavailable, WrongSwarm
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE, DialRule
from blockswarm.proto.network.transport import Dialer, Handlers, serve
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply, PingRequest
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec, PeerState
from support.directories import a_record, until
from support.silent_ports import silent_port

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


@asynccontextmanager
async def joined(
    config: PeerConfig, dialer: Dialer, digest: str, swarm_key: SwarmKey | None, *, reached: bool = True
) -> AsyncIterator[tuple[Any, RecentLookups]]:
    contacts = await first_contacts(config, dialer, digest, swarm_key)
    async with join_swarm(config, dialer, digest, swarm_key, contacts, reached) as found:
        yield found


async def visible_maddrs(config: PeerConfig) -> tuple[str, ...]:
    async with joined(config, Dialer(rule=EVERY_RANGE), DIGEST, None) as (directory, _):
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
        old, dialer = Identity.generate(), Dialer(rule=EVERY_RANGE)
        server, port = await serve(old, Handlers(unused, unused, unused, ping), "127.0.0.1", 0)
        config = replace(a_config(tmp_path, ()), initial_peers=(PeerAddress(old.peer_id, f"127.0.0.1:{port}"),))
        try:
            with pytest.raises(WrongSwarm, match=rf"protocol {PROTOCOL_VERSION} .* 2\b"):
                async with joined(config, dialer, "0" * 64, None):
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
async def pinged_peer(dht_addresses: Sequence[str], **said: Any) -> AsyncIterator[PeerAddress]:
    """A peer that answers pings and does nothing else."""
    identity = Identity.generate()

    async def nothing(*_: Any) -> Any:
        raise AssertionError("only pings are expected")

    async def ping(_request: PingRequest) -> PingReply:
        honest = PingReply(
            clock=time.time(), peer_id=identity.peer_id, protocol=PROTOCOL_VERSION, model_digest=DIGEST,
            dht_addresses=tuple(dht_addresses),
        )  # fmt: skip
        return replace(honest, **said)

    server, port = await serve(identity, Handlers(nothing, nothing, nothing, ping), "127.0.0.1", 0)
    try:
        yield PeerAddress(identity.peer_id, f"127.0.0.1:{port}")
    finally:
        await server.stop(grace=0)


@pytest.mark.swarm
def test_an_initial_peer_cannot_send_a_newcomer_anywhere(tmp_path: Path) -> None:
    """Where it says that its node of the DHT is, is a claim like one in a record."""

    async def scenario() -> None:
        elsewhere = [f"/ip4/{host}/tcp/1/p2p/{Identity.generate().peer_id}" for host in ("0.0.0.0", "224.0.0.1")]
        async with pinged_peer(elsewhere) as address:
            config = replace(a_config(tmp_path, ()), initial_peers=(address,))
            dialer = Dialer(named=[address])
            with pytest.raises(PeerUnavailable, match=r"not dialled: /ip4/0\.0\.0\.0"):
                async with joined(config, dialer, DIGEST, None):
                    pass
            await dialer.close()

    asyncio.run(scenario())


def test_where_a_peer_dials_follows_from_how_it_was_started(tmp_path: Path) -> None:
    def dials(rule: DialRule, address: str) -> bool:
        return rule.allows(ipaddress.ip_address(address))

    public = a_config(tmp_path, ("8.8.8.8:4000",))
    assert public.dial_rule(private=False) == DialRule()
    assert public.dial_rule(private=True) == replace(public, lan=True).dial_rule(private=False) == EVERY_RANGE
    at_home = a_config(tmp_path, ("192.168.1.2:4000",))
    assert dials(at_home.dial_rule(private=False), "192.168.1.3")
    assert not dials(at_home.dial_rule(private=False), "127.0.0.1")
    on_one_machine = a_config(tmp_path, ())
    assert dials(on_one_machine.dial_rule(private=False), "127.0.0.1")
    joins = replace(on_one_machine, initial_peers=(PeerAddress(Identity.generate().peer_id, "8.8.8.8:1"),))
    assert joins.dial_rule(private=False) == DialRule(), "where it listens itself says nothing of the swarm"


def test_initial_peers_are_asked_side_by_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first that answers is enough when the patience is over; without any, a line says what is waited for."""
    timing = PeerTiming(join_patience_seconds=0.05, join_ping_seconds=60.0)

    async def scenario() -> None:
        dialer = Dialer(rule=EVERY_RANGE)
        async with silent_port() as silent, pinged_peer(["/ip4/127.0.0.1/tcp/1/p2p/x"]) as good:
            dead = [PeerAddress(Identity.generate().peer_id, silent.target) for _ in range(2)]
            config = replace(a_config(tmp_path, ()), initial_peers=(dead[0], good, dead[1]), timing=timing)
            assert len((await first_contacts(config, dialer, DIGEST, None)).maddrs) == 1
            assert await silent.until_knocks(2, 20)
            assert not caplog.messages
            config = replace(config, initial_peers=tuple(dead), timing=replace(timing, join_ping_seconds=0.5))
            with pytest.raises(PeerUnavailable, match="none of the initial peers answers"):
                await first_contacts(config, dialer, DIGEST, None)
        await dialer.close()

    with caplog.at_level(logging.INFO, "blockswarm.peer.join"):
        asyncio.run(asyncio.wait_for(scenario(), 60))
    assert "2 of 2 initial peers do not answer yet, waiting up to 0 s" in caplog.messages


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
        dialer = Dialer(rule=EVERY_RANGE)
        async with joined(a_config(tmp_path / "first", ()), dialer, DIGEST, None) as (first, _):
            maddrs = await first.visible_maddrs()
            async with pinged_peer(["nonsense", *maddrs]) as address:
                second = replace(a_config(tmp_path / "second", ()), initial_peers=(address,))
                async with joined(second, dialer, DIGEST, None) as (directory, _):
                    await directory.announce(a_record(Identity.generate(), "name", time.time() + 60))
                    await until(lambda: directory.met_maddrs)
                    RememberedPeers(second.data_folder, DIGEST, None).save(directory.met_maddrs)
            async with joined(second, dialer, DIGEST, None) as (directory, _):
                assert len(await directory.lookup("name")) == 1
            async with joined(replace(second, initial_peers=()), dialer, DIGEST, None) as (directory, _):
                assert len(await directory.lookup("name")) == 1
        with pytest.raises(PeerUnavailable, match="cannot be reached"):
            await visible_maddrs(replace(second, timing=PeerTiming(join_seconds=0.0)))
        caplog.clear()
        alone = replace(second, initial_peers=(), timing=PeerTiming(join_remembered_seconds=0.0))
        async with joined(alone, dialer, DIGEST, None) as (directory, _):
            assert directory.isolated
        await dialer.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert any("the swarm begins anew" in line for line in caplog.messages)


@pytest.mark.swarm
@pytest.mark.long
def test_a_peer_that_nobody_can_dial_joins_the_dht_as_a_client(tmp_path: Path) -> None:
    """It keeps nothing for others; what it announces of itself is there all the same."""

    async def scenario() -> None:
        dialer = Dialer(rule=EVERY_RANGE)
        async with joined(a_config(tmp_path / "first", ()), dialer, DIGEST, None) as (first, _):
            assert not first.client_mode
            async with pinged_peer(list(await first.visible_maddrs())) as address:
                hidden = replace(a_config(tmp_path / "hidden", ()), initial_peers=(address,))
                async with joined(hidden, dialer, DIGEST, None, reached=False) as (directory, _):
                    assert directory.client_mode
                    record = a_record(Identity.generate(), "name", time.time() + 60)
                    await directory.announce(record)
                    assert record in await first.lookup("name")
                    assert record in await directory.lookup("name")
                    assert record in first.kept_records("name")
                    assert not directory.kept_records("name")
        await dialer.close()

    asyncio.run(scenario())


@pytest.mark.swarm
@pytest.mark.parametrize(
    "said",
    [
        {"model_digest": "\x1b]0;x\a" + "b" * 50, "model_name": "tiny"},
        {"model_digest": "b" * 64, "model_name": "ti\x1b[2Jny\n\u202e"},
        {"dht_addresses": ("/ip4/\x1b[2J\u202e/tcp/1",)},
    ],
)
def test_an_initial_peer_that_is_of_no_use_writes_nothing_to_the_terminal(tmp_path: Path, said: dict[str, Any]) -> None:
    """Its words are in the message that the program ends with."""

    async def scenario() -> None:
        async with pinged_peer(**{"dht_addresses": (), **said}) as address:
            config = replace(a_config(tmp_path, ()), initial_peers=(address,))
            dialer = Dialer(named=[address])
            with pytest.raises((ModelMismatch, PeerUnavailable)) as caught:
                async with joined(config, dialer, DIGEST, None):
                    pass
            await dialer.close()
        assert str(caught.value).isprintable()

    asyncio.run(scenario())


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

    asyncio.run(asyncio.wait_for(scenario(), 60))
