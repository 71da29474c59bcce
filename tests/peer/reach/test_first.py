"""The check of a peer that joins: it answers pings for that time, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from blockswarm.peer.reach.first import first_verdict
from blockswarm.peer.reach.verdict import ReachStatus
from blockswarm.proto.errors import PeerUnavailable, UsageError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import HostPort, PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, ping
from blockswarm.proto.wire.messages.calls import LookupRequest
from blockswarm.proto.wire.messages.opening import Signed
from blockswarm.proto.wire.messages.relay import ReachReply
from blockswarm.proto.wire.messages.session import FailureFrame, ProbeFrame


class Asker:
    """Two that dial back for real, at the port that they are given."""

    def __init__(self, peer: Identity) -> None:
        self.peer = peer
        self.ports: list[int] = []

    async def ask(self, port: int) -> tuple[ReachReply, ...]:
        self.ports.append(port)
        address, dialer = PeerAddress(self.peer.peer_id, str(HostPort("127.0.0.1", port))), Dialer(rule=EVERY_RANGE)
        try:
            stub = dialer.stub(address)
            reply, _, _ = await ping(stub, address, 10)
            assert reply.peer_id == self.peer.peer_id
            with pytest.raises(PeerUnavailable, match="joining"):
                await stub.lookup(LookupRequest("x", Signed()), 10)
            stream = stub.session()
            await stream.write(ProbeFrame(1))
            frame = await stream.read()
            assert isinstance(frame, FailureFrame)
            return (ReachReply("127.0.0.1", True),) * 2
        finally:
            await dialer.close()


def test_a_peer_that_joins_is_dialled_back_and_its_port_is_free_afterwards() -> None:
    async def main() -> None:
        identity = Identity.generate()
        asker: Any = Asker(identity)
        verdict, port = await first_verdict(identity, "127.0.0.1", 0, asker, time.time)
        assert verdict.reached is ReachStatus.YES
        assert asker.ports == [port]
        again, same = await first_verdict(identity, "127.0.0.1", port, asker, time.time)
        assert (again, same) == (verdict, port)

    asyncio.run(main())


def test_a_forwarded_port_is_the_one_that_is_dialled() -> None:
    async def main() -> None:
        asked: list[int] = []

        class Named:
            async def ask(self, port: int) -> tuple[ReachReply, ...]:
                asked.append(port)
                return (ReachReply("8.8.8.8", False),)

        named: Any = Named()
        verdict, port = await first_verdict(Identity.generate(), "127.0.0.1", 0, named, time.time, 443)
        assert verdict.reached is ReachStatus.NO
        assert asked == [443] != [port]

    asyncio.run(main())


def test_a_port_that_is_taken_is_said_before_anybody_is_asked() -> None:
    async def main() -> None:
        asker: Any = None
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot listen"):
            await first_verdict(Identity.generate(), "127.0.0.1", taken.getsockname()[1], asker, time.time)

    asyncio.run(main())
