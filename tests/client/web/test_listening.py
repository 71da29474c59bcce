"""Ports that cannot be had are told, and clients that never say what they want are dropped."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
import uvicorn
from blockswarm.client.web.listening import drop_idle_readers, listening_socket, root_address, server_config
from blockswarm.proto.errors import UsageError
from starlette.responses import PlainTextResponse

WHOLE = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def test_a_port_in_use_and_a_host_that_is_none_are_told() -> None:
    with listening_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert root_address(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError) as refused:
            listening_socket("127.0.0.1", port)
        assert str(refused.value) == f"cannot listen at 127.0.0.1:{port}: Address already in use"
    with pytest.raises(UsageError):
        listening_socket("256.0.0.1", 0)


def test_connections_send_small_pieces_at_once() -> None:
    """Each answer, and each token of a stream, would else wait for the client's delayed acknowledgement."""
    with (
        listening_socket("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux ends them in the kernel")
def test_connections_inherit_the_time_for_readers_that_take_nothing() -> None:
    with listening_socket("127.0.0.1", 0) as listening:
        drop_idle_readers(listening, 1.5)
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


@pytest.mark.parametrize(("head", "after_an_answer"), [(b"", False), (b"GET / HTTP", False), (b"GET / HTTP", True)])
def test_a_head_that_does_not_come_ends_the_connection(head: bytes, after_an_answer: bool) -> None:
    """The first one, and those that follow on the same connection."""

    async def play() -> None:
        with listening_socket("127.0.0.1", 0) as listening:
            server = uvicorn.Server(server_config(hello, head_seconds=0.2, stop_seconds=1))
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            if after_an_answer:
                writer.write(WHOLE)
                await reader.readuntil(b"hello")
            writer.write(head)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""  # until the server closes
            writer.close()
            server.should_exit = True
            await serving

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await play()

    asyncio.run(bounded())
