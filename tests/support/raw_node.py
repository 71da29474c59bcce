"""A node of hivemind's DHT as hivemind makes it, which checks nothing and says what a test wants it to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from blockswarm.proto.directory.hivemind.exchange import node_id_of
from blockswarm.proto.directory.hivemind.shim import P2P, DHTNode, dht_pb2
from support.directories import DirectorySwarm

FAREWELL_SECONDS = 5.0


@asynccontextmanager
async def raw_node(*initial_maddrs: str, **options: Any) -> AsyncIterator[Any]:
    """A raw node that has joined the nodes at these addresses."""
    maddrs = list(initial_maddrs)
    p2p = await P2P.create(maddrs, nat_port_map=False, auto_nat=False, use_relay=False, check_if_identity_free=False)
    try:
        place = node_id_of(p2p.peer_id.to_base58())
        node = await DHTNode.create(p2p=p2p, initial_peers=maddrs, node_id=place, **options)
        yield node
        with suppress(TimeoutError):  # a daemon may leave the farewell without an answer, and hivemind waits for ever
            async with asyncio.timeout(FAREWELL_SECONDS):
                await node.shutdown()
    finally:
        await p2p.shutdown()


@asynccontextmanager
async def raw_member(swarm: DirectorySwarm) -> AsyncIterator[Any]:
    """A raw node in the DHT of a swarm."""
    async with raw_node(*await swarm.announcers[0].visible_maddrs()) as node:
        yield node


async def maddrs_of(node: Any) -> tuple[str, ...]:
    """The addresses of a raw node."""
    return tuple(str(maddr) for maddr in await node.protocol.p2p.get_visible_maddrs())


async def serve_instead(node: Any, **handlers: Any) -> None:
    """Have a raw node answer calls (rpc_ping=..., rpc_find=...) by these functions of request and context."""
    await node.protocol.remove_p2p_handlers(node.protocol.p2p)
    for name, handler in handlers.items():
        setattr(node.protocol, name, handler)
    await node.protocol.add_p2p_handlers(node.protocol.p2p)


def info_with(place: bytes) -> Any:
    """How a node introduces itself that claims a place."""
    return dht_pb2.NodeInfo(node_id=place)
