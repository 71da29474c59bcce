"""Calls to the daemon over its control socket: each has an end, and leaves no connection behind.

hivemind's own calls keep their connection open for ever when they are given up, and have no end if the daemon hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from ...errors import PeerUnavailable
from .maddrs import readable_maddrs
from .shim import Multiaddr, PeerID, p2pd_pb2, read_pbmsg_safe, write_pbmsg


async def identify(p2p: Any, seconds: float) -> tuple[str, ...]:
    """The addresses that the daemon tells others. Raises PeerUnavailable if it does not answer in time."""
    response = await _call(p2p, p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY), seconds)
    own_id = PeerID(response.identify.id).to_base58()
    return tuple(f"{maddr}/p2p/{own_id}" for maddr in readable_maddrs(response.identify.addrs))


async def connect(p2p: Any, peer_id: Any, maddrs: Sequence[str], seconds: float) -> None:
    """Have the daemon connect to a node, if it is not. Raises PeerUnavailable."""
    addresses = [Multiaddr(maddr.partition("/p2p/")[0]).to_bytes() for maddr in maddrs]
    request = p2pd_pb2.ConnectRequest(peer=peer_id.to_bytes(), addrs=addresses)
    await _call(p2p, p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=request), seconds)


async def disconnect(p2p: Any, peer_id: Any, seconds: float) -> None:
    """Have the daemon close its connections to a node. Raises PeerUnavailable."""
    request = p2pd_pb2.DisconnectRequest(peer=peer_id.to_bytes())
    await _call(p2p, p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=request), seconds)


async def addresses_of(p2p: Any, peer_id: Any, seconds: float) -> tuple[str, ...]:
    """Where a node that is connected says that it listens. Raises PeerUnavailable if it is not found in time."""
    request = p2pd_pb2.DHTRequest(type=p2pd_pb2.DHTRequest.FIND_PEER, peer=peer_id.to_bytes())
    response = await _call(p2p, p2pd_pb2.Request(type=p2pd_pb2.Request.DHT, dht=request), seconds)
    return tuple(f"{maddr}/p2p/{peer_id.to_base58()}" for maddr in readable_maddrs(response.dht.peer.addrs))


async def connections(p2p: Any, seconds: float) -> dict[str, str]:
    """The nodes that are connected, and the address at the other end of a connection. Raises PeerUnavailable."""
    response = await _call(p2p, p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS), seconds)
    connected = ((PeerID(peer.id).to_base58(), readable_maddrs(peer.addrs[:1])) for peer in response.peers)
    return {node: maddrs[0] for node, maddrs in connected if maddrs}


async def _call(p2p: Any, request: Any, seconds: float) -> Any:
    response = p2pd_pb2.Response()
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await p2p._client.control.daemon_connector.open_connection()
            with contextlib.closing(writer):
                await write_pbmsg(writer, request)
                await read_pbmsg_safe(reader, response)
    except TimeoutError:
        raise PeerUnavailable(f"the DHT daemon did not answer in {seconds:.0f} s") from None
    except (OSError, EOFError, ValueError, DecodeError) as error:
        raise PeerUnavailable(f"the DHT daemon does not answer: {error}") from None
    if response.type == p2pd_pb2.Response.ERROR:
        raise PeerUnavailable(response.error.msg)
    return response
