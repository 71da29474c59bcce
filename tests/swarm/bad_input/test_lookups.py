"""Look-ups of a stranger at a peer, and other calls that have one answer."""

from __future__ import annotations

import asyncio

import pytest
from blockswarm.peer.session.edge.handshakes import MAX_HANDSHAKES
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import LocalProtocolError, ProtocolError
from blockswarm.proto.network.streams import translated_grpc_errors
from blockswarm.proto.network.stub import SERVICE
from support.stranger import ANSWER_SECONDS, Stranger, World

pytestmark = pytest.mark.swarm


def test_a_look_up_of_an_absurd_name(world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        request = pb.LookupRequest(key="x" * 1000, hello=stranger.hello(bytes(16)))
        with pytest.raises(LocalProtocolError), translated_grpc_errors("the peer"):
            await stranger.stub.lookup(request, timeout=ANSWER_SECONDS)

    world.survive(attack)


@pytest.mark.parametrize("method", ["Lookup", "Ping"])
def test_calls_that_never_ask_anything_hold_few_places(world: World, method: str) -> None:
    """gRPC waits for a question without a bound: a connection could hold a thousand calls, and 20 MB, for ever."""

    async def attack(stranger: Stranger) -> None:
        begin = stranger.stub.channel.stream_stream(f"/{SERVICE}/{method}")
        calls = [begin() for _ in range(MAX_HANDSHAKES + 20)]
        ends = [asyncio.create_task(call.details()) for call in calls]
        async with asyncio.timeout(ANSWER_SECONDS):
            while sum(end.done() for end in ends) < 20:
                await asyncio.wait([end for end in ends if not end.done()], return_when=asyncio.FIRST_COMPLETED)
        assert all("newer ones" in end.result() for end in ends if end.done())
        for call in calls:
            call.cancel()
        await asyncio.gather(*ends)

    world.survive(attack)


def test_a_call_that_ends_before_it_asks_is_refused(world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        call = stranger.stub.channel.stream_stream(f"/{SERVICE}/Ping")()
        await call.done_writing()
        with pytest.raises(ProtocolError, match="without a question"), translated_grpc_errors("the peer"):
            async with asyncio.timeout(ANSWER_SECONDS):
                await call.read()

    world.survive(attack)
