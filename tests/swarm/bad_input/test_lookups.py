"""Look-ups of a stranger at a peer."""

from __future__ import annotations

import pytest
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import LocalProtocolError
from blockswarm.proto.network.streams import translated_grpc_errors
from support.stranger import ANSWER_SECONDS, Stranger, World

pytestmark = pytest.mark.swarm


def test_a_look_up_of_an_absurd_name(world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        request = pb.LookupRequest(key="x" * 1000, hello=stranger.hello(bytes(16)))
        with pytest.raises(LocalProtocolError), translated_grpc_errors("the peer"):
            await stranger.stub.lookup(request, timeout=ANSWER_SECONDS)

    world.survive(attack)
