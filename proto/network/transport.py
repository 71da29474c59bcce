"""Authenticated channels between nodes: gRPC over TLS that is pinned to the peer id.

The server presents a short-lived leaf signed by its identity; the dialler trusts only a root that it makes from the
peer id it wants, so no certificate authority exists and a stolen address is worth nothing.  A dialler proves its own
id in the first message of a stream (`handshake.py`).

Everything runs in the one asyncio loop of the process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from ..errors import PeerUnavailable, SwarmError, UsageError, to_wire
from ..identity import Identity, LeafRenewer, TlsLeaf, synthetic_root_pem, tls_name
from ..wire.handshake import PROTOCOL_VERSION, check_protocol
from ..wire.messages.calls import (
    LOOKUP_REPLY,
    LOOKUP_REQUEST,
    PING_REPLY,
    PING_REQUEST,
    LookupReply,
    LookupRequest,
    PingReply,
    PingRequest,
)
from ..wire.messages.codec import Codec
from ..wire.messages.limits import MAX_FRAME_BYTES
from ..wire.messages.streams import (
    CLIENT_FRAME,
    PEER_FRAME,
    PUSH_FRAME,
    PUSH_REPLY,
    ClientFrame,
    PeerFrame,
    PushFrame,
    PushReply,
)
from ..wire.timing import KEEPALIVE_ANSWER_SECONDS, KEEPALIVE_SECONDS, MIN_KEEPALIVE_SECONDS
from .address import HostPort, Reach, RelayedAddress
from .streams import (
    ERROR_CODE_KEY,
    CalledStream,
    DialedStream,
    ServedStream,
    Stream,
    StreamEnded,
    decoded,
    translated_grpc_errors,
)

logger = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")

SERVICE = "blockswarm.v1.Peer"
MAX_CHANNELS = 1024
MAX_REPLACED_CHANNELS = 8
"""Replaced connections that may still carry calls."""

# What one stream may have sent before it is read. gRPC would let the window grow with the measured bandwidth times the
# round trip, which is large where a busy node answers late: many streams could fill its memory.
STREAM_WINDOW_BYTES = 1 << 20

_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_ANSWER_SECONDS * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A dead peer is noticed and replaced by the session; gRPC should not wait long before it dials again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
]
_SERVER_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_ANSWER_SECONDS * 1000)),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", int(MIN_KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.so_reuseport", 0),
]


@dataclass(frozen=True)
class Handlers:
    """The four calls that a node serves; errors of the two with one answer reach the caller, others are a defect."""

    session: Callable[[Stream[ClientFrame, PeerFrame]], Awaitable[None]]
    """Serves one client's stream until it returns."""
    push: Callable[[Stream[PushFrame, PushReply]], Awaitable[None]]
    lookup: Callable[[LookupRequest], Awaitable[LookupReply]]
    ping: Callable[[PingRequest], Awaitable[PingReply]]


async def serve(
    identity: Identity, handlers: Handlers, host: str, port: int, clock: Callable[[], float] = time.time
) -> tuple[grpc.aio.Server, int]:
    """Start a server on `host:port` (port 0: any free one); the server and its port.

    Raises UsageError if that is no host and port, or if it cannot be bound.
    """
    target = HostPort.of(host, port)
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _method_handlers(handlers)),))
    try:
        bound = server.add_secure_port(str(target), _server_credentials(identity, clock))
    except RuntimeError:
        bound = 0
    if not bound:
        raise UsageError(
            f"cannot listen on {target}",
            hint="Another program may use that port: choose another one with --port, or 0 for any free one.",
        )
    await server.start()
    return server, bound


def _method_handlers(handlers: Handlers) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """gRPC only moves bytes: what they mean is read where an error in it can be told to the one who sent them."""
    return {
        "Session": grpc.stream_stream_rpc_method_handler(_served(handlers.session, CLIENT_FRAME, PEER_FRAME)),
        "Push": grpc.stream_stream_rpc_method_handler(_served(handlers.push, PUSH_FRAME, PUSH_REPLY)),
        "Lookup": grpc.unary_unary_rpc_method_handler(_answered(handlers.lookup, LOOKUP_REQUEST, LOOKUP_REPLY)),
        "Ping": grpc.unary_unary_rpc_method_handler(_answered(handlers.ping, PING_REQUEST, PING_REPLY)),
    }


def _served(
    handler: Callable[[Stream[In, Out]], Awaitable[None]], heard: Codec[In], said: Codec[Out]
) -> Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[None]]:
    async def serve_stream(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            stream: ServedStream[In, Out] = ServedStream(context, heard, said)
            await handler(stream)
        except StreamEnded as error:
            logger.debug("nobody is there to hear more: %s", error)

    return serve_stream


def _answered(
    handler: Callable[[In], Awaitable[Out]], question: Codec[In], answer: Codec[Out]
) -> Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]:
    async def serve_call(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            return answer.encode(await handler(question.decode(data)))
        except SwarmError as error:
            code, text = to_wire(error)
            await context.abort(grpc.StatusCode.ABORTED, text, trailing_metadata=((ERROR_CODE_KEY, str(code)),))
            raise AssertionError("abort raises") from error

    return serve_call


def _server_credentials(identity: Identity, clock: Callable[[], float]) -> grpc.ServerCredentials:
    renewer = LeafRenewer(identity, clock)

    def configuration(leaf: TlsLeaf) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(leaf.private_key_pem, leaf.certificate_chain_pem)])

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        leaf = renewer.renew_if_due()
        return configuration(leaf) if leaf is not None else None

    return grpc.dynamic_ssl_server_credentials(configuration(renewer.leaf()), fetch)


class PeerStub:
    """The calls that one peer answers, over one channel. What they raise is a SwarmError that names the peer."""

    def __init__(self, channel: grpc.aio.Channel, peer: str) -> None:
        self.channel = channel
        self._peer = peer

    def session(self) -> DialedStream[PeerFrame, ClientFrame]:
        return CalledStream(self.channel.stream_stream(f"/{SERVICE}/Session")(), self._peer, PEER_FRAME, CLIENT_FRAME)

    def push(self) -> DialedStream[PushReply, PushFrame]:
        return CalledStream(self.channel.stream_stream(f"/{SERVICE}/Push")(), self._peer, PUSH_REPLY, PUSH_FRAME)

    async def lookup(self, request: LookupRequest, timeout_seconds: float) -> LookupReply:
        return await self._ask("Lookup", LOOKUP_REQUEST.encode(request), LOOKUP_REPLY, timeout_seconds)

    async def ping(self, request: PingRequest, timeout_seconds: float) -> PingReply:
        return await self._ask("Ping", PING_REQUEST.encode(request), PING_REPLY, timeout_seconds)

    async def _ask(self, method: str, question: bytes, answer: Codec[In], timeout_seconds: float) -> In:
        with translated_grpc_errors(self._peer):
            data = await self.channel.unary_unary(f"/{SERVICE}/{method}")(question, timeout=timeout_seconds)
        return decoded(answer, data, self._peer)


class Dialer:
    """Keeps one channel per peer address; the least recently used is closed when there are too many."""

    def __init__(self, clock: Callable[[], float] = time.time, max_channels: int = MAX_CHANNELS) -> None:
        self._clock = clock
        self._max_channels = max_channels
        self._stubs: dict[Reach, PeerStub] = {}
        self._replaced: list[PeerStub] = []
        self._closing: set[asyncio.Task[None]] = set()

    def stub(self, reach: Reach) -> PeerStub:
        """The calls of the peer that is reached so; connects in the background.

        Raises AuthenticationError for a bad id, PeerUnavailable where a relay would be needed.
        """
        stub = self._stubs.pop(reach, None) or self._dial(reach)
        self._stubs[reach] = stub
        while len(self._stubs) > self._max_channels:
            self._close(self._stubs.pop(next(iter(self._stubs))))
        return stub

    def renew(self, address: Reach) -> None:
        """Dial anew at the next call: after an outage a new connection is there sooner than an old one recovers.

        Calls that run on the old connection go on; it is closed when several others have been replaced after it.
        """
        stub = self._stubs.pop(address, None)
        if stub is not None:
            self._replaced.append(stub)
        while len(self._replaced) > MAX_REPLACED_CHANNELS:
            self._close(self._replaced.pop(0))

    @asynccontextmanager
    async def dialed_once(self, address: Reach) -> AsyncIterator[PeerStub]:
        """The calls of the peer at `address` over a connection of its own. Raises AuthenticationError for a bad id."""
        stub = self._dial(address)
        try:
            yield stub
        finally:
            await stub.channel.close(grace=None)

    def _dial(self, address: Reach) -> PeerStub:
        if isinstance(address, RelayedAddress):
            raise PeerUnavailable(
                f"{address} cannot be reached: relays are not supported by this version",
                hint="Use a peer with an address of its own, or have this one announce a forwarded port.",
            )
        credentials = grpc.ssl_channel_credentials(synthetic_root_pem(address.peer, self._clock()))
        options = [
            *_CHANNEL_OPTIONS,
            ("grpc.ssl_target_name_override", tls_name(address.peer)),
            # Peers that share a host must not share a connection: the pin is part of the channel's identity.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return PeerStub(grpc.aio.secure_channel(address.target, credentials, options=options), str(address))

    def _close(self, stub: PeerStub) -> None:
        task = asyncio.create_task(stub.channel.close(grace=None), name="close a channel")
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._closing.discard(task)  # one that failed stays for `close` to tell of it

    async def close(self) -> None:
        """Close every channel; calls in flight are cancelled.

        Waits for all of them, also for those that were closed to make room; then raises the first failure, if any.
        """
        for stub in (*self._stubs.values(), *self._replaced):
            self._close(stub)
        self._stubs, self._replaced = {}, []
        closing = list(self._closing)
        self._closing.clear()
        results = await asyncio.gather(*closing, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


async def ping(stub: PeerStub, address: Reach, timeout_seconds: float) -> tuple[PingReply, float, float]:
    """Ping once: the reply, the round trip in seconds, and the peer's clock minus ours.

    Raises SwarmError; WrongSwarm if the peer speaks another version of the protocol.
    """
    sent_at, started = time.time(), time.perf_counter()
    reply = await stub.ping(PingRequest(PROTOCOL_VERSION), timeout_seconds)
    rtt_seconds = time.perf_counter() - started
    check_protocol(reply.protocol)
    return reply, rtt_seconds, reply.clock - (sent_at + rtt_seconds / 2)
