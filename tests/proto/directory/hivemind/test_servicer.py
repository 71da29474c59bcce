"""Calls of other nodes are bounded: a node that calls without end, or at length, is in nobody's way for long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.proto.directory.hivemind.entries import DICTIONARY_TAG, pack_dictionary, unpack_dictionary, value_of
from blockswarm.proto.directory.hivemind.exchange import node_id_of
from blockswarm.proto.directory.hivemind.places import Places, StorageLimits
from blockswarm.proto.directory.hivemind.servicer import (
    ANSWER_BYTES_PER_SECOND,
    MAX_CALLS,
    MAX_CALLS_OF_A_NODE,
    MAX_QUESTION_BYTES,
    MAX_STORE_BYTES,
    BoundedCall,
    Servicer,
)
from blockswarm.proto.directory.hivemind.shim import MSGPackSerializer, PeerID, dht_pb2
from blockswarm.proto.directory.signed import SignatureCache, SignedRecord
from blockswarm.proto.directory.swarm_key import dht_id
from blockswarm.proto.errors import AuthenticationError, PeerUnavailable, RemoteProtocolError
from blockswarm.proto.identity import Identity
from support.directories import a_record
from support.virtual_time import VirtualTimeLoop

START = 1.7e9
OWN, ALICE, MALLORY = (Identity.generate() for _ in range(3))
NAME = "a name"
KEY = dht_id(NAME)


class Protocol:
    """The part of hivemind's protocol that a servicer uses."""

    bucket_size = 20

    def __init__(self) -> None:
        self.node_info = info_of(OWN)
        self.known: dict[Any, Any] = {}
        self.reachable = asyncio.Event()
        self.routing_table = SimpleNamespace(get_nearest_neighbors=self.nearest)

    def nearest(self, key: object, k: int, exclude: object) -> list[tuple[Any, Any]]:
        others = [(node_id, peer_id) for node_id, peer_id in self.known.items() if node_id != exclude]
        return others[:k]

    async def call_ping(self, peer_id: Any) -> Any:
        await self.reachable.wait()
        return node_id_of(str(peer_id))

    async def update_routing_table(self, node_id: Any, peer_id: Any, responded: bool) -> None:
        self.known[node_id] = peer_id


class Reached:
    """Every owner is connected, from a network of its own."""

    async def refresh(self) -> None:
        """Nothing to do."""

    def network_of(self, node: str) -> str:
        return node


def info_of(identity: Identity) -> Any:
    return dht_pb2.NodeInfo(node_id=node_id_of(identity.peer_id).to_bytes())


def context_of(identity: Identity) -> Any:
    return SimpleNamespace(remote_id=PeerID.from_base58(identity.peer_id))


class World:
    """A servicer, its places, and calls of others."""

    def __init__(self) -> None:
        self.protocol = Protocol()
        self.places = Places(OWN.peer_id, StorageLimits(), lambda: START, lambda: 0.0)
        connector = SimpleNamespace(open_connection=self.no_daemon)
        p2p: Any = SimpleNamespace(_client=SimpleNamespace(control=SimpleNamespace(daemon_connector=connector)))
        self.servicer = Servicer(
            p2p,
            self.protocol,
            self.places,
            SignatureCache(),
            Reached(),
            600.0,
            lambda: START,  # type: ignore[arg-type]
        )

    async def no_daemon(self) -> Any:
        raise ConnectionRefusedError

    def ping(self, identity: Identity, validate: bool = True) -> Awaitable[Any]:
        request = dht_pb2.PingRequest(peer=info_of(identity), validate=validate)
        return self.servicer.rpc_ping(request, context_of(identity))

    def find(self, identity: Identity, key: bytes = KEY) -> Awaitable[Any]:
        return self.servicer.rpc_find(dht_pb2.FindRequest(keys=[key], peer=info_of(identity)), context_of(identity))

    def store(self, identity: Identity, *records: SignedRecord) -> Awaitable[Any]:
        request = dht_pb2.StoreRequest(
            keys=[record.key for record in records], subkeys=[MSGPackSerializer.dumps(r.peer_id) for r in records],
            values=[value_of(record) for record in records], expiration_time=[r.expires_at_seconds for r in records],
            peer=info_of(identity),
        )  # fmt: skip
        return self.servicer.rpc_store(request, context_of(identity))

    def fill(self, count: int, payload: bytes = b"") -> list[SignedRecord]:
        records = [a_record(Identity.generate(), NAME, START + 60, payload) for _ in range(count)]
        for record in records:
            assert self.places.keep(KEY, record.peer_id, value_of(record), record.expires_at_seconds, record.peer_id)
        return records


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def in_world() -> None:
        await scenario(World())

    with contextlib.closing(VirtualTimeLoop()) as loop:
        loop.run(in_world())


async def started(calls: list[Awaitable[Any]]) -> list[asyncio.Future[Any]]:
    """The calls, each as far as it comes by itself."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(10):
        await asyncio.sleep(0)
    return tasks


def test_a_node_has_few_calls_under_way_and_others_are_answered_meanwhile() -> None:
    """A ping that asks to be called back takes as long as the caller likes."""

    async def scenario(world: World) -> None:
        tasks = await started([world.ping(MALLORY) for _ in range(1000)])
        refused = [task for task in tasks if task.done()]
        assert len(tasks) - len(refused) == MAX_CALLS_OF_A_NODE
        assert all(isinstance(task.exception(), PeerUnavailable) for task in refused)
        (record,) = world.fill(1)
        found = await world.find(ALICE)
        assert [entry.owner for entry in unpack_dictionary(found.results[0].value)] == [record.peer_id]
        world.protocol.reachable.set()
        answers = await asyncio.gather(*(task for task in tasks if task not in refused))
        assert all(answer.available for answer in answers)
        assert (await world.ping(MALLORY)).available

    run(scenario)


def test_the_calls_of_any_number_of_nodes_are_bounded() -> None:
    async def scenario(world: World) -> None:
        crowd = [Identity.generate() for _ in range(2 * MAX_CALLS // MAX_CALLS_OF_A_NODE)]
        tasks = await started([world.ping(identity) for identity in crowd for _ in range(MAX_CALLS_OF_A_NODE)])
        assert sum(not task.done() for task in tasks) == MAX_CALLS
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await world.ping(ALICE, validate=False)).dht_time == START

    run(scenario)


def test_large_answers_come_at_a_pace_and_other_work_has_its_turn_between_them() -> None:
    """A question of sixty bytes has an answer of megabytes: 64 of them were 5 s in which nothing else was done."""

    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        world.fill(900, b"x" * 2700)
        size = len((await world.find(ALICE)).results[0].value)
        assert size > 2_000_000
        began = loop.time()
        crowd = [Identity.generate() for _ in range(4)]
        calls = [asyncio.ensure_future(world.find(identity)) for identity in crowd for _ in range(5)]
        await asyncio.sleep(1.5 * size / ANSWER_BYTES_PER_SECOND)
        assert sum(call.done() for call in calls) == 1, "one at a time"
        await world.find(ALICE, b"other key" + bytes(11))  # a step of a walk waits for none of them
        assert sum(call.done() for call in calls) == 1
        await asyncio.gather(*calls)
        assert loop.time() - began == pytest.approx(len(calls) * size / ANSWER_BYTES_PER_SECOND, rel=0.1)

    run(scenario)


def test_a_place_that_is_not_the_callers_is_not_noted() -> None:
    async def scenario(world: World) -> None:
        world.protocol.reachable.set()
        for place in (b"", b"\xff" * 21, node_id_of(ALICE.peer_id).to_bytes()):
            request = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=place))
            await world.servicer.rpc_ping(request, context_of(MALLORY))
        assert not world.protocol.known
        await world.ping(MALLORY, validate=False)
        assert [peer_id.to_base58() for peer_id in world.protocol.known.values()] == [MALLORY.peer_id]
        assert [len((await world.find(who)).results[0].nearest_node_ids) for who in (MALLORY, ALICE)] == [0, 1]

    run(scenario)


def test_a_call_that_is_larger_than_any_honest_one_is_not_even_parsed() -> None:
    """Parsing two million empty elements takes 0.1 s, and reading a hundred thousand empty dictionaries seconds."""
    for message, limit in ((dht_pb2.FindRequest, MAX_QUESTION_BYTES), (dht_pb2.StoreRequest, MAX_STORE_BYTES)):
        call = BoundedCall(message, limit)
        assert len(call.FromString(message(keys=[b"k" * (limit - 10)]).SerializeToString()).keys) == 1
        with pytest.raises(RemoteProtocolError):
            call.FromString(message(keys=[b""] * limit).SerializeToString())


def test_the_largest_record_fits_into_a_call() -> None:
    async def scenario(world: World) -> None:
        record = a_record(ALICE, NAME, START + 60, b"x" * 2800)
        assert list((await world.store(ALICE, record)).store_ok) == [True]
        (key, subkey) = (record.key, MSGPackSerializer.dumps(record.peer_id))
        request = dht_pb2.StoreRequest(keys=[key], subkeys=[subkey], values=[value_of(record)], expiration_time=[1.0])
        assert request.ByteSize() < MAX_STORE_BYTES / 4

    run(scenario)


EMPTY = pack_dictionary({})


@pytest.mark.parametrize("values", [[EMPTY] * 2000, [b"\xc1"], [b""] * 3], ids=["many", "nonsense", "uneven"])
def test_malformed_stores_are_refused(values: list[bytes]) -> None:
    async def scenario(world: World) -> None:
        count = len(values) if len(values) != 3 else 2
        request = dht_pb2.StoreRequest(
            keys=[KEY] * count, subkeys=[DICTIONARY_TAG] * count, values=values, expiration_time=[1.0] * count
        )
        with pytest.raises(RemoteProtocolError):
            await world.servicer.rpc_store(request, context_of(MALLORY))

    run(scenario)


def test_the_sender_of_a_forged_record_is_not_heard_any_more() -> None:
    async def scenario(world: World) -> None:
        forged = SignedRecord(KEY, ALICE.peer_id, b"", START + 60, bytes(64))
        with pytest.raises(AuthenticationError):
            await world.store(MALLORY, forged)
        for call in (world.ping(MALLORY), world.find(MALLORY), world.store(MALLORY)):
            with pytest.raises(AuthenticationError, match="forged"):
                await call
        assert not (await world.ping(ALICE, validate=False)).available

    run(scenario)
