"""Calls to the daemon end, whatever it answers, and say so in one class of error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.proto.directory.hivemind.control import addresses_of, connect, connections, identify
from blockswarm.proto.directory.hivemind.shim import Multiaddr, PeerID, p2pd_pb2, read_pbmsg_safe
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity

OWN, OTHER, THIRD = (PeerID.from_base58(Identity.generate().peer_id) for _ in range(3))
GOOD = "/ip4/192.0.2.1/tcp/31337"
MADDRS = [bytes.fromhex("04c0000201910207a1d103"), Multiaddr(GOOD).to_bytes(), b"\x35\x06my_box"]
"""One of a protocol that hivemind does not know, a good one, a name that it does not print."""
SECONDS = 0.5


@asynccontextmanager
async def daemon_that_says(answer: bytes | None, folder: Path) -> AsyncIterator[Any]:
    """A daemon that answers every request so, or not at all; in the form in which the product knows it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_pbmsg_safe(reader, p2pd_pb2.Request())
        if answer is not None:
            writer.write(answer)
            writer.close()
        else:
            await reader.read()

    path = folder / "daemon.sock"
    async with await asyncio.start_unix_server(serve, path):
        connector = SimpleNamespace(open_connection=lambda: asyncio.open_unix_connection(path))
        yield SimpleNamespace(_client=SimpleNamespace(control=SimpleNamespace(daemon_connector=connector)))


def framed(response: Any) -> bytes:
    data: bytes = response.SerializeToString()
    assert len(data) < 1 << 14
    return bytes([len(data) & 0x7F | 0x80, len(data) >> 7]) + data


def ask(call: Callable[[Any], Awaitable[Any]], answer: bytes | None, folder: Path) -> Any:
    async def scenario() -> Any:
        async with daemon_that_says(answer, folder) as p2p, asyncio.timeout(60):
            return await call(p2p)

    return asyncio.run(scenario())


def test_an_address_that_cannot_be_printed_hides_no_other(tmp_path: Path) -> None:
    """One connected node with such an address made every store of a record fail."""
    response = p2pd_pb2.Response(type=p2pd_pb2.Response.OK)
    response.identify.id, response.dht.peer.id = OWN.to_bytes(), OTHER.to_bytes()
    response.identify.addrs.extend(MADDRS)
    response.dht.type = p2pd_pb2.DHTResponse.VALUE
    response.dht.peer.addrs.extend(MADDRS)
    for node, maddr in ((OTHER, MADDRS[0]), (THIRD, MADDRS[1])):
        response.peers.add(id=node.to_bytes(), addrs=[maddr])
    response.peers.add(id=OWN.to_bytes())
    answer = framed(response)
    assert ask(lambda p2p: identify(p2p, SECONDS), answer, tmp_path) == (f"{GOOD}/p2p/{OWN}",)
    assert ask(lambda p2p: addresses_of(p2p, OTHER, SECONDS), answer, tmp_path) == (f"{GOOD}/p2p/{OTHER}",)
    assert ask(lambda p2p: connections(p2p, SECONDS), answer, tmp_path) == {str(THIRD): GOOD}


BAD_ANSWERS = {
    "no message": b"\x04\xff\xff\xff\xff",
    "a length without end": b"\xff" * 20,
    "less than it says": b"\x10abc",
    "nothing": b"",
    "silence": None,
    "an error": framed(p2pd_pb2.Response(type=p2pd_pb2.Response.ERROR, error=p2pd_pb2.ErrorResponse(msg="no"))),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_of_the_daemon_is_one_class_of_error(tmp_path: Path, answer: bytes | None) -> None:
    with pytest.raises(PeerUnavailable):
        ask(lambda p2p: connect(p2p, OTHER, [GOOD], SECONDS), answer, tmp_path)
