"""Answers of hostile nodes: they concern the node that gave them, and hide nobody."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blockswarm.proto.directory.hivemind.exchange import MAX_SILENT_NODES, SilentNodes, neighbours, node_id_of, ping
from blockswarm.proto.directory.hivemind.shim import DHTID, PeerID, dht_pb2
from blockswarm.proto.directory.swarm_key import dht_id
from blockswarm.proto.errors import DeadlineExceeded, PeerUnavailable, RemoteProtocolError
from blockswarm.proto.identity import Identity
from support.directories import DirectorySwarm, a_record, fresh_name, hivemind_swarm
from support.raw_node import info_with, raw_member, serve_instead

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning"),  # hivemind's
    pytest.mark.skipif(sys.platform == "win32", reason="hivemind has no wheel for Windows"),
]

IMPOSSIBLE_PLACES = {
    "too long": b"\xff" * 21,
    "far too long": b"\xff" * 100_000,
    "of another identity": node_id_of(Identity.generate().peer_id).to_bytes(),
    "none": b"",
}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectorySwarm]:
    """Three honest nodes."""
    swarm = hivemind_swarm(tmp_path_factory.mktemp("dht"), num_nodes=3)
    yield swarm
    swarm.close()


# --- pings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", IMPOSSIBLE_PLACES.values(), ids=IMPOSSIBLE_PLACES.keys())
def test_a_node_without_the_place_of_its_identity_is_no_node(swarm: DirectorySwarm, place: bytes) -> None:
    """hivemind makes a number of any bytes that are sent, and its assertion about it reached the supervisor."""

    async def scenario() -> None:
        async with raw_member(swarm) as mallory:
            protocol, peer_id = swarm.announcers[0].node.dht.protocol, mallory.peer_id
            assert (await ping(protocol, peer_id, "mallory")).clock_seconds > 0
            assert peer_id in protocol.routing_table
            mallory.protocol.node_info = info_with(place)
            with pytest.raises(RemoteProtocolError, match="mallory"):
                await ping(protocol, peer_id, "mallory")
            assert peer_id not in protocol.routing_table
            assert await protocol.call_ping(peer_id) is None

    swarm.run(scenario())


def test_a_node_that_is_silent_or_fails_is_told_as_such(swarm: DirectorySwarm) -> None:
    async def fail(request: object, context: object) -> Any:
        raise KeyError("a defect\x1b[2J of the other node")

    async def scenario() -> None:
        async with raw_member(swarm) as mallory:
            protocol = swarm.announcers[0].node.dht.protocol
            await serve_instead(mallory, rpc_ping=fail)
            with pytest.raises(PeerUnavailable, match=r"mallory does not answer \(.*a defect") as caught:
                await ping(protocol, mallory.peer_id, "mallory")
            assert str(caught.value).isprintable()
            await serve_instead(mallory, rpc_ping=lambda request, context: asyncio.Event().wait())
            protocol.wait_timeout, patience = 0.2, protocol.wait_timeout
            with pytest.raises(DeadlineExceeded, match="mallory"):
                await ping(protocol, mallory.peer_id, "mallory")
            protocol.wait_timeout = patience

    swarm.run(scenario())


# --- walks ---------------------------------------------------------------------------------------------------------


def all_nearest(node: Any, per_key: int = 20) -> Any:
    """Answers that `node` is each of the nodes nearest to the key that is asked for."""

    async def rpc_find(request: Any, context: object) -> Any:
        results = []
        for key in request.keys:
            number = int.from_bytes(key, "big")
            places = [DHTID(number ^ distance).to_bytes() for distance in range(1, per_key + 1)]
            results.append(
                dht_pb2.FindResult(
                    type=dht_pb2.NOT_FOUND,
                    nearest_node_ids=places,
                    nearest_peer_ids=[node.peer_id.to_bytes()] * per_key,
                )
            )
        return dht_pb2.FindResponse(results=results, peer=node.protocol.node_info)

    return rpc_find


@pytest.mark.long
def test_one_node_cannot_be_all_of_the_nodes_nearest_to_a_key(swarm: DirectorySwarm) -> None:
    """Walks ended at places that one node had made up: nobody could announce, and look-ups found nobody else."""
    name, now = fresh_name(), swarm.clock()
    records = [a_record(Identity.generate(), name, now + 60) for _ in swarm.announcers]

    async def scenario() -> None:
        async with raw_member(swarm) as mallory:
            await serve_instead(mallory, rpc_find=all_nearest(mallory))
            for node in swarm.announcers:  # mallory is in everybody's table
                assert await node.node.dht.protocol.call_ping(mallory.peer_id) is not None
            for node, record in zip(swarm.announcers, records, strict=True):
                await node.announce(record)
            for reader in swarm.readers:
                assert set(await reader.lookup(name)) == set(records)

    swarm.run(scenario())


def test_an_answer_of_a_walk_is_bounded_and_names_nodes_at_their_places(swarm: DirectorySwarm) -> None:
    """A peer id of a megabyte is base58 for minutes."""
    honest = [Identity.generate().peer_id for _ in range(30)]

    def named(peer_id: str) -> tuple[bytes, bytes]:
        return node_id_of(peer_id).to_bytes(), PeerID.from_base58(peer_id).to_bytes()

    answers = {
        "too many": [named(peer_id) for peer_id in honest],
        "of all kinds": [
            *(named(peer_id) for peer_id in honest[:2]),
            (b"\xff" * 21, b"x"), (b"", b""), (named(honest[2])[0], named(honest[3])[1]), (b"x" * 20, b"x" * 1_000_000),
        ],
    }  # fmt: skip
    results: dict[str, Any] = {
        name: [
            dht_pb2.FindResult(
                nearest_node_ids=[place for place, _ in nodes], nearest_peer_ids=[peer_id for _, peer_id in nodes]
            )
        ]
        for name, nodes in answers.items()
    }
    results["two results"] = [dht_pb2.FindResult(), dht_pb2.FindResult()]
    results["none"] = []

    async def scenario() -> None:
        async with raw_member(swarm) as mallory:
            protocol = swarm.announcers[0].node.dht.protocol
            found = {}
            for name, result in results.items():
                response = dht_pb2.FindResponse(results=result, peer=mallory.protocol.node_info)

                async def answer(request: object, context: object, response: Any = response) -> Any:
                    return response

                await serve_instead(mallory, rpc_find=answer)
                found[name] = await neighbours(protocol, mallory.peer_id, [DHTID(5)])
            assert found["two results"] is None
            assert found["none"] is None
            assert found["of all kinds"] is not None
            assert [peer.to_base58() for peer in found["of all kinds"][DHTID(5)][1].values()] == honest[:2]
            assert found["too many"] is not None
            (nodes,) = (nodes for _, nodes in found["too many"].values())
            assert {place: peer.to_base58() for place, peer in nodes.items()} == {
                node_id_of(peer_id): peer_id for peer_id in honest[: len(nodes)]
            }
            assert len(nodes) == protocol.bucket_size

    swarm.run(scenario())


@pytest.mark.long
def test_nodes_that_are_gone_do_not_take_the_place_of_those_that_are_there(
    swarm: DirectorySwarm, tmp_path: Path
) -> None:
    """They stay in the tables of others for a while, and a key may be nearest to them; a record then reached nobody."""
    victim, others = swarm.announcers[0], swarm.announcers[1:]
    gone = [Identity.generate().peer_id for _ in range(300)]
    crowd: list[str] = []
    while len(crowd) < 5:
        key = int.from_bytes(dht_id(name := fresh_name()), "big")
        distances = {peer_id: int(node_id_of(peer_id)) ^ key for peer_id in gone}
        alive = min(int(node_id_of(other.peer_id)) ^ key for other in others)
        crowd = sorted((peer_id for peer_id in gone if distances[peer_id] < alive), key=distances.__getitem__)
    record = a_record(Identity.generate(), name, swarm.clock() + 60)

    async def scenario() -> None:
        protocol = victim.node.dht.protocol
        protocol.wait_timeout, patience = 2.0, protocol.wait_timeout
        for peer_id in crowd[:8]:
            await protocol.update_routing_table(node_id_of(peer_id), PeerID.from_base58(peer_id))
        await victim.announce(record)
        protocol.wait_timeout = patience
        for reader in swarm.readers:
            assert await reader.lookup(name) == (record,)

    swarm.run(scenario())


# --- nodes that do not answer --------------------------------------------------------------------------------------


def test_the_silent_are_left_out_for_longer_each_time_and_a_bounded_number_is_known() -> None:
    now = 100.0
    silent = SilentNodes(5.0, 60.0, lambda: now)
    for expected in (5.0, 10.0, 20.0, 40.0, 60.0, 60.0):
        silent.register_failure("node")
        silent.register_failure("node")  # a second call of the same walk
        now += expected - 0.1
        assert "node" in silent
        now += 0.1
        assert "node" not in silent
    silent.register_success("node")
    silent.register_failure("node")
    now += 5.0
    assert "node" not in silent
    for number in range(10 * MAX_SILENT_NODES):
        silent.register_failure(number)
    assert sum(number in silent for number in range(10 * MAX_SILENT_NODES)) <= MAX_SILENT_NODES


def test_calls_that_were_given_up_leave_nothing_behind(swarm: DirectorySwarm, tmp_path: Path) -> None:
    """hivemind kept the task of each of them for ever, and with it the request."""

    async def never(request: object, context: object) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with raw_member(swarm) as mallory:
            victim = swarm.announcers[0].node
            before = victim.calls_being_answered
            await serve_instead(mallory, rpc_ping=never)
            request = dht_pb2.PingRequest(peer=mallory.protocol.node_info, validate=True)
            stub = mallory.protocol.get_stub(victim.p2p.peer_id)
            calls = [asyncio.create_task(stub.rpc_ping(request, timeout=60)) for _ in range(20)]
            while victim.calls_being_answered < before + 5:  # noqa: ASYNC110 -- there is no event to wait for
                await asyncio.sleep(0.01)
            for call in calls:
                call.cancel()
            while victim.calls_being_answered > before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.gather(*calls, return_exceptions=True)

    swarm.run(scenario(), timeout_seconds=30.0)
