"""Openings of a session that are forged, replayed, absurd, or more than there is room for."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from blockswarm.client.chain.session import ChainSession
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import (
    AuthenticationError,
    ClockSkew,
    LocalProtocolError,
    ModelMismatch,
    OutOfMemory,
    PeerBusy,
    SessionLost,
    SwarmError,
    WrongSwarm,
)
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.handshake import sign_capability, sign_hello
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange
from support.raw_peer import signed_message
from support.stranger import ANSWER_SECONDS, Stranger, World, read, refusal, step, tokens

pytestmark = pytest.mark.swarm


def other_peers_key(stranger: Stranger) -> pb.Open:
    grant = stranger.grant()
    return stranger.opening(grant, capability=signed_message(sign_capability(Identity.generate(), grant)))


def broken_signature(stranger: Stranger) -> pb.Open:
    message = stranger.opening(stranger.grant())
    message.capability.signature = bytes([message.capability.signature[0] ^ 1]) + message.capability.signature[1:]
    return message


def changed_payload(stranger: Stranger) -> pb.Open:
    grant = stranger.grant()
    message = stranger.opening(grant)
    wanted = sign_capability(stranger.identity, replace(grant, kv_tokens=grant.kv_tokens + 1))
    message.capability.payload = wanted.payload
    return message


def hello_for_another(stranger: Stranger) -> pb.Open:
    grant = stranger.grant()
    other = stranger.swarm.peers[0].identity.peer_id
    hello = sign_hello(stranger.identity, other, grant.session_id, time.time(), None)
    return stranger.opening(grant, hello=signed_message(hello))


def hello_of_another_session(stranger: Stranger) -> pb.Open:
    return stranger.opening(stranger.grant(), hello=stranger.hello(bytes(16)))


def hello_at(offset_seconds: float) -> Callable[[Stranger], pb.Open]:
    def make(stranger: Stranger) -> pb.Open:
        grant = stranger.grant()
        return stranger.opening(grant, hello=stranger.hello(grant.session_id, time.time() + offset_seconds))

    return make


def other_protocol(stranger: Stranger) -> pb.Open:
    grant = stranger.grant()
    hello = pb.Hello.FromString(stranger.hello(grant.session_id).payload)
    hello.protocol = 99
    payload = hello.SerializeToString()
    signature = stranger.identity.sign(b"blockswarm-hello-1\0" + payload)
    signed = pb.Signed(payload=payload, signer=stranger.identity.peer_id, signature=signature)
    return stranger.opening(grant, hello=signed)


def granting(**changes: Any) -> Callable[[Stranger], pb.Open]:
    return lambda stranger: stranger.opening(stranger.grant(**changes))


def for_another_peer(stranger: Stranger) -> pb.Open:
    return stranger.opening(stranger.grant(peer=stranger.swarm.peers[0].identity.peer_id))


def lasting(seconds: float) -> Callable[[Stranger], pb.Open]:
    return lambda stranger: stranger.opening(stranger.grant(expires_at_seconds=time.time() + seconds))


def naming(*prefixes: bytes) -> Callable[[Stranger], pb.Open]:
    named = [pb.Prefix(digests=digests) for digests in prefixes]
    return lambda stranger: stranger.opening(stranger.grant(), prefixes=named)


def with_successor(record: bytes) -> Callable[[Stranger], pb.Open]:
    def make(stranger: Stranger) -> pb.Open:
        grant = stranger.grant(successor=Identity.generate().peer_id)
        return stranger.opening(grant, successor_record=record)

    return make


def somebody_elses_record(stranger: Stranger) -> pb.Open:
    records = next(iter(stranger.swarm.store.records.values()))
    record = records[stranger.swarm.peers[0].identity.peer_id]
    return stranger.opening(stranger.grant(successor=stranger.swarm.peers[2].identity.peer_id), successor_record=record)


BAD_OPENINGS = {
    "capability signed by another": (other_peers_key, AuthenticationError),
    "capability with a broken signature": (broken_signature, AuthenticationError),
    "capability changed after signing": (changed_payload, AuthenticationError),
    "capability for another peer": (for_another_peer, AuthenticationError),
    "capability for another range": (granting(blocks=BlockRange(3, 5)), SessionLost),
    "capability for another model": (granting(model_digest="0" * 64), ModelMismatch),
    "capability that has expired": (lasting(-1), AuthenticationError),
    "capability for years": (lasting(1e9), AuthenticationError),
    "capability without end": (lasting(math.nan), LocalProtocolError),
    "no room": (granting(kv_tokens=0), LocalProtocolError),
    "absurd room": (granting(kv_tokens=1 << 60), LocalProtocolError),
    "more room than there is": (granting(kv_tokens=1 << 20), OutOfMemory),
    "more room than is free": (granting(kv_tokens=4000), PeerBusy),
    "absurd rows": (granting(max_rows=1 << 20), LocalProtocolError),
    "no rows": (granting(max_rows=0), LocalProtocolError),
    "a neighbour that is no peer": (granting(predecessor="nobody"), AuthenticationError),
    "an unknown wire format": (granting(wire_format="float1"), LocalProtocolError),
    "an unknown format of inputs": (granting(input_format="float64"), LocalProtocolError),
    "no format of inputs": (granting(input_format=""), LocalProtocolError),
    "hello for another peer": (hello_for_another, AuthenticationError),
    "hello of another session": (hello_of_another_session, AuthenticationError),
    "hello from the past": (hello_at(-60), ClockSkew),
    "hello from the future": (hello_at(60), ClockSkew),
    "hello of no time": (hello_at(math.nan), LocalProtocolError),
    "hello of another protocol": (other_protocol, WrongSwarm),
    "prefixes larger than the room": (naming(bytes(32)), LocalProtocolError),
    "more prefixes than rows": (naming(b"", b"", b""), LocalProtocolError),
    "half the name of a page": (naming(bytes(8)), LocalProtocolError),
    "an empty opening": (lambda stranger: pb.Open(), AuthenticationError),
    "a successor without record": (with_successor(b""), SwarmError),
    "a successor with a broken record": (with_successor(b"\xff" * 100), LocalProtocolError),
    "the record of another successor": (somebody_elses_record, AuthenticationError),
}


@pytest.mark.parametrize("name", BAD_OPENINGS)
def test_an_opening_that_is_refused(world: World, name: str) -> None:
    make, wanted = BAD_OPENINGS[name]

    async def attack(stranger: Stranger) -> None:
        error = await refusal(await stranger.begin(make(stranger)))
        assert isinstance(error, wanted), repr(error)
        assert str(error)
        if isinstance(error, PeerBusy):
            assert error.retry_after_seconds > 0

    world.survive(attack)


def test_a_replayed_opening(world: World) -> None:
    """A recording of what a client sent is of no use to anybody else."""

    async def attack(stranger: Stranger) -> None:
        message = stranger.opening(stranger.grant())
        first = await stranger.begin(message)
        assert (await read(first)).HasField("opened")
        error = await refusal(await stranger.begin(message))
        assert isinstance(error, AuthenticationError)
        assert "used before" in str(error)
        first.cancel()

    world.survive(attack)


def test_a_session_is_opened_once(world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        grant = stranger.grant()
        first = await stranger.begin(stranger.opening(grant))
        assert (await read(first)).HasField("opened")
        error = await refusal(await stranger.begin(stranger.opening(grant)))
        assert isinstance(error, LocalProtocolError)
        await first.write(pb.ClientFrame(step=step()))
        assert (await read(first)).HasField("step"), "the first one goes on"
        first.cancel()

    world.survive(attack)


def test_openings_beyond_the_room_are_told_to_come_back(world: World) -> None:
    """Peers of this test have room for 4096 tokens in each block; 200 are taken by the session that goes on."""

    async def attack(stranger: Stranger) -> None:
        calls = [await stranger.opened(kv_tokens=1200) for _ in range(3)]
        error = await refusal(await stranger.begin(stranger.opening(stranger.grant(kv_tokens=1200))))
        assert isinstance(error, PeerBusy)
        calls[0].cancel()
        again = await until_opened(stranger, 1200)
        for call in (*calls, again):
            call.cancel()

    async def until_opened(stranger: Stranger, kv_tokens: int) -> Any:
        """The peer learns of the cancelled session a moment later."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                call = await stranger.begin(stranger.opening(stranger.grant(kv_tokens=kv_tokens)))
                if (await read(call)).HasField("opened"):
                    return call

    world.survive(attack)


def test_a_client_whose_clock_is_wrong(world: World) -> None:
    """It learns so, instead of hearing that no peer will do."""

    async def attack(stranger: Stranger) -> None:
        config = await stranger.swarm.client()
        session = ChainSession(replace(config, clock=lambda: time.time() + 100), kv_tokens=8, max_rows=1)
        with pytest.raises(ClockSkew, match="100 s"):
            await session.run(StepPlan((RowSlice(0, 0, 1, 1),)), tokens(1))
        await session.close()
        await stranger.swarm.views.pop().close()
        await stranger.swarm.dialers.pop().close()

    world.survive(attack)


def test_a_session_id_can_be_taken_by_nobody_else(world: World) -> None:
    """Every peer of a chain knows the id: under the id alone it could take the session's place at its replacements."""

    async def attack(stranger: Stranger) -> None:
        grant = stranger.grant()
        squatter = Stranger(stranger.swarm, stranger.victim)
        taken = squatter.grant(session_id=grant.session_id)
        first = await squatter.begin(squatter.opening(taken))
        assert (await read(first)).HasField("opened")
        second = await stranger.begin(stranger.opening(grant))
        assert (await read(second)).HasField("opened")
        for call in (first, second):
            call.cancel()
        await squatter.dialer.close()

    world.survive(attack)
