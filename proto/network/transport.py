"""Authenticated channels between nodes: gRPC over TLS that is pinned to the peer id.

The server presents a short-lived leaf signed by its identity; the dialler trusts only a root that it synthesises from
the peer id it wants to reach.  So there is no certificate authority, and taking over an address gains nothing.  A
dialler proves its own id in the first message of a stream (`handshake.py`).

Everything runs in the one asyncio loop of the process.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import grpc

from ...routing.swarm import PeerId
from ..errors import SessionLost, UsageError
from ..identity import Identity, LeafRenewer, TlsLeaf, public_key_of, synthetic_root_pem, tls_name
from ..wire.handshake import PROTOCOL_VERSION, SESSION_ID_BYTES, SwarmKeyProof, check_protocol, sign_hello
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
from ..wire.messages.opening import Signed
from ..wire.messages.relay import (
    REACH_REPLY,
    REACH_REQUEST,
    RESERVE,
    RESERVE_REPLY,
    TUNNEL_CALL,
    TUNNEL_REPLY,
    ConnectFrame,
    ReachReply,
    ReachRequest,
    ReserveFrame,
    ReserveReply,
    TunnelCall,
    TunnelReply,
)
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
from .address import HostPort, PeerAddress, Reach, RelayedAddress
from .crowding import connections_within, descriptor_limit
from .dialling import DialRule, IpAddress, grpc_target, literal, range_of
from .line import Connection, Line
from .options import CHANNEL_OPTIONS, PortLimits, server_options
from .resolver import Lookup, Resolver
from .server import Server, new_server
from .streams import QuestionTime, Stream, answered_call, served_call
from .stub import RELAY_SERVICE, SERVICE, PeerStub
from .tunnel import LocalEnd, TunnelStream

logger = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")

MAX_CHANNELS = 1024


@dataclass(frozen=True)
class RelayHandlers:
    """The calls served by a node that relays for others."""

    reserve: Callable[[Stream[ReserveFrame, ReserveReply], str], Awaitable[None]]
    """Also receives the caller's host as seen here."""
    connect: Callable[[Stream[TunnelCall, TunnelReply], str], Awaitable[None]]
    """Also receives the caller's host as seen here."""
    accept: Callable[[Stream[TunnelCall, TunnelReply]], Awaitable[None]]


@dataclass(frozen=True)
class Handlers:
    """The calls that a node serves.

    A SwarmError that a unary handler raises reaches the caller; any error from a stream handler is a defect.
    """

    session: Callable[[Stream[ClientFrame, PeerFrame], str], Awaitable[None]]
    """Serves one client's stream until it returns; is told the host that the client is seen at."""
    push: Callable[[Stream[PushFrame, PushReply]], Awaitable[None]]
    lookup: Callable[[LookupRequest, str], Awaitable[LookupReply]]
    """Also receives the caller's host as seen here."""
    ping: Callable[[PingRequest], Awaitable[PingReply]]
    reach: Callable[[ReachRequest, str], Awaitable[ReachReply]] | None = None
    """Also receives the caller's host as seen here; None: the node checks no addresses for others."""
    relay: RelayHandlers | None = None
    question_time: QuestionTime = nullcontext
    """Context in which the server waits for the request of a unary call; it bounds the time and the number of waits."""


async def serve(
    identity: Identity,
    handlers: Handlers,
    host: str,
    port: int,
    clock: Callable[[], float] = time.time,
    limits: PortLimits | None = None,
) -> tuple[Server, int]:
    """Start a server on `host:port` (port 0: any free one); returns the server and its port.

    Raises UsageError if the host or port is invalid or cannot be bound.
    """
    target = HostPort.of(host, port)
    server = new_server(server_options(limits or PortLimits()))
    server.add_registered_method_handlers(SERVICE, _method_handlers(handlers))
    if handlers.relay is not None:
        server.add_registered_method_handlers(RELAY_SERVICE, _relay_handlers(handlers.relay))
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
    """gRPC moves only bytes: messages are decoded where a decoding error can be reported to the sender."""

    def answered(handler: Callable[[In, str], Awaitable[Out]], question: Codec[In], answer: Codec[Out]) -> Any:
        return answered_call(handler, question, answer, handlers.question_time)

    calls = {
        "Session": served_call(handlers.session, CLIENT_FRAME, PEER_FRAME),
        "Push": served_call(lambda stream, _caller: handlers.push(stream), PUSH_FRAME, PUSH_REPLY),
        "Lookup": answered(handlers.lookup, LOOKUP_REQUEST, LOOKUP_REPLY),
        "Ping": answered(lambda request, _caller: handlers.ping(request), PING_REQUEST, PING_REPLY),
    }
    if handlers.reach is not None:
        calls["Reach"] = answered(handlers.reach, REACH_REQUEST, REACH_REPLY)
    return calls


def _relay_handlers(handlers: RelayHandlers) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    return {
        "Reserve": served_call(handlers.reserve, RESERVE, RESERVE_REPLY),
        "Connect": served_call(handlers.connect, TUNNEL_CALL, TUNNEL_REPLY),
        "Accept": served_call(lambda stream, _caller: handlers.accept(stream), TUNNEL_CALL, TUNNEL_REPLY),
    }


def _server_credentials(identity: Identity, clock: Callable[[], float]) -> grpc.ServerCredentials:
    renewer = LeafRenewer(identity, clock)

    def configuration(leaf: TlsLeaf) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(leaf.private_key_pem, leaf.certificate_chain_pem)])

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        leaf = renewer.renew_if_due()
        return configuration(leaf) if leaf is not None else None

    return grpc.dynamic_ssl_server_credentials(configuration(renewer.leaf()), fetch)


def introduction(
    identity: Identity, swarm_key: SwarmKeyProof | None, clock: Callable[[], float] = time.time
) -> Callable[[PeerId], Signed]:
    """Return a function that signs hellos for no particular session."""
    return lambda receiver: sign_hello(identity, receiver, bytes(SESSION_ID_BYTES), clock(), swarm_key)


class Dialer:
    """Keeps one line for each way to reach a peer; dials only addresses that the rule allows or the operator has named.

    If there are too many lines, the least recently used one without a call is closed.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        max_channels: int | None = None,
        rule: DialRule | None = None,
        named: Collection[PeerAddress] = (),
        lookup: Lookup = socket.getaddrinfo,
        introduce: Callable[[PeerId], Signed] | None = None,
    ) -> None:
        """`max_channels`: by default as many as the process has file descriptors for.

        `named`: the initial peers, dialled at any address; an address range in which one was reached is dialled from
        then on, too.

        `lookup` resolves names, as `socket.getaddrinfo` does. `introduce` signs the hello to a relay; by default with
        a temporary identity, and no swarm key.
        """
        self._clock = clock
        self._introduce = introduce or introduction(Identity.generate(), None, clock)
        self._max_channels = max_channels or min(MAX_CHANNELS, connections_within(descriptor_limit()))
        self._rule = rule or DialRule()
        self._named = frozenset(named)
        # Many slow look-ups of strangers' names must not keep the initial peers from being found.
        self._resolver, self._resolver_of_named = Resolver(lookup), Resolver(lookup)
        self._stubs: dict[Reach, tuple[PeerStub, Line]] = {}
        self._lines: WeakSet[Line] = WeakSet()
        """All connections, including those that were given up and are still in use."""
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def rule(self) -> DialRule:
        """The rule for addresses to dial, given the ranges in which the swarm has been found so far."""
        return self._rule

    @property
    def open_channels(self) -> int:
        """The number of channels that are connecting or connected."""
        return sum(line.is_open for line in self._lines)

    def stub(self, reach: Reach) -> PeerStub:
        """The calls of a peer; the first call connects. Only the calls raise, not this method."""
        stub, line = self._stubs.pop(reach) if reach in self._stubs else self._new(reach)
        self._stubs[reach] = stub, line  # the most recently used one
        if len(self._stubs) > self._max_channels:
            idle = next((kept for kept, (_, other) in self._stubs.items() if not other.in_use), reach)
            if idle != reach:
                self.renew(idle)
        return stub

    def renew(self, reach: Reach) -> None:
        """Dial again at the next call: after an outage, a new connection is up sooner than the old one recovers.

        Calls on the old connection continue; the last of them closes it.
        """
        if reach in self._stubs:
            self._stubs.pop(reach)[1].retire()

    @asynccontextmanager
    async def dialed_once(self, reach: Reach) -> AsyncIterator[PeerStub]:
        """The calls of a peer, over a separate connection that is closed afterwards."""
        stub, line = self._new(reach)
        try:
            yield stub
        finally:
            line.close()

    def _new(self, reach: Reach) -> tuple[PeerStub, Line]:
        line = Line(partial(self._connect, reach), self._close)
        self._lines.add(line)
        return PeerStub(line, str(reach)), line

    async def addresses(self, target: HostPort) -> tuple[IpAddress, ...]:
        """The addresses to dial for HOST:PORT in a record. Raises AddressRefused, or PeerUnavailable for a bad name."""
        return self._rule.allowed(await self._resolver.addresses(target), target)

    def known_at(self, targets: Iterable[HostPort]) -> None:
        """Note that peers met in an earlier run answer at these addresses: the swarm is still where it was.

        Counts only in the ranges of the initial peers, which the operator has named.
        """
        named = {range_of(address) for address in map(_literal_of, self._named) if address is not None}
        for address in (literal(target.host) for target in targets):
            if address is not None and range_of(address) in named:
                self._rule = self._rule.reached(address)

    async def _connect(self, reach: Reach) -> Connection:
        """Raises AuthenticationError for a bad id, AddressRefused, PeerUnavailable."""
        if isinstance(reach, RelayedAddress):
            return self._connect_through(reach)
        target = HostPort.parse(reach.target)
        named = reach in self._named
        dialled = await (self._resolver_of_named.addresses(target) if named else self.addresses(target))
        if self._closed:
            raise SessionLost("the dialer was closed")
        channel = self._channel(reach.peer, grpc_target(dialled, target.port))
        return Connection(channel, partial(self._reached, dialled) if named else _nothing)

    def _connect_through(self, reach: RelayedAddress) -> Connection:
        public_key_of(reach.peer)
        # Each peer behind a relay has its own connection to the relay: a slow one delays no other, and each is
        # redialled on its own.
        stub, line = self._new(reach.relay)
        tunnel = LocalEnd(lambda: self._open_tunnel(stub, reach))
        return Connection(self._channel(reach.peer, tunnel.target), _nothing, (tunnel, line))

    async def _open_tunnel(self, relay: PeerStub, reach: RelayedAddress) -> TunnelStream:
        stream = relay.connect()
        await stream.write(ConnectFrame(self._introduce(reach.relay.peer), reach.peer))
        return stream

    def _channel(self, peer: PeerId, target: str) -> grpc.aio.Channel:
        """A channel to `target` that accepts only that peer."""
        credentials = grpc.ssl_channel_credentials(synthetic_root_pem(peer, self._clock()))
        options = [
            *CHANNEL_OPTIONS,
            ("grpc.ssl_target_name_override", tls_name(peer)),
            # Peers that share a host must not share a connection: the pin is part of the channel's identity.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return grpc.aio.secure_channel(target, credentials, options=options)

    def _reached(self, addresses: Sequence[IpAddress]) -> None:
        """Note that an initial peer has answered at one of these addresses."""
        if len({range_of(address) for address in addresses}) == 1:
            self._rule = self._rule.reached(addresses[0])

    def _close(self, connection: Connection) -> None:
        task = asyncio.create_task(connection.close(), name="close a channel")
        self._closing.add(task)
        task.add_done_callback(self._channel_closed)

    def _channel_closed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._closing.discard(task)  # one that failed stays for `close` to tell of it

    async def close(self) -> None:
        """Close every channel and cancel calls in flight.

        Waits for all channels, including those that were closed before; then raises the first failure, if any.
        """
        self._closed = True
        for line in tuple(self._lines):
            line.close()
        self._stubs = {}
        closing = list(self._closing)
        self._closing.clear()
        results = await asyncio.gather(*closing, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


def _literal_of(address: PeerAddress) -> IpAddress | None:
    return literal(HostPort.parse(address.target).host)


def _nothing() -> None:
    pass


async def ping(
    stub: PeerStub, address: Reach, timeout_seconds: float, timer: Callable[[], float] = time.perf_counter
) -> tuple[PingReply, float, float]:
    """Ping once: the reply, the round trip in seconds by the `timer`, and the peer's clock minus ours.

    Raises SwarmError; WrongSwarm if the peer speaks another version of the protocol.
    """
    sent_at, started = time.time(), timer()
    reply = await stub.ping(PingRequest(PROTOCOL_VERSION), timeout_seconds)
    rtt_seconds = timer() - started
    check_protocol(reply.protocol)
    return reply, rtt_seconds, reply.clock - (sent_at + rtt_seconds / 2)
