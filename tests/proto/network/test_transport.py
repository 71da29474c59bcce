"""Channels that are pinned to a peer id: who may pose as whom, and for how long a server stays reachable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from blockswarm.proto.errors import AuthenticationError, PeerUnavailable, UsageError, WrongSwarm
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import HostPort, PeerAddress, RelayedAddress
from blockswarm.proto.network.transport import (
    Dialer,
    Handlers,
    ping,
    serve,
)
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply, PingRequest
from blockswarm.proto.wire.timing import LEAF_LIFETIME_SECONDS

DAY = 86400.0


async def _unused(*args: Any) -> Any:
    raise AssertionError("not called in this test")


@asynccontextmanager
async def server(
    identity: Identity, clock: Callable[[], float] = time.time, protocol: int = PROTOCOL_VERSION
) -> AsyncIterator[PeerAddress]:
    async def answer(request: PingRequest) -> PingReply:
        assert request.protocol == PROTOCOL_VERSION
        return PingReply(clock=clock(), peer_id=identity.peer_id, protocol=protocol)

    running, port = await serve(identity, Handlers(_unused, _unused, _unused, answer), "127.0.0.1", 0, clock)
    try:
        yield PeerAddress(identity.peer_id, f"127.0.0.1:{port}")
    finally:
        await running.stop(grace=0)


@asynccontextmanager
async def dialer(clock: Callable[[], float] = time.time) -> AsyncIterator[Dialer]:
    made = Dialer(clock)
    try:
        yield made
    finally:
        await made.close()


def test_a_peer_answers_under_its_own_id_only() -> None:
    async def main() -> None:
        me, other = Identity.generate(), Identity.generate()
        async with server(me) as address, dialer() as dial:
            reply, rtt_seconds, offset_seconds = await ping(dial.stub(address), address, 10)
            assert reply.peer_id == me.peer_id
            assert rtt_seconds > 0
            assert abs(offset_seconds) < 5
            wrong = PeerAddress(other.peer_id, address.target)
            with pytest.raises(AuthenticationError):
                await ping(dial.stub(wrong), wrong, 10)

    asyncio.run(main())


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1])
def test_a_peer_of_another_protocol_is_refused_with_both_versions(version: int) -> None:
    async def main() -> None:
        async with server(Identity.generate(), protocol=version) as address, dialer() as dial:
            with pytest.raises(WrongSwarm, match=rf"protocol {PROTOCOL_VERSION} .* {version}\b"):
                await ping(dial.stub(address), address, 10)

    asyncio.run(main())


def test_a_server_that_is_up_for_a_year_stays_reachable() -> None:
    """The leaf in use is always valid at the server's own time; a dialler checks it by the real clock, so the injected
    year ends now."""

    async def main() -> None:
        me = Identity.generate()
        now = [time.time() - 365 * DAY]
        async with server(me, lambda: now[0]) as address:
            async with dialer() as dial:
                with pytest.raises((AuthenticationError, PeerUnavailable)):
                    await ping(dial.stub(address), address, 10)  # a leaf of last year is over
            while now[0] < time.time() - LEAF_LIFETIME_SECONDS / 4:
                now[0] += LEAF_LIFETIME_SECONDS / 4
            async with dialer() as dial:
                reply, _, _ = await ping(dial.stub(address), address, 10)
                assert reply.peer_id == me.peer_id

    asyncio.run(main())


def test_nobody_there_is_said_with_the_address() -> None:
    async def main() -> None:
        address = PeerAddress(Identity.generate().peer_id, "127.0.0.1:1")
        async with dialer() as dial:
            with pytest.raises(PeerUnavailable, match=r"127\.0\.0\.1:1"):
                await ping(dial.stub(address), address, 10)

    asyncio.run(main())


def test_a_taken_port_is_a_usage_error() -> None:
    async def main() -> None:
        async with server(Identity.generate()) as address:
            port = HostPort.parse(address.target).port
            with pytest.raises(UsageError, match="cannot listen"):
                await serve(Identity.generate(), Handlers(_unused, _unused, _unused, _unused), "127.0.0.1", port)

    asyncio.run(main())


def test_the_least_recently_used_channel_is_closed() -> None:
    async def main() -> None:
        made = Dialer(max_channels=2)
        addresses = [PeerAddress(Identity.generate().peer_id, "127.0.0.1:1") for _ in range(3)]
        first = made.stub(addresses[0])
        assert made.stub(addresses[0]) is first
        made.stub(addresses[1])
        made.stub(addresses[2])
        assert made.stub(addresses[0]) is not first
        await made.close()

    asyncio.run(main())


def test_a_peer_behind_a_relay_is_said_to_be_out_of_reach() -> None:
    """Relays are announced already; a peer that has nothing else must not look like one that is down."""

    async def main() -> None:
        relay = PeerAddress(Identity.generate().peer_id, "192.0.2.1:4000")
        async with dialer() as dial:
            with pytest.raises(PeerUnavailable, match="relays are not supported by this version"):
                dial.stub(RelayedAddress(Identity.generate().peer_id, relay))

    asyncio.run(main())


@pytest.mark.parametrize("host", ["", "a b", "host:1", "unix:/tmp/x", "[::1", "1.2.3.4/8"])
def test_what_is_no_host_is_not_listened_on(host: str) -> None:
    with pytest.raises(UsageError, match="is not a host"):
        asyncio.run(serve(Identity.generate(), Handlers(_unused, _unused, _unused, _unused), host, 0))
