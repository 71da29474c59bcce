"""Calls of strangers that say what gRPC never would: they end, and the server takes the next ones."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import reduce
from typing import Any

import grpc
import pytest
from blockswarm.proto.errors import PeerUnavailable, RemoteProtocolError
from blockswarm.proto.identity import Identity, synthetic_root_pem, tls_name
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.options import PortLimits, server_options
from blockswarm.proto.network.server import ENOUGH_REFUSALS, MOST_ANSWERS, new_server, refusals_after, until_ended
from blockswarm.proto.network.stub import RELAY_SERVICE, SERVICE
from blockswarm.proto.network.transport import Dialer, Handlers, RelayHandlers, ping, serve
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply, PingRequest
from blockswarm.proto.wire.messages.opening import Signed
from blockswarm.proto.wire.messages.relay import ReachRequest
from support.raw_http2 import raw_http2_call

SECONDS = 60.0
PING = f"/{SERVICE}/Ping".encode()


async def unused(*args: Any) -> Any:
    raise AssertionError("not called in this test")


@asynccontextmanager
async def peer(relay: RelayHandlers | None = None) -> AsyncIterator[PeerAddress]:
    identity = Identity.generate()

    async def pong(request: PingRequest) -> PingReply:
        return PingReply(clock=time.time(), peer_id=identity.peer_id, protocol=PROTOCOL_VERSION)

    server, port = await serve(identity, Handlers(unused, unused, unused, pong, relay=relay), "127.0.0.1", 0)
    try:
        yield PeerAddress(identity.peer_id, f"127.0.0.1:{port}")
    finally:
        await server.stop(grace=0)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (b"/\xff\xfe/x", ()),
        (b"\xff", ()),
        (b"", ()),
        (b"/", ()),
        (f"/{SERVICE}/Ping\xff".encode("latin-1"), ()),
        (f"/{SERVICE}/Nothing".encode(), ()),
        (PING, [("name", "\xff\xfe")]),
        (PING, [("name-bin", "!!")]),
        (PING, [("grpc-timeout", "-5S")]),
        (PING, [("grpc-timeout", "99999999H")]),
        (PING, [("grpc-encoding", "zzz")]),
        (PING, [("grpc-previous-rpc-attempts", "9" * 30)]),
        (PING, [(f"name-{number}", "x" * 100) for number in range(99)]),
    ],
)
def test_whatever_a_stranger_calls_the_next_call_is_answered(path: bytes, fields: list[tuple[str, str]]) -> None:
    """A name that is no UTF-8 ended gRPC's server, and no peer noticed."""

    async def main() -> None:
        dialer = Dialer(rule=EVERY_RANGE)
        async with asyncio.timeout(SECONDS), peer() as address:
            for _ in range(2):
                await raw_http2_call(address, path, fields)
                await ping(dialer.stub(address), address, SECONDS)
                dialer.renew(address)
            await dialer.close()

    asyncio.run(main())


def test_a_call_that_is_not_served_ends_at_once() -> None:
    async def main() -> None:
        dialer = Dialer(rule=EVERY_RANGE)
        async with peer() as address:
            for _ in range(3):
                with pytest.raises(RemoteProtocolError, match=f"{address}.*no such method"):
                    await dialer.stub(address).reach(ReachRequest(Signed(), 1), SECONDS)
            await ping(dialer.stub(address), address, SECONDS)
        await dialer.close()

    asyncio.run(main())


@asynccontextmanager
async def raw_channel(address: PeerAddress) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that makes any call, as programs of other versions do."""
    credentials = grpc.ssl_channel_credentials(synthetic_root_pem(address.peer, time.time()))
    options = [("grpc.ssl_target_name_override", tls_name(address.peer))]
    async with grpc.aio.secure_channel(address.target, credentials, options) as channel:
        yield channel


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ends, to which nothing is said that anybody could wait for."""
    return await call.code(), await call.details()


UNKNOWN = [f"/{SERVICE}/Nothing", f"/{RELAY_SERVICE}/Nothing", "/another.v2.Peer/Ping", "/", f"/{SERVICE}/ping"]


@pytest.mark.parametrize("relay", [None, RelayHandlers(unused, unused, unused)], ids=["peer", "relay"])
def test_a_method_that_is_not_there_is_said_to_be_unimplemented(relay: RelayHandlers | None) -> None:
    """Programs of another version ask, and may do without; a call that was cancelled they would make again."""
    unserved = UNKNOWN if relay is not None else [*UNKNOWN, f"/{RELAY_SERVICE}/Reserve"]

    async def main() -> None:
        async with asyncio.timeout(SECONDS), peer(relay) as address, raw_channel(address) as channel:
            for method in unserved:
                asked = channel.unary_unary(method)(b"x"), channel.unary_stream(method)(b"x")
                for call in (*asked, channel.stream_stream(method)()):
                    assert await status_of(call) == (grpc.StatusCode.UNIMPLEMENTED, "there is no such method")

    asyncio.run(main())


def test_many_calls_of_methods_that_are_not_there_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    """Some of very many are cancelled, or refused by HTTP/2, instead of being told."""

    async def main() -> None:
        dialer = Dialer(rule=EVERY_RANGE)
        async with asyncio.timeout(SECONDS), peer() as address, raw_channel(address) as channel:
            await ping(dialer.stub(address), address, SECONDS)
            threads = threading.active_count()
            calls = [channel.unary_unary(f"/stranger/{number}")(b"x" * 1000) for number in range(1500)]
            told = Counter([(await status_of(call))[0] for call in calls])
            assert told[grpc.StatusCode.UNIMPLEMENTED]
            assert set(told) <= set(ENDS_OF_A_FLOOD)
            await ping(dialer.stub(address), address, SECONDS)
            answering = [task for task in asyncio.all_tasks() if task.get_name() == "refuse a call of no method"]
            assert len(answering) <= MOST_ANSWERS
            await asyncio.gather(*answering)
            assert threading.active_count() <= threads
        await dialer.close()

    asyncio.run(main())
    assert not caplog.records


ENDS_OF_A_FLOOD = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_a_caller_that_has_gone_before_it_was_told_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        dialer = Dialer(rule=EVERY_RANGE)
        async with asyncio.timeout(SECONDS), peer() as address:
            for _ in range(20):
                async with raw_channel(address) as channel:
                    await channel.channel_ready()
                    gone = [channel.stream_stream(f"/stranger/{number}")() for number in range(20)]
                    await asyncio.sleep(0)
                    for call in gone:
                        call.cancel()
            await ping(dialer.stub(address), address, SECONDS)
        await dialer.close()

    asyncio.run(main())
    assert not caplog.records


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::]"])
def test_the_end_of_a_server_is_told_and_waiting_for_it_can_be_given_up(host: str) -> None:
    async def main() -> None:
        server, port = await serve(Identity.generate(), Handlers(unused, unused, unused, unused), host, 0)
        given_up, waiting = (asyncio.create_task(until_ended(server, host, port, 0.01)) for _ in range(2))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert given_up.cancelled()
        assert not waiting.done()
        await server.stop(grace=0)
        async with asyncio.timeout(SECONDS):
            await waiting

    asyncio.run(main())


def test_a_port_that_takes_no_more_connections_is_told() -> None:
    """The port is one of the test's own, which sees by that it is tried; see also tests/swarm/test_server_end.py."""

    async def main() -> None:
        server, _ = await serve(Identity.generate(), Handlers(unused, unused, unused, unused), "127.0.0.1", 0)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            port = listening.getsockname()[1]
            waiting = asyncio.create_task(until_ended(server, "127.0.0.1", port, 0.01))
            for _ in range(2):  # the second look comes when the first is over
                async with asyncio.timeout(SECONDS):
                    looked, _ = await asyncio.get_running_loop().sock_accept(listening)
                looked.close()
            assert not waiting.done()
        with pytest.raises(PeerUnavailable, match=f"port {port} are refused"):
            async with asyncio.timeout(SECONDS):
                await waiting
        await server.stop(grace=0)

    asyncio.run(main())


def test_a_port_that_was_never_open_from_here_says_nothing_of_a_server() -> None:
    """A wall may be in between; the server's own end is told all the same."""

    async def main() -> None:
        server, _ = await serve(Identity.generate(), Handlers(unused, unused, unused, unused), "127.0.0.1", 0)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        waiting = asyncio.create_task(until_ended(server, "127.0.0.1", port, 0.001))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not waiting.done()
        await server.stop(grace=0)
        async with asyncio.timeout(SECONDS):
            await waiting

    asyncio.run(main())


@pytest.mark.parametrize(
    ("looks", "closed"),
    [
        ((True, False, False), True),
        ((True, False, None, False), True),
        ((True, False), False),
        ((True, False, True, False, True), False),
        ((True, None, None, None), False),
        ((None, False, False, False), False),
    ],
)
def test_one_refusal_ends_no_peer(looks: Sequence[bool | None], closed: bool) -> None:
    """A firewall that is loaded anew may refuse for a moment."""
    refusals = reduce(refusals_after, looks, None)
    assert (refusals is not None and refusals >= ENOUGH_REFUSALS) == closed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_the_port_is_tried_from_its_own_address() -> None:
    """If this machine loses the address, another one may get it, and its refusal would end a healthy peer."""

    async def main() -> None:
        server, _ = await serve(Identity.generate(), Handlers(unused, unused, unused, unused), "127.0.0.1", 0)
        with socket.create_server(("127.0.0.2", 0)) as listening:
            listening.setblocking(False)
            waiting = asyncio.create_task(until_ended(server, "127.0.0.2", listening.getsockname()[1], 0.01))
            async with asyncio.timeout(SECONDS):
                looked, address = await asyncio.get_running_loop().sock_accept(listening)
            looked.close()
            assert address[0] == "127.0.0.2"
            await server.stop(grace=0)
            async with asyncio.timeout(SECONDS):
                await waiting

    asyncio.run(main())


@pytest.mark.parametrize("error", [ImportError, AttributeError, TypeError])
def test_with_a_grpc_of_other_inner_parts_its_own_server_is_used_and_it_is_said(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def make(options: object) -> Any:
        raise error("no such part")

    async def main() -> None:
        server = new_server(server_options(PortLimits()), make)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        assert port
        await server.stop(grace=0)
        async with asyncio.timeout(SECONDS):
            await until_ended(server, "127.0.0.1", port)

    asyncio.run(main())
    assert "grpcio" in caplog.text


def test_the_grpc_that_is_installed_has_the_inner_parts(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await new_server(server_options(PortLimits())).stop(grace=0)

    asyncio.run(main())
    assert not caplog.text


def test_what_strangers_do_to_grpc_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """A caller that is gone before its call has ended is no error of a peer, and a traceback each time fills a disk."""

    async def main() -> None:
        await new_server(server_options(PortLimits())).stop(grace=0)

    asyncio.run(main())
    foreign = logging.getLogger("grpc._cython.cygrpc")
    for words in ("Invalid encoding on %s", "ExecuteBatchError raised in core by servicer method [%s]"):
        foreign.error(words, b"a stranger's", exc_info=ValueError("a traceback"))
    foreign.error("Unexpected [%s] raised", "KeyError")
    assert caplog.messages == ["Unexpected [KeyError] raised"]
