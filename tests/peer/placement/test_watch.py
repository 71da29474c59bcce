"""A peer plans with what it sees, and does not plan when it sees nobody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.peer.placement.watch import MAX_OVERDUE_A_LOOK, SwarmWatch
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import Reach
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply
from blockswarm.routing.swarm import BlockRange, ComputeCost, Coordinate, PeerSpec, PeerState
from support.raw_http2 import CONTENT, headers, raw_http2_peer
from support.virtual_time import VirtualTimeLoop

DIGEST, NOW = "ab" * 32, 1.7e9


def test_a_peer_that_is_cut_off_does_not_plan_as_if_the_others_were_gone() -> None:
    """Its node of the DHT finds what it has itself; taking that for the swarm it would move to everybody's blocks."""
    other = Identity.generate()
    spec = PeerSpec(
        other.peer_id, BlockRange(0, 2), ComputeCost(1e-3), block_hashes=(b"8" * 8,) * 2, issued_seconds=NOW
    )
    found: list[SignedRecord] = []
    isolated = True

    async def records() -> Sequence[SignedRecord]:
        return found

    async def scenario() -> None:
        nonlocal isolated
        own, dialer = Identity.generate().peer_id, Dialer(rule=EVERY_RANGE)
        watch = SwarmWatch(own, 4, records, None, dialer, lambda: NOW, random.Random(1), PeerTiming(), lambda: isolated)
        own_spec = PeerSpec(own, None, ComputeCost(1e-3))
        alone = await watch.snapshot(lambda: own_spec)  # nobody was ever seen: a first peer that is started again
        assert [peer.id for peer in alone.peers] == [own]
        isolated, found[:] = False, [sign_peer_record(other, PeerRecord(DIGEST, spec), None, NOW + 60)]
        assert len((await watch.snapshot(lambda: own_spec)).peers) == 2
        isolated = True
        found.clear()
        with pytest.raises(PeerUnavailable, match="no other node"):
            await watch.snapshot(lambda: own_spec)
        await dialer.close()

    asyncio.run(scenario())


def test_a_peer_hears_of_others_with_other_weights(caplog: pytest.LogCaptureFixture) -> None:
    other, own = Identity.generate(), Identity.generate().peer_id
    spec = PeerSpec(
        other.peer_id, BlockRange(0, 2), ComputeCost(1e-3), block_hashes=(b"8" * 8,) * 2, issued_seconds=NOW
    )
    mine = PeerSpec(own, BlockRange(1, 3), ComputeCost(1e-3), block_hashes=(b"9" * 8,) * 2, issued_seconds=NOW)

    async def records() -> Sequence[SignedRecord]:
        return [sign_peer_record(other, PeerRecord(DIGEST, spec), None, NOW + 60)]

    async def scenario() -> None:
        dialer = Dialer(rule=EVERY_RANGE)
        watch = SwarmWatch(own, 4, records, None, dialer, lambda: NOW, random.Random(1), PeerTiming())
        await watch.snapshot(lambda: mine)
        await dialer.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert f"peer {other.peer_id} announces other weights for blocks 1:2" in caplog.text


class CountedNet(Dialer):
    """Every connection takes a second to stand, every call the time that its address is said to take."""

    def __init__(self, seconds: Callable[[str], float]) -> None:
        super().__init__()
        self.dialed = Counter[str]()
        self._seconds = seconds

    @asynccontextmanager
    async def dialed_once(self, address: Reach) -> AsyncIterator[Any]:
        target = address.target
        self.dialed[target] += 1
        connects = [1.0]

        async def ping(request: object, timeout: float) -> PingReply:
            await asyncio.sleep(sum(connects) + self._seconds(target))
            connects.clear()
            return PingReply(protocol=PROTOCOL_VERSION)

        yield SimpleNamespace(ping=ping)


def stranger(age: float, *addresses: str, coordinate: Coordinate | None = None) -> SignedRecord:
    identity = Identity.generate()
    spec = PeerSpec(identity.peer_id, None, ComputeCost(1e-3), issued_seconds=NOW - age, coordinate=coordinate)
    return sign_peer_record(identity, PeerRecord(DIGEST, spec, addresses), None, NOW + 60)


def host(hashes: str, *addresses: str) -> SignedRecord:
    identity = Identity.generate()
    spec = PeerSpec(
        identity.peer_id, BlockRange(0, len(hashes)), ComputeCost(1e-3), issued_seconds=NOW,
        block_hashes=tuple(letter.encode() * 8 for letter in hashes),
    )  # fmt: skip
    return sign_peer_record(identity, PeerRecord(DIGEST, spec, addresses), None, NOW + 60)


async def at_once(call: Callable[..., Any], *arguments: Any) -> Any:
    """Virtual time does not wait for threads."""
    return call(*arguments)


def planned_with(net: CountedNet, *found: SignedRecord, proven: dict[int, bytes] | None = None) -> set[str]:
    """The others in the snapshot of a peer that hosts nothing."""

    async def records() -> Sequence[SignedRecord]:
        return found

    async def scenario() -> set[str]:
        own = Identity.generate().peer_id
        watch = SwarmWatch(
            own, 4, records, None, net, lambda: NOW, random.Random(1), PeerTiming(), lambda: False, proven, at_once
        )
        snapshot = await watch.snapshot(lambda: PeerSpec(own, None, ComputeCost(1e-3)))
        return {peer.id for peer in snapshot.peers} - {own}

    with contextlib.closing(VirtualTimeLoop()) as loop:
        found_peers: set[str] = loop.run(scenario())
        return found_peers


def test_hosts_of_other_weights_are_not_planned_with() -> None:
    """Many ids of one network against two hosts in two: clients do not use the many, so they serve nothing."""
    net = CountedNet(lambda target: 0.01)
    honest = [host("gg", "8.8.1.1:1"), host("gg", "8.8.2.1:1")]
    crowd = [host("gx", f"8.8.3.1:{port}") for port in range(1, 8)]
    assert planned_with(net, *honest, *crowd) == {record.peer_id for record in honest}
    assert net.dialed.total() == len(honest) + len(crowd)
    quiet = CountedNet(lambda target: 0.01)
    assert len(planned_with(quiet, *honest, host("gg", "8.8.3.1:1"))) == 3
    assert not quiet.dialed, "nobody is pinged where nobody contradicts"


def test_whom_the_own_files_contradict_is_not_planned_with() -> None:
    net = CountedNet(lambda target: 0.01)
    honest, others = host("gg", "8.8.1.1:1"), [host("gx", f"8.8.{n}.1:1") for n in (2, 3)]
    assert planned_with(net, honest, *others) == {record.peer_id for record in others}
    proven = {0: b"g" * 8, 1: b"g" * 8}
    assert planned_with(net, honest, *others, proven=proven) == {honest.peer_id}


def test_networks_are_those_where_peers_answer_not_those_that_they_announce() -> None:
    net = CountedNet(lambda target: 0.01 if target.endswith(":1") else 1e9)
    honest = [host("gg", "8.8.1.1:1"), host("gg", "8.8.2.1:1")]
    liars = [host("gx", f"8.9.{n}.1:9") for n in range(9)]
    assert planned_with(net, *honest, *liars) == {record.peer_id for record in honest}


class Read(list[SignedRecord]):
    """Records that remember the threads that read them."""

    def __init__(self, *records: SignedRecord) -> None:
        super().__init__(records)
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[SignedRecord]:
        self.threads.add(threading.get_ident())
        return super().__iter__()


def test_records_are_opened_beside_the_loop_which_serves_sessions() -> None:
    found = Read(stranger(0.0), stranger(0.0))

    async def records() -> Sequence[SignedRecord]:
        return found

    async def scenario() -> int:
        own = Identity.generate().peer_id
        watch = SwarmWatch(
            own, 4, records, None, CountedNet(lambda target: 0.01), lambda: NOW, random.Random(1), PeerTiming()
        )
        return len((await watch.snapshot(lambda: PeerSpec(own, None, ComputeCost(1e-3)))).peers)

    assert asyncio.run(scenario()) == 3
    assert found.threads
    assert threading.get_ident() not in found.threads


def look(net: CountedNet, *found: SignedRecord) -> tuple[SwarmWatch, float]:
    """The watch after one look, and the seconds that the look took."""

    async def records() -> Sequence[SignedRecord]:
        return found

    with contextlib.closing(VirtualTimeLoop()) as loop:
        own = Identity.generate().peer_id
        watch = SwarmWatch(
            own,
            4,
            records,
            None,
            net,
            lambda: NOW,
            random.Random(1),
            PeerTiming(overdue_ping_seconds=8.0),
            aside=at_once,
        )
        loop.run(watch.look())
        return watch, loop.time()


def test_a_crowd_of_overdue_records_costs_a_look_little() -> None:
    net = CountedNet(lambda target: 1e9)
    watch, seconds = look(net, *(stranger(50.0, f"192.0.2.1:{n + 1}", f"192.0.2.2:{n + 1}") for n in range(100)))
    assert net.dialed.total() == 2 * MAX_OVERDUE_A_LOOK
    assert len(watch.knowledge.records) == 100 - MAX_OVERDUE_A_LOOK
    assert seconds <= 2 * 8.0, "one deadline for all addresses of a peer, and sixteen peers at once"


def test_a_peer_is_there_if_its_last_address_answers() -> None:
    net = CountedNet(lambda target: 0.01 if target.endswith(":4") else 1e9)
    watch, _ = look(net, stranger(50.0, *(f"192.0.2.1:{port}" for port in (1, 2, 3, 4))))
    assert len(watch.knowledge.records) == 1


def test_the_time_to_connect_is_no_part_of_a_round_trip() -> None:
    """A coordinate made of it would put every peer a second away."""
    there = Coordinate((0.0, 0.0, 0.0), height=0.01, error=0.1)
    net = CountedNet(lambda target: 0.02)
    watch, _ = look(net, *(stranger(0.0, f"192.0.2.1:{n + 1}", coordinate=there) for n in range(8)))
    assert watch.coordinate.value is not None
    assert watch.coordinate.value.rtt_seconds(there) < 0.1


def test_a_peer_that_answers_a_ping_with_nothing_ends_no_look_of_others() -> None:
    """gRPC gives its caller None; what comes out of a look ends the peer that looks."""

    async def scenario() -> None:
        liar, own = Identity.generate(), Identity.generate().peer_id
        nothing = [*CONTENT, ("grpc-status", "0")]
        async with raw_http2_peer(lambda stream: headers(stream, nothing, ends=True), liar) as there:
            spec = PeerSpec(liar.peer_id, None, ComputeCost(1e-3), PeerState.JOINING, issued_seconds=NOW)
            near = replace(spec, coordinate=Coordinate((0.0, 0.0, 0.0)))

            async def records() -> Sequence[SignedRecord]:
                record = PeerRecord(DIGEST, near, addresses=(there.target,))
                return [sign_peer_record(liar, record, None, NOW + 60)]

            dialer = Dialer(rule=EVERY_RANGE)
            watch = SwarmWatch(own, 4, records, None, dialer, lambda: NOW, random.Random(1), PeerTiming())
            seen = await watch.snapshot(lambda: PeerSpec(own, None, ComputeCost(1e-3)))
            assert {peer.id for peer in seen.peers} == {own, liar.peer_id}
            await dialer.close()

    asyncio.run(scenario())
