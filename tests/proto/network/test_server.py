"""Calls of strangers that say what gRPC never would: they end, and the server takes the next ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from blockswarm.proto.errors import SessionLost
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.options import PortLimits, server_options
from blockswarm.proto.network.server import new_server, until_ended
from blockswarm.proto.network.stub import SERVICE
from blockswarm.proto.network.transport import Dialer, Handlers, ping, serve
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply, PingRequest
from blockswarm.proto.wire.messages.opening import Signed
from blockswarm.proto.wire.messages.relay import ReachRequest
from support.raw_http2 import raw_http2_call

SECONDS = 30.0
PING = f"/{SERVICE}/Ping".encode()


async def unused(*args: Any) -> Any:
    raise AssertionError("not called in this test")


@asynccontextmanager
async def peer() -> AsyncIterator[PeerAddress]:
    identity = Identity.generate()

    async def pong(request: PingRequest) -> PingReply:
        return PingReply(clock=time.time(), peer_id=identity.peer_id, protocol=PROTOCOL_VERSION)

    server, port = await serve(identity, Handlers(unused, unused, unused, pong), "127.0.0.1", 0)
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
                with pytest.raises(SessionLost, match=str(address)):
                    await dialer.stub(address).reach(ReachRequest(Signed(), 1), SECONDS)
            await ping(dialer.stub(address), address, SECONDS)
        await dialer.close()

    asyncio.run(main())


def test_the_end_of_a_server_is_told_and_waiting_for_it_can_be_given_up() -> None:
    async def main() -> None:
        server, _ = await serve(Identity.generate(), Handlers(unused, unused, unused, unused), "127.0.0.1", 0)
        given_up, waiting = (asyncio.create_task(until_ended(server)) for _ in range(2))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert given_up.cancelled()
        assert not waiting.done()
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
            await until_ended(server)

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
