"""A node finds the others again after an outage, a restart or a bad start, and never takes itself for the only one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from blockswarm.proto.clock import SteadyClock
from blockswarm.proto.directory.hivemind.contacts import MAX_MET, MAX_TRIED, Contacts, reach
from blockswarm.proto.directory.hivemind.daemon import HivemindTiming, RunningNode
from blockswarm.proto.directory.hivemind.node import HivemindDirectory
from blockswarm.proto.directory.hivemind.shim import dht_pb2
from blockswarm.proto.directory.signed import SignedRecord, next_expiry
from blockswarm.proto.errors import ClockSkew, PeerUnavailable, RemoteProtocolError, UsageError
from blockswarm.proto.identity import Identity
from support.cables import Cable, free_port
from support.directories import AdjustableClock, a_record, fresh_name, until
from support.raw_node import info_with, maddrs_of, raw_node, serve_instead

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning"),  # hivemind's
    pytest.mark.skipif(sys.platform == "win32", reason="hivemind has no wheel for Windows"),
]

IDS = [Identity.generate() for _ in range(4)]
QUICK = HivemindTiming(
    call_seconds=0.7, first_backoff_seconds=0.1, max_backoff_seconds=0.2, heartbeat_seconds=0.1,
    heartbeat_answer_seconds=10.0, first_contact_seconds=0.1, max_contact_seconds=0.4, note_seconds=0.1,
    patrol_seconds=0.5, silent_clocks_seconds=1.0,
)  # fmt: skip
UNSEEN = replace(QUICK, patrol_seconds=1e6)
"""Without patrols."""
PATIENT = replace(QUICK, call_seconds=10.0)
"""Where no node is silent: on a busy machine each of them may be, for a second."""


@dataclass
class Node:
    """A node that others reach through a cable; `direct` is its address without."""

    identity: Identity
    cable: Cable
    directory: HivemindDirectory
    folder: Path

    @property
    def direct(self) -> str:
        return f"/ip4/127.0.0.1/tcp/{self.cable.target_port}/p2p/{self.directory.peer_id}"

    @property
    def through_cable(self) -> str:
        return f"/ip4/127.0.0.1/tcp/{self.cable.port}/p2p/{self.directory.peer_id}"

    def record(self, name: str) -> SignedRecord:
        return a_record(self.identity, name, time.time() + 60)


class Net:
    """Nodes and their cables, all of them closed at the end."""

    def __init__(self, folder: Path, timing: HivemindTiming) -> None:
        self._folder = folder
        self._timing = timing
        self.nodes: list[Node] = []

    async def __aenter__(self) -> Net:
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            node.cable.mend()
            await node.directory.close()
            await node.cable.close()

    async def start(self, *initial: str, timing: HivemindTiming | None = None, **options: Any) -> Node:
        cable = await Cable.lay(free_port())
        folder = self._folder / f"node-{len(self.nodes)}"
        directory = await self._start(folder, cable, initial, timing, **options)
        self.nodes.append(Node(IDS[len(self.nodes)], cable, directory, folder))
        return self.nodes[-1]

    async def start_again(
        self, node: Node, *initial: str, timing: HivemindTiming | None = None, **options: Any
    ) -> None:
        node.directory = await self._start(node.folder, node.cable, initial, timing, **options)

    async def _start(
        self, folder: Path, cable: Cable, initial: Sequence[str], timing: HivemindTiming | None, **options: Any
    ) -> HivemindDirectory:
        return await HivemindDirectory.start(
            folder / "key",
            initial,
            [f"/ip4/127.0.0.1/tcp/{cable.target_port}"],
            announce_maddrs=[f"/ip4/127.0.0.1/tcp/{cable.port}"],
            timing=timing or self._timing,
            **options,
        )

    def cut(self) -> None:
        for node in self.nodes:
            node.cable.cut()

    def mend(self) -> None:
        for node in self.nodes:
            node.cable.mend()


def run(scenario: Callable[[Net], Awaitable[None]], folder: Path, timing: HivemindTiming = QUICK) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90), Net(folder, timing) as net:
            await scenario(net)

    asyncio.run(bounded())


async def announce_all(nodes: Sequence[Node], name: str) -> set[SignedRecord]:
    records = [node.record(name) for node in nodes]
    for node, record in zip(nodes, records, strict=True):
        await node.directory.announce(record)
    return set(records)


async def until_seen(nodes: Sequence[Node], name: str, records: set[SignedRecord]) -> None:
    """Wait until every node finds all of the records."""
    while not all([records <= set(await node.directory.lookup(name)) for node in nodes]):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


# --- outages -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_after_an_outage_of_everybody_all_are_seen_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """hivemind forgets a node at its first silence; both took themselves for the only one from then on, for ever."""

    async def scenario(net: Net) -> None:
        first = await net.start(timing=UNSEEN)
        second = await net.start(first.through_cable, timing=UNSEEN)
        name = fresh_name()
        await announce_all(net.nodes, name)
        net.cut()
        for node in (first, second):
            for _ in range(2):  # the second time nobody is left to be asked
                with pytest.raises(PeerUnavailable, match="no other node of the DHT answers"):
                    await node.directory.announce(node.record(name))
            assert node.directory.isolated
            assert await node.directory.lookup(name)  # it serves what it has
        assert sum("no other node" in line for line in caplog.messages) == 2, "one line for each outage"
        net.mend()
        await until(lambda: not (first.directory.isolated or second.directory.isolated))
        await until_seen(net.nodes, name, await announce_all(net.nodes, name))

    with caplog.at_level(logging.WARNING):
        run(scenario, tmp_path)
    assert sum("answer again" in line for line in caplog.messages) == 2


@pytest.mark.long
def test_a_node_whose_network_was_away_is_back_without_the_others_doing_anything(tmp_path: Path) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start(timing=UNSEEN)
        second = await net.start(first.direct, timing=UNSEEN)
        lonely = await net.start(first.through_cable, timing=UNSEEN)
        name = fresh_name()
        await announce_all(net.nodes, name)
        net.cut()  # the first two have a connection without a cable
        with pytest.raises(PeerUnavailable):
            await lonely.directory.announce(lonely.record(name))
        await announce_all([first, second], name)
        assert not first.directory.isolated
        assert not second.directory.isolated
        net.mend()
        await until(lambda: not lonely.directory.isolated)
        await until_seen(net.nodes, name, await announce_all(net.nodes, name))

    run(scenario, tmp_path)


@pytest.mark.long
def test_records_are_announced_anew_as_soon_as_the_network_is_back(tmp_path: Path) -> None:
    """Others forget a record after a minute; its owner's next turn may be 24 s away."""

    async def scenario(net: Net) -> None:
        first = await net.start()
        second = await net.start(first.through_cable)
        await announce_all(net.nodes, "other name")
        net.cut()
        name = fresh_name()
        record = second.record(name)
        with pytest.raises(PeerUnavailable):
            await second.directory.announce(record)
        net.mend()
        await until_seen([first], name, {record})

    run(scenario, tmp_path)


@pytest.mark.long
def test_two_parts_that_were_cut_apart_are_one_again(tmp_path: Path) -> None:
    """Each part has nodes that answer, so nobody is isolated; a look at known nodes finds the other part."""

    async def scenario(net: Net) -> None:
        first = await net.start()
        second = await net.start(first.through_cable)
        with_first = await net.start(first.direct)
        with_second = await net.start(second.direct)
        name = fresh_name()
        await announce_all(net.nodes, name)
        net.cut()
        for _ in range(3):  # until none is left in any table of the other part
            await announce_all([first, with_first], name)
            await announce_all([second, with_second], name)
        assert not any(node.directory.isolated for node in net.nodes)
        net.mend()
        name = fresh_name()
        records = {node.identity.peer_id: node.record(name) for node in net.nodes}
        while True:
            for node in net.nodes:
                await node.directory.announce(records[node.identity.peer_id])
            if all([len(await node.directory.lookup(name)) == 4 for node in net.nodes]):
                break
            await asyncio.sleep(0.1)
            records = {node.identity.peer_id: node.record(name) for node in net.nodes}

    run(scenario, tmp_path)


# --- starting again ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_first_node_started_again_comes_back_to_those_that_it_had_met(tmp_path: Path) -> None:
    """A unit file starts the first peer with --new-swarm each time: that must not be a second swarm."""

    async def scenario(net: Net) -> None:
        first = await net.start()
        second = await net.start(first.through_cable, timing=UNSEEN)
        await announce_all(net.nodes, "other name")
        await until(lambda: first.directory.met_maddrs == (second.through_cable,))
        await first.directory.close()
        name = fresh_name()
        with pytest.raises(PeerUnavailable):
            await second.directory.announce(second.record(name))
        await net.start_again(first, remembered_maddrs=first.directory.met_maddrs)
        assert not first.directory.isolated
        await until(lambda: not second.directory.isolated)
        await until_seen(net.nodes, name, await announce_all(net.nodes, name))

    run(scenario, tmp_path)


@pytest.mark.long
def test_a_swarm_begun_anew_while_the_others_were_away_is_one_with_theirs_when_they_return(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start()
        second = await net.start(first.through_cable)
        await announce_all(net.nodes, "other name")
        await until(lambda: first.directory.met_maddrs)
        remembered = first.directory.met_maddrs
        await first.directory.close()
        net.cut()
        await net.start_again(first, remembered_maddrs=remembered, join_timeout_seconds=0.3)
        assert first.directory.isolated
        assert await first.directory.lookup("name") == ()
        newcomer = await net.start(first.direct)  # so there are two parts
        name = fresh_name()
        await announce_all([first, newcomer], name)
        net.mend()
        await until(lambda: not second.directory.isolated)
        await until_seen(net.nodes, name, await announce_all(net.nodes, name))

    with caplog.at_level(logging.WARNING):
        run(scenario, tmp_path)
    assert any("no other node" in line for line in caplog.messages)


@pytest.mark.long
def test_a_malformed_address_is_left_out_and_the_others_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start()
        second = await net.start("/ip4/127.0.0.1/tcp/99999999/p2p/me", first.through_cable)
        assert not second.directory.isolated
        with pytest.raises(UsageError, match="no address"):
            await net.start("/ip4/127.0.0.1/tcp/99999999/p2p/me")

    with caplog.at_level(logging.WARNING):
        run(scenario, tmp_path)
    assert any("left out" in line for line in caplog.messages)


@pytest.mark.long
def test_other_ways_to_ask_for_addresses_are_used_while_nobody_answers(tmp_path: Path) -> None:
    """A first peer that was started again may listen at another port of the DHT; its data plane knows it."""

    async def scenario(net: Net) -> None:
        first = await net.start()
        second = await net.start(first.through_cable, timing=UNSEEN, more_maddrs=lambda: more())
        moved = await net.start()

        async def more() -> Sequence[str]:
            return ["nonsense", moved.direct]

        await announce_all([first, second], "other name")
        await first.directory.close()
        with pytest.raises(PeerUnavailable):
            await second.directory.announce(second.record("other name"))
        await until(lambda: not second.directory.isolated)
        name = fresh_name()
        await until_seen([second, moved], name, await announce_all([second, moved], name))

    run(scenario, tmp_path)


# --- bad contacts --------------------------------------------------------------------------------------------------


NO_PLACE = info_with(b"\xff" * 21)


def counting(answer: Any) -> tuple[Callable[..., Any], list[float]]:
    """A function that answers pings so, and the moments at which it was asked to."""
    moments: list[float] = []

    async def rpc_ping(request: object, context: object) -> Any:
        moments.append(asyncio.get_running_loop().time())
        return dht_pb2.PingResponse(peer=answer, dht_time=time.time(), available=True)

    return rpc_ping, moments


@pytest.mark.long
def test_a_contact_that_answers_nonsense_ends_nothing(tmp_path: Path) -> None:
    """Its answer ended the task that supervises the DHT, and with it the peer."""

    async def scenario(net: Net) -> None:
        async with raw_node() as mallory:
            rpc_ping, pings = counting(NO_PLACE)
            await serve_instead(mallory, rpc_ping=rpc_ping)
            first = await net.start()
            second = await net.start(first.through_cable, *await maddrs_of(mallory))  # at the start, and later
            before = len(pings)
            await until(lambda: len(pings) >= before + 2)
            record = second.record(name := fresh_name())
            await second.directory.announce(record)
            assert await first.directory.lookup(name) == (record,)

    run(scenario, tmp_path, PATIENT)


def test_an_error_of_any_class_concerns_the_contact_only() -> None:
    node = RunningNode(p2p=None, dht=None, maddrs=(), timing=QUICK, clock=time.time)
    error = asyncio.run(reach(node, IDS[0].peer_id, (), check=True))
    assert isinstance(error, PeerUnavailable)
    assert IDS[0].peer_id in str(error)


@pytest.mark.long
@pytest.mark.parametrize("place", ["none", "its own"])
def test_a_contact_that_only_answers_pings_is_tried_with_pauses(tmp_path: Path, place: str) -> None:
    """It was taken for a way back into the DHT, so it was tried again at once, for ever."""

    async def fail(request: object, context: object) -> None:
        raise RuntimeError

    async def scenario(net: Net) -> None:
        async with raw_node() as mallory:
            rpc_ping, pings = counting(mallory.protocol.node_info if place == "its own" else NO_PLACE)
            await serve_instead(mallory, rpc_ping=rpc_ping, rpc_store=fail, rpc_find=fail)
            timing = replace(UNSEEN, silent_seconds=0.01, max_silent_seconds=0.01)
            lonely = await net.start(remembered_maddrs=await maddrs_of(mallory), timing=timing)
            with pytest.raises(PeerUnavailable):
                await lonely.directory.announce(lonely.record("name"))
            await asyncio.sleep(3.0)
            recent = [moment for moment in pings if moment > pings[-1] - 1.0]
            assert 1 < len(recent) < 8  # the longest pause is 0.4 s

    run(scenario, tmp_path)


@pytest.mark.long
def test_what_a_bad_contact_says_fails_a_start_only_if_all_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(net: Net) -> None:
        async with raw_node() as mallory:
            await serve_instead(mallory)
            mallory.protocol.node_info = NO_PLACE
            bad = await maddrs_of(mallory)
            dead = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{IDS[3].peer_id}"
            with pytest.raises(PeerUnavailable, match="no node of this DHT"):  # the other may come back
                await net.start(*bad, dead, join_timeout_seconds=0.3)
            with pytest.raises(RemoteProtocolError, match="no node of this DHT"):
                await net.start(*bad, join_timeout_seconds=60.0)
            first = await net.start(remembered_maddrs=bad, join_timeout_seconds=60.0)
            assert first.directory.isolated

    with caplog.at_level(logging.WARNING):
        run(scenario, tmp_path, PATIENT)
    assert any("no node of this DHT" in line for line in caplog.messages)


# --- clocks that are set -------------------------------------------------------------------------------------------


class Setting:
    """A clock of a machine that somebody sets, and the steady one that a node makes of it."""

    def __init__(self, offset_seconds: float = 0.0) -> None:
        self.machine = AdjustableClock()
        self.machine.offset_seconds = offset_seconds
        self.steady = SteadyClock(self.machine)

    @property
    def is_right(self) -> bool:
        return abs(self.steady() - time.time()) < 1.0


@pytest.mark.long
@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_peer_whose_clock_is_set_is_seen_all_the_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: float
) -> None:
    """Others judge a record by their own clocks: what it made by the new one would be over, or last too long."""

    async def scenario(net: Net) -> None:
        clock, name = Setting(), fresh_name()
        first = await net.start()
        second = await net.start(first.through_cable)
        third = await net.start(first.through_cable, second.through_cable, clock=clock.steady)
        await announce_all(net.nodes, fresh_name())
        expiry = None
        for moment in ("before", "at once", "when others were asked"):
            if moment == "at once":
                clock.machine.offset_seconds = step
            if moment == "when others were asked":
                await until(lambda: any("which are followed" in line for line in caplog.messages))
            expiry = next_expiry(expiry, clock.steady())
            record = a_record(third.identity, name, expiry)
            await third.directory.announce(record)
            assert clock.is_right
            for node in net.nodes:
                assert await node.directory.lookup(name) == (record,), moment

    with caplog.at_level(logging.WARNING):
        run(scenario, tmp_path, PATIENT)
    told = f"this machine's clock is 1.0 h (3600 s) {'behind' if step < 0 else 'ahead of'} the clocks of other nodes"
    assert sum(told in line for line in caplog.messages) == 1


@pytest.mark.long
def test_a_first_node_follows_the_correction_of_a_clock_that_was_wrong(tmp_path: Path) -> None:
    """Its records by the wrong clock end an hour from now: the next ones do not wait for that."""

    async def scenario(net: Net) -> None:
        clock, name = Setting(3600.0), fresh_name()
        first = await net.start(clock=clock.steady)
        expiry = next_expiry(None, clock.steady())
        await first.directory.announce(a_record(first.identity, name, expiry))
        with pytest.raises(ClockSkew, match=r"1\.0 h \(3600 s\) ahead"):
            await net.start(first.through_cable)
        clock.machine.offset_seconds = 0.0
        await until(lambda: clock.is_right)
        record = a_record(first.identity, name, next_expiry(expiry, clock.steady()))
        with contextlib.suppress(PeerUnavailable):  # if it has met the refused one, it misses it, and keeps the record
            await first.directory.announce(record)
        second = await net.start(first.through_cable)
        assert await second.directory.lookup(name) == (record,)

    run(scenario, tmp_path, PATIENT)


@pytest.mark.long
def test_a_first_node_whose_others_are_gone_follows_the_correction(tmp_path: Path) -> None:
    """Nobody can join before it does: it waits for those it knows, but not for ever."""

    async def scenario(net: Net) -> None:
        clock, name = Setting(3600.0), fresh_name()
        first = await net.start(clock=clock.steady)
        others = Setting(3600.0)
        gone = await net.start(first.through_cable, clock=others.steady)
        await until(lambda: bool(first.directory.met_maddrs))
        await gone.directory.close()
        clock.machine.offset_seconds = 0.0
        await until(lambda: clock.is_right)
        second = await net.start(first.through_cable)
        await second.directory.announce(a_record(second.identity, name, time.time() + 60))
        assert len(await first.directory.lookup(name)) == 1

    run(scenario, tmp_path, PATIENT)


@pytest.mark.long
def test_nodes_whose_clocks_are_all_corrected_all_follow(tmp_path: Path) -> None:
    """Each goes on with the wrong time until others tell the right one: they tell that of their machines."""

    async def scenario(net: Net) -> None:
        clocks = [Setting(-3600.0) for _ in range(3)]
        first = await net.start(clock=clocks[0].steady)
        for clock in clocks[1:]:
            await net.start(first.through_cable, clock=clock.steady)
        for clock in clocks:
            clock.machine.offset_seconds = 0.0
            await asyncio.sleep(0.3)
        await until(lambda: all(clock.is_right for clock in clocks))

    run(scenario, tmp_path, PATIENT)


# --- the daemon ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_daemon_that_hangs_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start()
        second = await net.start(first.through_cable)
        name = fresh_name()
        records = await announce_all(net.nodes, name)
        hung = second.directory.node
        assert hung is not None
        os.kill(hung.daemon.pid, signal.SIGSTOP)
        await until(lambda: second.directory.node not in (hung, None))
        assert hung.daemon.returncode == -signal.SIGKILL
        await until_seen(net.nodes, name, records)

    with caplog.at_level(logging.WARNING):
        run(scenario, tmp_path, replace(PATIENT, heartbeat_answer_seconds=1.0))
    assert "the DHT daemon does not answer; starting it again" in caplog.messages


# --- what is remembered --------------------------------------------------------------------------------------------


def maddr(node: str, port: int = 1) -> str:
    return f"/ip4/192.0.2.1/tcp/{port}/p2p/{node}"


def test_a_flood_of_new_nodes_does_not_make_a_node_forget_those_that_are_there() -> None:
    contacts = Contacts("me", [maddr("initial")])
    old = [f"old-{i}" for i in range(MAX_MET)]
    assert set(contacts.expect(old)) == set(old)
    for node in old:
        contacts.set_addresses(node, [maddr(node)])
    flood = [f"new-{i}" for i in range(1000)]
    assert contacts.expect([*flood, *old]) == []
    assert set(contacts.met) == {maddr(node) for node in old}
    (newcomer,) = contacts.expect([*flood, *old[1:]])
    assert newcomer in flood
    contacts.set_addresses(newcomer, [maddr(newcomer)])
    assert set(contacts.met) == {maddr(node) for node in (*old[1:], newcomer)}


def test_what_is_known_is_bounded_and_without_this_node() -> None:
    contacts = Contacts("me", [maddr("me"), maddr("a", 1), maddr("a", 2)], [maddr("b"), maddr("me")])
    contacts.expect(["me", "c", "d"])
    contacts.set_addresses("d", [maddr("d", port) for port in range(100)])
    contacts.set_addresses("stranger", [maddr("stranger")])
    assert set(contacts.known()) == {"a", "b", "c", "d"}
    assert contacts.known()["a"] == (maddr("a", 1), maddr("a", 2))
    assert contacts.known()["c"] == ()  # the daemon may know where it is
    assert len(contacts.known()["d"]) < 20
    assert contacts.known([maddr("a", 3)])["a"][-1] == maddr("a", 3)
    assert len(contacts.known([maddr(f"more-{i}") for i in range(1000)])) == MAX_TRIED


def test_a_node_that_said_goodbye_is_not_expected() -> None:
    contacts = Contacts("me", [], [maddr("a")])
    assert contacts
    contacts.forget("a")
    contacts.forget("unknown")
    assert not contacts
    assert contacts.met == ()
