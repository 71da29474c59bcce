"""A peer and a client that speak HTTP/2 themselves: they can say what gRPC never would."""

from __future__ import annotations

import asyncio
import ssl
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK, END_STREAM, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONTENT = [(":status", "200"), ("content-type", "application/grpc")]

Answer = Callable[[int], bytes]
"""The bytes to be sent when a call has begun on the stream of this number."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(stream: int, fields: Sequence[tuple[str, str]], ends: bool = False) -> bytes:
    """Names and values of at most 126 bytes, none of them compressed."""
    block = b""
    for field in fields:
        texts = [text.encode("latin-1") for text in field]
        block += b"\0" + b"".join(bytes([len(text)]) + text for text in texts)
    return frame(HEADERS, END_HEADERS | (END_STREAM if ends else 0), stream, block)


def message(stream: int, content: bytes = b"", flag: int = 0) -> bytes:
    """One message of gRPC; flag 1: it is said to be compressed."""
    return frame(DATA, 0, stream, bytes([flag]) + struct.pack(">I", len(content)) + content)


@asynccontextmanager
async def raw_http2_peer(answer: Answer, identity: Identity | None = None) -> AsyncIterator[PeerAddress]:
    """The address of a peer, of that identity or any, that answers every call like that."""
    identity = identity or Identity.generate()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _converse(reader, writer, answer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=_server_context(identity))
    try:
        yield PeerAddress(identity.peer_id, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()


def _server_context(identity: Identity) -> ssl.SSLContext:
    leaf = identity.tls_leaf(time.time())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(leaf.private_key_pem + leaf.certificate_chain_pem)
        file.flush()
        context.load_cert_chain(file.name)
    context.set_alpn_protocols(["h2"])
    return context


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
    await reader.readexactly(len(PREFACE))
    writer.write(frame(SETTINGS, 0, 0))
    while True:
        head = await reader.readexactly(9)
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if kind == SETTINGS and not flags & ACK:
            writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            writer.write(frame(PING, ACK, 0, payload))
        elif kind == HEADERS:
            writer.write(answer(stream))
            await writer.drain()


async def raw_http2_call(address: PeerAddress, path: bytes, fields: Sequence[tuple[str, str]] = ()) -> int:
    """Make one call, with an empty message and these fields beside gRPC's own; the kind of the frame that ends it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        own = [(":method", "POST"), (":scheme", "https"), (":authority", "peer"), (":path", path.decode("latin-1"))]
        own += [("content-type", "application/grpc"), ("te", "trailers"), *fields]
        writer.write(PREFACE + frame(SETTINGS, 0, 0) + headers(1, own))
        writer.write(message(1) + frame(DATA, END_STREAM, 1))
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] in (RST_STREAM, GOAWAY) or (head[3] == HEADERS and head[4] & END_STREAM):
                return head[3]
    finally:
        writer.close()
