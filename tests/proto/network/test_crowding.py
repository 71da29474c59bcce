"""Connections that say nothing: they end soon, are bounded in number, and one address cannot keep the others out."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import HostPort, PeerAddress
from blockswarm.proto.network.crowding import DESCRIPTORS, PortRoom, connections_within, to_end
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.options import MAX_CONNECTIONS, PortLimits
from blockswarm.proto.network.transport import Dialer, Handlers, ping, serve
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply
from hypothesis import given
from hypothesis import strategies as st

seen_descriptors = pytest.mark.skipif(DESCRIPTORS is None, reason="this system does not show the descriptors")


async def _unused(*args: Any) -> Any:
    raise AssertionError("not called in this test")


@asynccontextmanager
async def peer(limits: PortLimits) -> AsyncIterator[PeerAddress]:
    identity = Identity.generate()

    async def answer(_: Any) -> PingReply:
        return PingReply(clock=time.time(), peer_id=identity.peer_id, protocol=PROTOCOL_VERSION)

    running, port = await serve(identity, Handlers(_unused, _unused, _unused, answer), "127.0.0.1", 0, limits=limits)
    try:
        yield PeerAddress(identity.peer_id, f"127.0.0.1:{port}")
    finally:
        await running.stop(grace=0)


def connect(stack: ExitStack, address: PeerAddress, count: int, source: str = "127.0.0.1") -> list[socket.socket]:
    """Connections that say nothing."""
    target = HostPort.parse(address.target)
    made = [socket.create_connection((target.host, target.port), 10, (source, 0)) for _ in range(count)]
    for connection in made:
        stack.enter_context(connection)
        connection.setblocking(False)
    return made


async def open_among(connections: Sequence[socket.socket], wanted: int) -> int:
    """The number of those that are open once it is `wanted` or less, or after a while."""
    loop = asyncio.get_running_loop()
    until = loop.time() + 10
    while (count := sum(map(is_open, connections))) > wanted and loop.time() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return count


def is_open(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.mark.long
def test_connections_that_say_nothing_are_ended_and_new_ones_get_in() -> None:
    """300 of them used up a peer's descriptors, for as long as their sender liked."""

    async def main() -> None:
        with ExitStack() as stack:
            async with peer(PortLimits(most=40, handshake_seconds=1.0)) as address:
                silent = connect(stack, address, 100)
                assert await open_among(silent, 40) <= 40
                dial = Dialer(rule=EVERY_RANGE)
                assert await open_among(silent, 0) == 0
                await ping(dial.stub(address), address, 10)
                await dial.close()

    asyncio.run(main())


@pytest.mark.long
def test_a_connection_without_calls_is_ended_and_the_next_call_dials_anew() -> None:
    async def main() -> None:
        async with peer(PortLimits(idle_seconds=0.5)) as address:
            dial = Dialer(rule=EVERY_RANGE)
            await ping(dial.stub(address), address, 10)
            room = PortRoom(HostPort.parse(address.target).port, 0)
            while room.count():  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0.05)
            await ping(dial.stub(address), address, 10)
            await dial.close()

    asyncio.run(asyncio.wait_for(main(), 120))


@seen_descriptors
@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address on loopback")
def test_where_it_gets_crowded_the_address_that_has_most_gives_back() -> None:
    async def main() -> None:
        with ExitStack() as stack:
            async with peer(PortLimits(most=400)) as address:
                dial = Dialer(rule=EVERY_RANGE)
                await ping(dial.stub(address), address, 10)
                crowd = connect(stack, address, 200)
                few = connect(stack, address, 5, "127.0.0.2")
                room = PortRoom(HostPort.parse(address.target).port, 30)
                while room.count() < 206:  # noqa: ASYNC110 -- not all are accepted yet
                    await asyncio.sleep(0.01)
                assert room.end_excess() == 206 - 30
                assert await open_among(crowd, 24) == 24
                assert await open_among(few, 5) == 5
                await ping(dial.stub(address), address, 10)
                while room.count() > 30:  # noqa: ASYNC110 -- a connection that the client has closed is still there
                    await asyncio.sleep(0.01)
                assert room.end_excess() == 0
                assert dial.open_channels == 1
                await dial.close()

    asyncio.run(asyncio.wait_for(main(), 120))


@seen_descriptors
def test_a_crowd_that_comes_again_and_again_is_a_line_of_the_log_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            async with peer(PortLimits(most=400)) as address:
                room = PortRoom(HostPort.parse(address.target).port, 2)
                keeping = asyncio.create_task(room.keep(0.05))
                for _ in range(5):
                    crowd = connect(stack, address, 10)
                    assert await open_among(crowd, 2) <= 2
                keeping.cancel()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    lines = [line for line in caplog.messages if "too many came from the same addresses" in line]
    assert 1 <= len(lines) < 5, "one for each crowd would be five"


@seen_descriptors
def test_as_long_as_there_is_room_nobody_loses_a_connection() -> None:
    async def main() -> None:
        with ExitStack() as stack:
            async with peer(PortLimits()) as address:
                many = connect(stack, address, 50)
                room = PortRoom(HostPort.parse(address.target).port, 50)
                while room.count() < 50:  # noqa: ASYNC110 -- not all are accepted yet
                    await asyncio.sleep(0.01)
                assert room.end_excess() == 0
                assert all(map(is_open, many))

    asyncio.run(main())


HOSTS = st.sampled_from(["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:1::1"])


@given(st.lists(HOSTS, max_size=60), st.integers(0, 70))
def test_the_networks_that_have_most_lose_their_youngest(hosts: list[str], most: int) -> None:
    connections = [(host, port) for port, host in enumerate(hosts)]
    ended = set(to_end(connections, most))
    assert len(ended) == max(0, len(connections) - most)

    def network(host: str) -> str:
        return {"::ffff:192.0.2.2": "192.0.2.2", "2001:db8::2": "2001:db8::1"}.get(host, host)

    kept = Counter(network(host) for host, port in connections if (host, port) not in ended)
    lost = Counter(network(host) for host, _ in ended)
    for loser in lost:
        assert all(kept[loser] + 1 >= kept[other] for other in kept)
        ages = [(port, (host, port) in ended) for host, port in connections if network(host) == loser]
        assert [is_ended for _, is_ended in sorted(ages)] == sorted(is_ended for _, is_ended in ages)


def test_half_of_the_descriptors_are_for_other_things() -> None:
    assert connections_within(1024) == 512
    assert connections_within(1 << 20) == MAX_CONNECTIONS
    assert connections_within(1) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_low_limit_on_descriptors_is_raised_to_what_the_system_allows() -> None:
    program = (
        "import resource as r; soft, hard = r.getrlimit(r.RLIMIT_NOFILE); r.setrlimit(r.RLIMIT_NOFILE, (200, hard));"
        "from blockswarm.proto.network.crowding import descriptor_limit, raise_descriptor_limit;"
        "before = descriptor_limit(); raise_descriptor_limit(); print(before, hard <= 200 or descriptor_limit() > 200)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "200 True\n"


def test_a_refused_connection_is_a_peer_that_is_not_there() -> None:
    async def main() -> None:
        with ExitStack() as stack:
            async with peer(PortLimits(most=1)) as address:
                (only,) = connect(stack, address, 1)
                assert is_open(only)
                dial = Dialer(rule=EVERY_RANGE)
                with pytest.raises(PeerUnavailable):
                    await ping(dial.stub(address), address, 10)
                await dial.close()

    asyncio.run(main())
