"""A relay and a peer that is reached through it, in this process: real TLS and gRPC on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from blockswarm.peer.config import RelayQuota
from blockswarm.peer.reach.relay import RelayService
from blockswarm.peer.reach.table import RelayTable
from blockswarm.peer.reach.tunnel import Tunnel
from blockswarm.peer.session.edge.handshakes import Handshakes
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import HostPort, PeerAddress, RelayedAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, Handlers, RelayHandlers, introduction, serve
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION, HelloChecker
from blockswarm.proto.wire.messages.calls import PingReply, PingRequest


async def unused(*args: Any) -> Any:
    raise AssertionError("not called in this test")


def answering(identity: Identity, relay: RelayHandlers | None = None, **calls: Any) -> Handlers:
    """A node that answers pings, and what else a test gives it."""

    async def answer(request: PingRequest) -> PingReply:
        return PingReply(clock=time.time(), peer_id=identity.peer_id, protocol=PROTOCOL_VERSION)

    usual = {"session": unused, "push": unused, "lookup": unused, "ping": answer}
    return Handlers(**{**usual, **calls}, relay=relay)


@dataclass
class LocalRelay:
    """A relay in this process; `offering` may be changed."""

    identity: Identity
    service: RelayService
    address: PeerAddress
    server: Any
    offering: bool = True
    dialers: list[Dialer] = field(default_factory=list)
    tunnels: list[asyncio.Task[None]] = field(default_factory=list)
    servers: list[Any] = field(default_factory=list)

    def reach(self, peer: Identity) -> RelayedAddress:
        return RelayedAddress(peer.peer_id, self.address)

    def dialer(self, identity: Identity | None = None, swarm_key: SwarmKey | None = None) -> Dialer:
        made = Dialer(rule=EVERY_RANGE, introduce=introduction(identity or Identity.generate(), swarm_key))
        self.dialers.append(made)
        return made

    async def serve_peer(self, identity: Identity, handlers: Handlers | None = None) -> HostPort:
        """A peer's server; where it listens."""
        server, port = await serve(identity, handlers or answering(identity), "127.0.0.1", 0)
        self.servers.append(server)
        return HostPort("127.0.0.1", port)

    async def tunnel(
        self, identity: Identity, local: HostPort, swarm_key: SwarmKey | None = None, timing: PeerTiming | None = None
    ) -> asyncio.Task[None]:
        """A tunnel of the peer to this relay, once it has its place; raises what the tunnel raises before."""
        reserved = asyncio.Event()
        made = Tunnel(self.address, local, self.dialer(), introduction(identity, swarm_key), timing or PeerTiming())
        task = asyncio.create_task(made.run(reserved.set))
        self.tunnels.append(task)
        waiting = asyncio.create_task(reserved.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        return task

    async def relayed_peer(self, identity: Identity | None = None, handlers: Handlers | None = None) -> Identity:
        """A peer that is reached through this relay."""
        identity = identity or Identity.generate()
        await self.tunnel(identity, await self.serve_peer(identity, handlers))
        return identity

    async def close(self) -> None:
        for task in self.tunnels:
            task.cancel()
        await asyncio.gather(*self.tunnels, return_exceptions=True)
        for dialer in self.dialers:
            await dialer.close()
        for server in (*self.servers, self.server):
            await server.stop(grace=0)


@asynccontextmanager
async def local_relay(
    quota: RelayQuota | None = None,
    *,
    swarm_key: SwarmKey | None = None,
    timing: PeerTiming | None = None,
    change: Callable[[RelayHandlers], RelayHandlers] = lambda handlers: handlers,
) -> AsyncIterator[LocalRelay]:
    """`change` may replace what the relay does: a relay need not be honest."""
    identity, timing = Identity.generate(), timing or PeerTiming()
    service = RelayService(
        RelayTable(identity.peer_id, quota or RelayQuota()),
        HelloChecker(identity.peer_id, time.time, swarm_key),
        Handshakes(timing.handshake_seconds).handshake,
        lambda: relay.offering,
        time.monotonic,
        timing,
    )
    server, port = await serve(identity, answering(identity, change(service.handlers)), "127.0.0.1", 0)
    relay = LocalRelay(identity, service, PeerAddress(identity.peer_id, f"127.0.0.1:{port}"), server)
    try:
        yield relay
    finally:
        await relay.close()
