"""Channels that are pinned to a peer id: who may pose as whom, and for how long a server stays reachable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from blockswarm.proto.errors import (
    AuthenticationError,
    ClockSkew,
    DeadlineExceeded,
    PeerUnavailable,
    SessionLost,
    SwarmError,
    UsageError,
    WrongSwarm,
)
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import HostPort, PeerAddress, RelayedAddress
from blockswarm.proto.network.dialling import EVERY_RANGE, AddressRefused
from blockswarm.proto.network.transport import (
    Dialer,
    Handlers,
    ping,
    serve,
)
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply, PingRequest
from blockswarm.proto.wire.messages.opening import PushOpenFrame, PushReadyFrame, Signed
from blockswarm.proto.wire.timing import LEAF_LIFETIME_SECONDS
from blockswarm.routing.swarm import PeerId
from support.directories import until
from support.silent_ports import silent_port

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
    made = Dialer(clock, rule=EVERY_RANGE)
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


@pytest.mark.parametrize("hours", [27, 24 * 365, -27, -24 * 14])
def test_a_clock_that_is_off_is_not_taken_for_another_node(hours: int) -> None:
    """A certificate had a begin: a machine whose clock was 27 h behind was told that nobody is who they claim to be."""

    async def main() -> None:
        def clock() -> float:
            return time.time() + 3600 * hours

        me, other = Identity.generate(), Identity.generate()
        async with server(me, clock) as address, dialer() as dial:
            _, _, offset_seconds = await ping(dial.stub(address), address, 10)
            assert offset_seconds / 3600 == pytest.approx(hours, abs=0.1)
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
                with pytest.raises(ClockSkew, match="15 days or more behind"):
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
        made = Dialer(max_channels=2, rule=EVERY_RANGE)
        addresses = [PeerAddress(Identity.generate().peer_id, "127.0.0.1:1") for _ in range(3)]
        first = made.stub(addresses[0])
        assert made.stub(addresses[0]) is first
        made.stub(addresses[1])
        made.stub(addresses[2])
        assert made.stub(addresses[0]) is not first
        await made.close()

    asyncio.run(main())


def test_a_relay_that_is_not_there_is_said_with_its_address() -> None:
    async def main() -> None:
        relay = PeerAddress(Identity.generate().peer_id, "127.0.0.1:1")
        address = RelayedAddress(Identity.generate().peer_id, relay)
        async with dialer() as dial:
            with pytest.raises(PeerUnavailable, match=r"through .*127\.0\.0\.1:1"):
                await ping(dial.stub(address), address, 10)
            no_peer = RelayedAddress(PeerId("no id"), relay)
            with pytest.raises(AuthenticationError):
                await ping(dial.stub(no_peer), no_peer, 10)

    asyncio.run(main())


# --- lines: which channels are open, and for how long ---


@pytest.mark.long
def test_nothing_is_dialled_any_more_when_the_call_has_failed() -> None:
    """gRPC alone knocked nine times within 15 s after a call that had failed at once."""

    async def main() -> None:
        async with silent_port(hang_up=True) as port, dialer() as dial:
            address = PeerAddress(Identity.generate().peer_id, port.target)
            with pytest.raises(SwarmError):
                await ping(dial.stub(address), address, 10)
            assert dial.open_channels == 0
            assert not await port.until_knocks(port.knocks + 1, seconds=1.5)
            stream = dial.stub(address).push()
            for _ in range(2):  # also if its user keeps what is over
                with pytest.raises(SwarmError):
                    await stream.read()
            assert dial.open_channels == 0
            assert not await port.until_knocks(port.knocks + 1, seconds=1.5)

    asyncio.run(main())


@pytest.mark.long
def test_a_peer_that_was_lost_is_not_dialled_between_calls() -> None:
    async def main() -> None:
        async with dialer() as dial:
            async with server(Identity.generate()) as address:
                await ping(dial.stub(address), address, 10)
                assert dial.open_channels == 1, "one that answers is ready for the next call"
            with pytest.raises(PeerUnavailable):
                await ping(dial.stub(address), address, 10)
            assert dial.open_channels == 0

    asyncio.run(main())


def test_a_call_that_is_given_up_gives_its_channel_back() -> None:
    async def main() -> None:
        async with silent_port() as port, dialer() as dial:
            address = PeerAddress(Identity.generate().peer_id, port.target)
            stream = dial.stub(address).session()
            reading = asyncio.create_task(stream.read())
            assert await port.until_knocks(1, seconds=10)
            stream.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            async with asyncio.timeout(60):
                await port.until_left()
            with pytest.raises(DeadlineExceeded):
                await ping(dial.stub(address), address, 0.2)
            async with asyncio.timeout(60):
                await port.until_left()

    asyncio.run(main())


def echoing(identity: Identity) -> Handlers:
    """A peer that answers every frame of a push with "ready"."""

    async def push(stream: Any) -> None:
        while await stream.read() is not None:
            await stream.write(PushReadyFrame())

    return Handlers(_unused, push, _unused, _unused)


HELLO = PushOpenFrame(Signed(b"payload", "signer", b"signature"))


def test_no_number_of_other_peers_pushes_out_a_channel_that_is_in_use() -> None:
    """135 records of silent addresses had a client close the channels of its own sessions."""

    async def main() -> None:
        identity = Identity.generate()
        running, port = await serve(identity, echoing(identity), "127.0.0.1", 0)
        dial = Dialer(max_channels=2, rule=EVERY_RANGE)
        stream = dial.stub(PeerAddress(identity.peer_id, f"127.0.0.1:{port}")).push()
        await stream.write(HELLO)
        assert isinstance(await stream.read(), PushReadyFrame)
        for _ in range(8):
            other = PeerAddress(Identity.generate().peer_id, "127.0.0.1:1")
            with pytest.raises(PeerUnavailable):
                await ping(dial.stub(other), other, 10)
        await stream.write(HELLO)
        assert isinstance(await stream.read(), PushReadyFrame)
        assert dial.open_channels == 1
        await dial.close()
        await running.stop(grace=0)

    asyncio.run(main())


def test_a_renewed_line_ends_with_its_last_call() -> None:
    async def main() -> None:
        identity = Identity.generate()
        running, port = await serve(identity, echoing(identity), "127.0.0.1", 0)
        address = PeerAddress(identity.peer_id, f"127.0.0.1:{port}")
        async with dialer() as dial:
            old = dial.stub(address).push()
            await old.write(HELLO)
            assert isinstance(await old.read(), PushReadyFrame)
            dial.renew(address)
            new = dial.stub(address).push()
            for stream in (old, new):
                await stream.write(HELLO)
                assert isinstance(await stream.read(), PushReadyFrame)
            assert dial.open_channels == 2
            old.cancel()
            async with asyncio.timeout(60):
                await until(lambda: dial.open_channels == 1)
        await running.stop(grace=0)

    asyncio.run(main())


def test_a_closed_dialer_dials_nobody() -> None:
    async def main() -> None:
        async with silent_port() as port:
            address = PeerAddress(Identity.generate().peer_id, port.target)
            made = Dialer(rule=EVERY_RANGE)
            stub = made.stub(address)
            await made.close()
            for late in (stub, made.stub(address)):
                with pytest.raises(SessionLost):
                    await ping(late, address, 10)
                with pytest.raises(SessionLost):
                    await late.session().read()
            assert port.knocks == 0

    asyncio.run(main())


# --- where it dials ---


def test_in_a_public_swarm_nobody_knocks_at_private_doors() -> None:
    """A record may name any address: the peer would look for strangers what is open at its owner's home."""

    async def main() -> None:
        async with silent_port() as port:
            public = Dialer(lookup=answers("127.0.0.1", "127.0.0.1"))
            for target in (port.target, f"[::ffff:127.0.0.1]:{port.port}", f"home.example.org:{port.port}"):
                address = PeerAddress(Identity.generate().peer_id, target)
                with pytest.raises(AddressRefused):
                    await ping(public.stub(address), address, 10)
                with pytest.raises(AddressRefused):
                    await public.stub(address).push().read()
            await public.close()
            assert port.knocks == 0

    asyncio.run(main())


def answers(*hosts: str) -> Callable[..., Any]:
    """A resolver that has one address for a name each time, in turn."""
    rest = iter(hosts)

    def lookup(host: str, port: int, **_: Any) -> Any:
        return [(0, 0, 0, "", (next(rest), port))]

    return lookup


def test_the_address_that_was_checked_is_the_one_that_is_dialled() -> None:
    """A name that leads elsewhere at the second look-up would pass the check and be dialled at home."""

    async def main() -> None:
        async with server(Identity.generate()) as address:
            named = PeerAddress(address.peer, f"peer.example.org:{HostPort.parse(address.target).port}")
            dial = Dialer(rule=EVERY_RANGE, lookup=answers("127.0.0.1", "192.0.2.1"))
            for _ in range(2):
                reply, _, _ = await ping(dial.stub(named), named, 10)
                assert reply.peer_id == address.peer
            await dial.close()

    asyncio.run(main())


def test_where_an_initial_peer_was_reached_others_are_dialled_too() -> None:
    async def main() -> None:
        async with server(Identity.generate()) as initial, server(Identity.generate()) as other:
            impostor = PeerAddress(Identity.generate().peer_id, initial.target)
            dial = Dialer(named=[initial, impostor])
            with pytest.raises(AddressRefused):
                await ping(dial.stub(other), other, 10)
            with pytest.raises(AuthenticationError):
                await ping(dial.stub(impostor), impostor, 10)
            with pytest.raises(AddressRefused):
                await ping(dial.stub(other), other, 10)
            await ping(dial.stub(initial), initial, 10)
            await ping(dial.stub(other), other, 10)
            await dial.close()

    asyncio.run(main())


def test_peers_of_an_earlier_run_count_where_the_operator_named_their_range() -> None:
    named = [PeerAddress(Identity.generate().peer_id, "192.168.1.5:31337")]
    met = [HostPort("192.168.1.9", 1), HostPort("10.0.0.1", 1), HostPort("peer.example.org", 1)]

    async def main() -> None:
        dial = Dialer(named=named)
        dial.known_at(met)
        assert await dial.addresses(HostPort("192.168.7.7", 1))
        with pytest.raises(AddressRefused):
            await dial.addresses(HostPort("10.0.0.1", 1))

    asyncio.run(main())


@pytest.mark.parametrize("host", ["", "a b", "host:1", "unix:/tmp/x", "[::1", "1.2.3.4/8"])
def test_what_is_no_host_is_not_listened_on(host: str) -> None:
    with pytest.raises(UsageError, match="is not a host"):
        asyncio.run(serve(Identity.generate(), Handlers(_unused, _unused, _unused, _unused), host, 0))
