"""The network that a request counts for, over real sockets: a proxy on this machine says whom it asks for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
import uvicorn
from blockswarm.client.web.callers import network_of_caller
from blockswarm.client.web.listening import listening_socket, server_config


async def told(scope: Any, receive: Any, send: Any) -> None:
    body = network_of_caller(scope).encode()
    headers = [(b"connection", b"close"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize(
    ("header", "network"),
    [
        ("", "127.0.0.1"),
        ("X-Forwarded-For: 8.8.8.8\r\n", "8.8.8.0/24"),
        ("X-Forwarded-For: 9.9.9.9, 8.8.8.8\r\n", "8.8.8.0/24"),  # the first is what the client said itself
        ("X-Forwarded-For: 2606:4700:1:2::3\r\n", "2606:4700:1::/48"),
        ("X-Forwarded-For: nobody\r\n", "names"),
    ],
)
def test_a_request_counts_for_the_network_of_its_client(
    header: str, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)

    async def scenario() -> bytes:
        with listening_socket("127.0.0.1", 0) as listening:
            server = uvicorn.Server(server_config(told, head_seconds=60, stop_seconds=1))
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
                writer.write(f"GET / HTTP/1.1\r\nhost: localhost\r\n{header}\r\n".encode())
                answer = await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            server.should_exit = True
            await serving
            return answer

    assert asyncio.run(scenario()).partition(b"\r\n\r\n")[2].decode() == network


def test_a_request_without_an_address_counts_for_one_network() -> None:
    assert network_of_caller({"client": None}) == network_of_caller({})
