"""A hostile, clumsy or dying node does nothing to the DHT that the others notice for long."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from blockswarm.proto.directory.hivemind.daemon import HivemindTiming, RunningNode, sweep_stale_sockets
from blockswarm.proto.directory.hivemind.entries import DICTIONARY_TAG, pack_dictionary, value_of
from blockswarm.proto.directory.hivemind.exchange import ask, give
from blockswarm.proto.directory.hivemind.node import HivemindDirectory
from blockswarm.proto.directory.hivemind.places import Kept
from blockswarm.proto.directory.hivemind.shim import DHTID, MSGPackSerializer, P2PHandlerError, PeerID, dht_pb2
from blockswarm.proto.directory.shards import Shards, prefix_of, shard_key
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.directory.swarm_key import dht_id
from blockswarm.proto.errors import ClockSkew, PeerUnavailable, UsageError
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.messages.limits import MAX_RECORD_BYTES, MAX_RECORDS_PER_KEY
from support.directories import LOOPBACK, DirectorySwarm, a_record, fresh_name, hivemind_swarm, until
from support.raw_node import raw_member

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning"),  # hivemind's
    pytest.mark.skipif(sys.platform == "win32", reason="hivemind has no wheel for Windows"),
]

ALICE, BOB, MALLORY = (Identity.generate() for _ in range(3))


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectorySwarm]:
    """Two honest nodes."""
    swarm = hivemind_swarm(tmp_path_factory.mktemp("dht"), num_nodes=2)
    yield swarm
    swarm.close()


def raw_key(name: str) -> bytes:
    """The key that hivemind hashes to `dht_id(name)`."""
    key: bytes = MSGPackSerializer.dumps(name)
    return key


# --- attacks -------------------------------------------------------------------------------------------------------


def test_an_attacker_changes_nothing_that_honest_nodes_read(swarm: DirectorySwarm) -> None:
    """Overwriting a foreign subkey, living too long, a plain value over the dictionary, oversize, a record moved."""
    name = fresh_name()
    now = swarm.clock()
    alice, bob = a_record(ALICE, name, now + 60), a_record(BOB, name, now + 60)
    foreign = a_record(MALLORY, name, now + 70)
    for_ever = a_record(MALLORY, name, now + 1e6)
    moved = a_record(MALLORY, "another name", now + 60)
    big = b"x" * (MAX_RECORD_BYTES + 1)
    attacks = [
        (alice.peer_id, foreign.encode(), now + 70),
        (alice.peer_id, alice.encode(), now + 70),  # a later expiry around an honest record
        (alice.peer_id, b"nonsense", now + 70),
        (MALLORY.peer_id, for_ever.encode(), for_ever.expires_at_seconds),
        (MALLORY.peer_id, foreign.encode(), now + 1e6),
        (MALLORY.peer_id, moved.encode(), moved.expires_at_seconds),
        (MALLORY.peer_id, big, now + 60),
        (7, foreign.encode(), now + 70),
        (None, foreign.encode(), now + 1e5),
        (None, b"plain value", now + 1e5),
    ]

    async def scenario() -> None:
        await swarm.announcers[0].announce(alice)
        await swarm.announcers[1].announce(bob)
        async with raw_member(swarm) as mallory:
            for subkey, value, expires_at in attacks:
                assert not await mallory.store(raw_key(name), value, expires_at, subkey=subkey, exclude_self=True)
        async with raw_member(swarm) as mallory:
            assert await mallory.store(  # the test's own way of storing does work
                raw_key(name), foreign.encode(), foreign.expires_at_seconds, subkey=MALLORY.peer_id, exclude_self=True
            )
            for reader in swarm.readers:
                assert set(await reader.lookup(name)) == {alice, bob, foreign}

    swarm.run(scenario())


def test_a_replica_with_bad_records_is_outvoted(swarm: DirectorySwarm) -> None:
    """The attacker keeps bad records in its own storage and serves them; the honest replicas make up for it."""
    name = fresh_name()
    alice = a_record(ALICE, name, swarm.clock() + 60)

    async def scenario() -> None:
        async with raw_member(swarm) as mallory:
            await swarm.announcers[0].announce(alice)
            key_id = DHTID.from_bytes(dht_id(name))
            expires_at = swarm.clock() + 90
            mallory.protocol.storage.store_subkey(key_id, ALICE.peer_id, MSGPackSerializer.dumps(b"forged"), expires_at)
            mallory.protocol.storage.store_subkey(key_id, "nobody", b"\xc1 no msgpack", expires_at)
            for reader in swarm.readers:
                assert await reader.lookup(name) == (alice,)

    swarm.run(scenario())


def test_a_record_of_a_large_swarm_is_kept_under_its_shard_too_and_under_no_other(swarm: DirectorySwarm) -> None:
    name = fresh_name()
    first, second = swarm.announcers
    identity = swarm.identities[0]
    own = a_record(identity, name, swarm.clock() + 60)
    key = shard_key(own.key, 2, prefix_of(own.key, own.peer_id, 2))
    wrong = shard_key(own.key, 2, prefix_of(own.key, own.peer_id, 2) ^ 1)

    async def scenario() -> None:
        first.shards.of(own.key).bits = 2
        await first.announce(own)
        kept = PeerID.from_base58(second.peer_id)
        for each in (own.key, key):
            assert [entry.owner for entry in await ask(first.node, kept, each) or []] == [own.peer_id]
        assert not await give(first.node, kept, own, wrong)
        assert await second.lookup(name) == (own,)

    swarm.run(scenario())


def packed(records: list[SignedRecord]) -> bytes:
    """All of them as one dictionary, as a node that hands over its records would send them."""
    return pack_dictionary({r.peer_id: Kept(value_of(r), r.expires_at_seconds, 0.0, 0.0, None) for r in records})


async def send_dictionaries(node: Any, receiver: str, name: str, records: list[SignedRecord]) -> None:
    """Stores of many records, by a raw node, as many at once as fit into a call."""
    for some in (records[begin : begin + 40] for begin in range(0, len(records), 40)):
        request = dht_pb2.StoreRequest(
            keys=[dht_id(name)], subkeys=[DICTIONARY_TAG], values=[packed(some)],
            expiration_time=[max(r.expires_at_seconds for r in some)], in_cache=[False], peer=node.protocol.node_info,
        )  # fmt: skip
        await node.protocol.get_stub(PeerID.from_base58(receiver)).rpc_store(request, timeout=60)


@pytest.mark.long
def test_a_thousand_free_identities_do_not_close_the_door(swarm: DirectorySwarm) -> None:
    """One node sends records of 900 identities that it made up; a newcomer could not announce itself any more."""
    name, newcomer = fresh_name(), Identity.generate()
    now = swarm.clock()
    crowd = [a_record(Identity.generate(), name, now + 100) for _ in range(MAX_RECORDS_PER_KEY)]

    async def scenario() -> None:
        async with raw_member(swarm) as mallory:
            for announcer in swarm.announcers:
                await send_dictionaries(mallory, announcer.peer_id, name, crowd)
                assert len(announcer.kept_records(name)) == MAX_RECORDS_PER_KEY
        record = a_record(newcomer, name, swarm.clock() + 60)
        honest = a_record(swarm.identities[1], name, swarm.clock() + 60)
        await swarm.announcers[1].announce(honest)
        for reader in swarm.readers:
            assert honest in reader.kept_records(name)
        with pytest.raises(PeerUnavailable, match="kept"):  # of an identity that has no connection to anybody
            await swarm.announcers[1].announce(record)

    swarm.run(scenario())


@pytest.mark.long
def test_forged_records_cost_their_sender_its_connection_and_others_no_time(swarm: DirectorySwarm) -> None:
    """900 signatures were checked in one go: for half a second the node answered nobody, as often as somebody liked."""
    name = fresh_name()
    now = swarm.clock()
    owners = [Identity.generate() for _ in range(MAX_RECORDS_PER_KEY - 1)]
    good = [a_record(owner, name, now + 100) for owner in owners]
    forged = replace(a_record(MALLORY, name, now + 100), signature=bytes(64))
    victim = swarm.announcers[0]

    async def longest_pause(work: Awaitable[object]) -> float:
        """The most that the event loop computes in one go, while `work` is done; on a machine that others use, too."""
        task, longest = asyncio.ensure_future(work), 0.0
        while not task.done():
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
        await asyncio.gather(task, return_exceptions=True)
        return longest

    async def scenario() -> None:
        async with raw_member(swarm) as mallory:
            request = send_dictionaries(mallory, victim.peer_id, name, [*good, forged])
            assert await longest_pause(request) < 0.1
            with pytest.raises(P2PHandlerError, match="forged"):
                await mallory.protocol.get_stub(PeerID.from_base58(victim.peer_id)).rpc_ping(
                    dht_pb2.PingRequest(peer=mallory.protocol.node_info), timeout=60
                )
        assert forged not in victim.kept_records(name)
        record = a_record(ALICE, other_name, swarm.clock() + 60)
        await swarm.announcers[1].announce(record)
        assert record in victim.kept_records(other_name)

    other_name = fresh_name()
    swarm.run(scenario())


@pytest.mark.long
def test_a_replica_that_makes_up_records_fills_its_own_turns_only(swarm: DirectorySwarm) -> None:
    """900 records of one look-up are verified: those of one node that answers must not be all of them."""
    name = fresh_name()
    now = swarm.clock()
    alice = a_record(ALICE, name, now + 60)
    crowd = [a_record(Identity.generate(), name, now + 100) for _ in range(MAX_RECORDS_PER_KEY)]

    async def scenario() -> None:
        await swarm.announcers[0].announce(alice)
        async with raw_member(swarm) as mallory:
            for record in crowd:
                mallory.protocol.storage.store_subkey(
                    DHTID.from_bytes(dht_id(name)), record.peer_id, value_of(record), record.expires_at_seconds
                )
            for reader in swarm.readers:
                found = await reader.lookup(name)
                assert alice in found
                assert len(found) > 100  # the crowd is there, too

    swarm.run(scenario())


def test_a_node_has_one_place_in_the_dht(swarm: DirectorySwarm) -> None:
    """With any number of ids one node would fill the routing table, or be all of the nodes nearest to a key."""

    async def scenario() -> None:
        async with raw_member(swarm) as mallory:
            table = swarm.announcers[0].node.dht.protocol.routing_table
            before = len(table.uid_to_peer_id)
            for number in range(50):
                info = dht_pb2.NodeInfo(node_id=DHTID.generate(f"another id {number}").to_bytes())
                await mallory.protocol.get_stub(PeerID.from_base58(swarm.announcers[0].peer_id)).rpc_ping(
                    dht_pb2.PingRequest(peer=info), timeout=60
                )
            await asyncio.sleep(0)
            assert len(table.uid_to_peer_id) == before

    swarm.run(scenario())


def test_the_cache_of_a_node_cannot_be_used_to_hide_records(swarm: DirectorySwarm) -> None:
    """hivemind answers from the cache if that lives longer; a single record put there would hide all others."""
    name = fresh_name()
    alice = a_record(ALICE, name, swarm.clock() + 60)
    mallorys = a_record(MALLORY, name, swarm.clock() + 110)

    async def scenario() -> None:
        await swarm.announcers[0].announce(alice)
        async with raw_member(swarm) as mallory:
            for peer in (swarm.announcers[0], swarm.announcers[1]):
                await mallory.protocol.call_store(
                    PeerID.from_base58(peer.peer_id),
                    [DHTID.from_bytes(dht_id(name))],
                    [MSGPackSerializer.dumps(mallorys.encode())],
                    mallorys.expires_at_seconds,
                    subkeys=[MALLORY.peer_id],
                    in_cache=True,
                )
        for reader in swarm.readers:
            assert alice in await reader.lookup(name)

    swarm.run(scenario())


# --- joining -------------------------------------------------------------------------------------------------------


async def start(path: Path, *initial_maddrs: str, **options: Any) -> HivemindDirectory:
    options.setdefault("listen_maddrs", LOOPBACK)
    return await HivemindDirectory.start(path / "key", initial_maddrs, join_timeout_seconds=0.0, **options)


def test_a_dead_first_peer_is_named_and_one_live_one_is_enough(swarm: DirectorySwarm, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    dead = f"/ip4/127.0.0.1/tcp/{port}/p2p/{BOB.peer_id}"

    async def scenario() -> None:
        with pytest.raises(PeerUnavailable, match=dead):
            await start(tmp_path, dead)
        directory = await start(tmp_path, dead, *await swarm.announcers[0].visible_maddrs())
        await directory.close()

    swarm.run(scenario())


@pytest.mark.parametrize("announced", ["/ip4/192.0.2.7/tcp/{}", "/dns/peer.example.org/tcp/{}"])
def test_others_are_told_the_announced_address(swarm: DirectorySwarm, tmp_path: Path, announced: str) -> None:
    """A forwarded port is of no use if the DHT is told an address behind the router; 0 is the port listened on."""

    async def scenario() -> None:
        first = await start(tmp_path / "first", announce_maddrs=[announced.format(31337)])
        assert await first.visible_maddrs() == (f"{announced.format(31337)}/p2p/{first.peer_id}",)
        await first.close()
        second = await start(
            tmp_path / "second", *await swarm.announcers[0].visible_maddrs(), announce_maddrs=[announced.format(0)]
        )
        (visible,) = await second.visible_maddrs()
        host, _, port = visible.removesuffix(f"/p2p/{second.peer_id}").rpartition("/")
        assert host == announced.removesuffix("/{}")
        with socket.create_connection(("127.0.0.1", int(port))):
            pass
        record = a_record(ALICE, name := fresh_name(), swarm.clock() + 60)
        await second.announce(record)
        assert await swarm.readers[1].lookup(name) == (record,)
        await second.close()

    swarm.run(scenario())


@pytest.mark.parametrize("maddr", ["", "127.0.0.1:80", "/ip4/127.0.0.1/tcp/80", "/ip4/127.0.0.1/tcp/80/p2p/me"])
def test_what_is_no_address_is_a_usage_error(swarm: DirectorySwarm, tmp_path: Path, maddr: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        swarm.run(start(tmp_path, maddr))


def test_a_taken_port_is_a_usage_error(swarm: DirectorySwarm, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = (f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}",)
        with pytest.raises(UsageError, match="address already in use"):
            swarm.run(start(tmp_path, listen_maddrs=listen))


def test_a_client_of_the_dht_keeps_nothing_but_reads_and_announces(swarm: DirectorySwarm, tmp_path: Path) -> None:
    name = fresh_name()
    record = a_record(ALICE, name, swarm.clock() + 60)

    async def scenario() -> None:
        client = await start(tmp_path, *await swarm.announcers[0].visible_maddrs(), client_mode=True)
        await client.announce(record)
        assert await swarm.readers[1].lookup(name) == (record,)
        assert await client.lookup(name) == (record,)
        assert client.kept_records(name) == ()
        assert record in swarm.announcers[0].kept_records(name) + swarm.announcers[1].kept_records(name)
        await client.close()

    swarm.run(scenario())


@pytest.mark.parametrize(("ahead_seconds", "told"), [(60, "60 s ahead of"), (-97200, r"27.0 h \(97200 s\) behind")])
def test_a_clock_that_is_off_is_told_as_such(
    swarm: DirectorySwarm, tmp_path: Path, ahead_seconds: float, told: str
) -> None:
    """With the difference, which tells the operator whose clock is wrong."""

    async def scenario() -> None:
        first = await start(tmp_path / "first", clock=lambda: time.time() + ahead_seconds)
        (maddr,) = await first.visible_maddrs()
        with pytest.raises(ClockSkew, match=f"the clock of {maddr} is {told} this machine's") as caught:
            await start(tmp_path / "second", maddr)
        assert "NTP" in caught.value.hint
        await first.close()

    swarm.run(scenario())


# --- the daemon ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [1, 0], ids=["a node that joined", "the first node"])
@pytest.mark.parametrize("how", ["killed", "connection lost"])
def test_a_dead_daemon_is_started_again_and_its_records_are_back(swarm: DirectorySwarm, victim: int, how: str) -> None:
    """The node comes back with its id and port, holds its own record again, and the two nodes find each other."""
    name = fresh_name()
    record = a_record(ALICE, name, swarm.clock() + 100)
    directory, other = swarm.announcers[victim], swarm.announcers[1 - victim]

    async def scenario() -> None:
        await directory.announce(record)
        maddrs = await directory.visible_maddrs()
        await until(lambda: directory.met_maddrs)  # it has noted where the other is, and can find it by itself
        dead = directory.node
        if how == "killed":
            os.kill(dead.daemon.pid, signal.SIGKILL)
        else:
            dead.connection.cancel()
        await dead.ended()
        await until(lambda: directory.node not in (dead, None))
        assert dead.daemon.returncode is not None
        assert await directory.lookup(name) == (record,)
        assert await directory.visible_maddrs() == maddrs
        await until(lambda: directory.kept_records(name))  # announced again by the supervisor
        fresh_record = a_record(BOB, name, swarm.clock() + 100)
        await directory.announce(fresh_record)
        assert set(await other.lookup(name)) == {record, fresh_record}

    swarm.run(scenario())


def test_a_node_that_does_not_know_yet_where_the_others_are_is_found_by_them(tmp_path: Path) -> None:
    """Its daemon dies soon after another node has joined through it, before it has noted where that one is."""
    swarm = hivemind_swarm(tmp_path, num_nodes=2, timing=HivemindTiming(note_seconds=3600.0))
    name = fresh_name()
    record = a_record(ALICE, name, swarm.clock() + 100)
    first, other = swarm.announcers

    async def scenario() -> None:
        await first.announce(record)
        assert first.met_maddrs == ()
        dead = first.node
        os.kill(dead.daemon.pid, signal.SIGKILL)
        await dead.ended()
        await until(lambda: first.node not in (dead, None))
        await until(lambda: first.isolated)
        while first.isolated:
            assert set(await other.lookup(name)) <= {record}
            await asyncio.sleep(0.05)
        fresh_record = a_record(BOB, name, swarm.clock() + 100)
        await first.announce(fresh_record)
        assert set(await other.lookup(name)) == {record, fresh_record}

    swarm.run(scenario())
    swarm.close()


def sockets_of(pid: int) -> set[Path]:
    """The sockets between node and daemon that a process listens on."""
    paths = {connection.laddr for connection in psutil.Process(pid).net_connections("unix")}
    return {Path(path) for path in paths if isinstance(path, str) and "hivemind-p2p" in path}


def test_closing_leaves_no_daemon_task_or_socket(tmp_path: Path) -> None:
    async def scenario() -> tuple[RunningNode, set[Path], set[str]]:
        directory = await start(tmp_path)
        node = directory.node
        assert node is not None
        sockets = sockets_of(node.daemon.pid) | sockets_of(os.getpid())
        assert sockets
        await directory.close()
        with pytest.raises(PeerUnavailable):
            await directory.lookup("name")
        return node, sockets, {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}}

    node, sockets, tasks = asyncio.run(scenario())
    assert node.daemon.returncode is not None
    assert tasks == set()
    assert not any(path.exists() for path in sockets)


def test_the_owner_is_told_when_the_daemon_can_no_longer_be_supervised(tmp_path: Path) -> None:
    """A peer whose directory has failed would serve on, and nobody would find it once its record is over."""
    clock_is_broken = False

    def clock() -> float:
        if clock_is_broken:
            raise RuntimeError("the clock is broken")
        return time.time()

    async def serve(directory: HivemindDirectory) -> None:
        nonlocal clock_is_broken
        async with asyncio.TaskGroup() as group:
            group.create_task(directory.until_closed())
            assert directory.node is not None
            clock_is_broken = True
            os.kill(directory.node.daemon.pid, signal.SIGKILL)
            await asyncio.Event().wait()

    async def scenario() -> None:
        directory = await start(tmp_path, clock=clock)
        with pytest.raises(ExceptionGroup) as caught:
            await serve(directory)
        assert [str(error) for error in caught.value.exceptions] == ["the clock is broken"]
        with pytest.raises(RuntimeError, match="the clock is broken"):
            await directory.lookup("name")
        await directory.close()
        assert directory.node is None

    asyncio.run(scenario())


def test_waiting_for_a_directory_to_close_neither_closes_it_nor_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = await start(tmp_path)
        given_up = asyncio.create_task(directory.until_closed())
        closed = asyncio.create_task(directory.until_closed())
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert await directory.visible_maddrs()
        assert not closed.done()
        await directory.close()
        await closed
        await directory.until_closed()

    asyncio.run(scenario())


@pytest.mark.parametrize("pause_seconds", [0.0, 0.05, 0.15, 0.3])
def test_closing_while_the_daemon_is_being_started_again(tmp_path: Path, pause_seconds: float) -> None:
    """Whatever the restart was doing, no daemon is left; several moments of it are tried."""

    async def scenario() -> None:
        directory = await start(tmp_path)
        dead = directory.node
        assert dead is not None
        os.kill(dead.daemon.pid, signal.SIGKILL)
        await dead.ended()
        await asyncio.sleep(pause_seconds)
        await directory.close()

    before = {child.pid for child in psutil.Process().children()}
    asyncio.run(scenario())
    gc.collect()
    left = [child for child in psutil.Process().children() if child.pid not in before]
    assert psutil.wait_procs(left, timeout=60)[1] == []


def test_only_sockets_that_nobody_has_open_are_swept(tmp_path: Path) -> None:
    stale, live, other = (tmp_path / f"{name}.sock" for name in ("hivemind-p2pd-1", "hivemind-p2pclient-2", "else"))
    servers = []
    for path in (stale, live, other):
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen()
        servers.append(server)
    (tmp_path / "hivemind-p2pd-file.sock").write_text("no socket")
    servers[0].close()
    servers[2].close()
    sweep_stale_sockets(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "else.sock",
        "hivemind-p2pclient-2.sock",
        "hivemind-p2pd-file.sock",
    ]
    servers[1].close()


def test_the_import_brings_neither_torch_nor_the_rest_of_hivemind() -> None:
    code = (
        "import sys, blockswarm.proto.directory.hivemind.node as module\n"
        "bad = {'torch', 'scipy', 'hivemind.optim', 'hivemind.averaging', 'hivemind.moe'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def has_rested(shards: Shards) -> bool:
    return shards.is_due(time.monotonic())


def test_a_shard_is_read_again_from_nodes_that_are_remembered(
    swarm: DirectorySwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look walks to its keys; the second to few of them, and sees the renewed record all the same."""
    name = fresh_name()
    announcer, reader = swarm.announcers
    identity = swarm.identities[0]
    walks: list[Any] = []
    looks: list[int] = []

    async def scenario() -> None:
        dht = reader.node.dht
        walk = dht.find_nearest_nodes

        async def counted(keys: Any, **options: Any) -> Any:
            walks.append(keys)
            return await walk(keys, **options)

        monkeypatch.setattr(dht, "find_nearest_nodes", counted)
        for lifetime in (60, 60.5):
            said = a_record(identity, name, swarm.clock() + lifetime)
            shards = reader.shards.of(said.key)
            await until(partial(has_rested, shards))
            announcer.shards.of(said.key).bits = shards.bits = 2
            await announcer.announce(said)
            assert await reader.lookup(name) == (said,)
            assert walks, "a shard was read"
            looks.append(len(walks))

    swarm.run(scenario())
    assert looks[1] - looks[0] < looks[0], "at most the keys of a node that has left are sought again"
