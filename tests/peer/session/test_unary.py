"""Look-ups and pings over real connections: nodes of other versions are refused, and are told the versions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.peer.offer.lookups import Answer
from blockswarm.peer.session.unary import UnaryCalls
from blockswarm.peer.session.work.seams import Counters
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.directory.signed import sign_record
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.errors import AuthenticationError, SwarmError, WrongSwarm
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, Handlers, serve
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION, HelloChecker, sign_hello
from blockswarm.proto.wire.messages.calls import LookupReply, LookupRequest, PingRequest
from blockswarm.proto.wire.messages.opening import Signed
from blockswarm.routing.admit.table import SessionTable
from blockswarm.routing.nearby import Asker
from blockswarm.routing.swarm import Coordinate

PEER, OTHER = Identity.generate(), Identity.generate()
SWARM_KEY = SwarmKey.generate()
RECORDS = [sign_record(Identity.generate(), bytes(20), bytes(100 * number), 1e9) for number in (3, 5, 1, 8)]
NAMES_BOTH = rf"protocol {PROTOCOL_VERSION} .* 2\b"


def hello(protocol: int, swarm_key: SwarmKey | None) -> Signed:
    """A hello that is good but for its version."""
    signed = sign_hello(OTHER, PEER.peer_id, bytes(16), time.time(), swarm_key)
    changed = pb.Hello.FromString(signed.payload)
    changed.protocol = protocol
    payload = changed.SerializeToString()
    signature = OTHER.sign(b"blockswarm-hello-1\0" + payload)
    return Signed(payload=payload, signer=OTHER.peer_id, signature=signature)


def ask(
    call: Callable[[Any], Awaitable[Any]],
    swarm_key: SwarmKey | None = None,
    asked: list[tuple[Asker | None, int]] | None = None,
) -> Any:
    """The answer of a peer to one call, and what its directory was `asked`; raises what its answer says."""
    asked = asked if asked is not None else []

    async def lookup(name: str, network: str, asker: Asker | None, most: int) -> Answer:
        asked.append((asker, most))
        return Answer(RECORDS[:most], len(RECORDS))

    async def unused(*args: object) -> None:
        raise AssertionError("not called in this test")

    async def main() -> Any:
        parts = SimpleNamespace(
            identity=PEER, swarm_key=swarm_key, hellos=HelloChecker(PEER.peer_id, time.time, swarm_key), lookup=lookup,
            model_digest="ab" * 32, model_name="toy", clock=time.time, counters=Counters(), sessions=SessionTable(10),
            replay=SimpleNamespace(nbytes=0), dht_addresses=list,
        )  # fmt: skip
        calls = UnaryCalls(parts)  # type: ignore[arg-type]
        server, port = await serve(PEER, Handlers(unused, unused, calls.lookup, calls.ping), "127.0.0.1", 0)
        dialer = Dialer(rule=EVERY_RANGE)
        try:
            return await call(dialer.stub(PeerAddress(PEER.peer_id, f"127.0.0.1:{port}")))
        finally:
            await dialer.close()
            await server.stop(grace=0)

    return asyncio.run(main())


both_kinds = pytest.mark.parametrize("swarm_key", [None, SWARM_KEY], ids=["public", "private"])


@both_kinds
def test_a_client_that_looks_up_is_refused_with_both_versions(swarm_key: SwarmKey | None) -> None:
    request = LookupRequest("name", hello(2, swarm_key))
    with pytest.raises(WrongSwarm, match=NAMES_BOTH):
        ask(lambda stub: stub.lookup(request, 10), swarm_key)


@both_kinds
def test_a_peer_that_wants_to_join_is_refused_with_both_versions(swarm_key: SwarmKey | None) -> None:
    """It pings without a version, and shows only refusals of this kind to its user."""
    with pytest.raises(AuthenticationError, match=NAMES_BOTH):
        ask(lambda stub: stub.ping(PingRequest(0), 10), swarm_key)


@both_kinds
def test_a_later_node_is_refused_too(swarm_key: SwarmKey | None) -> None:
    with pytest.raises(WrongSwarm, match=r"\b99\b"):
        ask(lambda stub: stub.ping(PingRequest(99), 10), swarm_key)


def test_this_version_is_answered() -> None:
    ask(lambda stub: stub.ping(PingRequest(PROTOCOL_VERSION), 10))
    request = LookupRequest("name", hello(PROTOCOL_VERSION, None))
    reply = ask(lambda stub: stub.lookup(request, 10))
    assert reply == LookupReply(tuple(record.encode() for record in RECORDS), len(RECORDS))


def test_an_answer_has_no_more_bytes_than_were_asked_for_and_says_that_there_is_more() -> None:
    sizes = [len(record.encode()) for record in RECORDS]
    asked: list[tuple[Asker | None, int]] = []
    place = Coordinate((0.5, 0.25, -0.5), 0.125)
    request = LookupRequest("name", hello(PROTOCOL_VERSION, None), sum(sizes[:3]), place)
    reply = ask(lambda stub: stub.lookup(request, 10), asked=asked)
    assert reply == LookupReply(tuple(record.encode() for record in RECORDS[:3]), len(RECORDS))
    assert not reply.is_complete
    assert asked == [(Asker(OTHER.peer_id, place), sum(sizes[:3]) // 256)]


@pytest.mark.parametrize(("most_bytes", "told"), [(1, 0), (2**32 - 1, len(RECORDS))])
def test_any_number_of_bytes_may_be_asked_for(most_bytes: int, told: int) -> None:
    asked: list[tuple[Asker | None, int]] = []
    request = LookupRequest("name", hello(PROTOCOL_VERSION, None), most_bytes)
    assert len(ask(lambda stub: stub.lookup(request, 10), asked=asked).records) == told
    assert asked[0][1] <= 900


def test_a_node_that_does_not_say_how_much_it_takes_is_told_everything_by_chance() -> None:
    asked: list[tuple[Asker | None, int]] = []
    ask(lambda stub: stub.lookup(LookupRequest("name", hello(PROTOCOL_VERSION, None)), 10), asked=asked)
    assert asked == [(None, 900)]


def test_a_look_up_without_a_hello_is_refused() -> None:
    with pytest.raises(SwarmError):
        ask(lambda stub: stub.lookup(LookupRequest("name", Signed()), 10))
