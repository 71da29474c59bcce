"""Parts that take the place of hivemind's own, and what other nodes may ask of this one: all of it within bounds.

hivemind's own answers have none: a call may name any number of keys, forged signatures are checked in one go on the
event loop, and a node may have any number of ids, each of which is sent all records.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...errors import AuthenticationError, PeerUnavailable, RemoteProtocolError
from ..signed import SignatureCache
from . import control, entries
from .places import Network, Places, network_of_maddr
from .shim import (
    DHTID,
    AuthRole,
    AuthRPCWrapper,
    DHTLocalStorage,
    DictionaryDHTValue,
    MSGPackSerializer,
    PeerID,
    dht_pb2,
)

log = logging.getLogger(__name__)

CHECKS_AT_ONCE = 8
"""Signatures that are checked before the loop's other work gets its turn: about a millisecond."""
MAX_CALLS_WAITING = 16
"""Calls that wait for their signatures to be checked; each may have sent 4 MB."""
MAX_BANNED = 1024
MAX_KNOWN_NODES = 4096
"""Nodes in the routing table, those that would replace others included."""


def node_id_of(peer_id: str) -> Any:
    """The place of a node in the DHT: it follows from its identity, so that a node has one."""
    return DHTID.generate(f"blockswarm node {peer_id}")


class Reached:
    """The networks of the nodes that are connected with this one, or were a moment ago."""

    def __init__(self, p2p: Any, call_seconds: float, refresh_seconds: float, memory_seconds: float) -> None:
        self._p2p = p2p
        self._call_seconds = call_seconds
        self._refresh_seconds = refresh_seconds
        self._memory_seconds = memory_seconds
        self._asked_at = float("-inf")
        self._networks: dict[str, tuple[Network, float]] = {}

    async def refresh(self) -> None:
        """Ask the daemon, if that was not done just now."""
        now = time.monotonic()
        if now - self._asked_at < self._refresh_seconds:
            return
        self._asked_at = now
        try:
            connected = await control.connections(self._p2p, self._call_seconds)
        except PeerUnavailable as error:
            log.debug("the DHT daemon does not tell its connections: %s", error)
            return
        fresh = {node: (network, now) for node, maddr in connected.items() if (network := network_of_maddr(maddr))}
        recent = {node: seen for node, seen in self._networks.items() if now - seen[1] < self._memory_seconds}
        self._networks = {**recent, **fresh}

    def network_of(self, node: str) -> Network | None:
        """The network from which a node is or was connected."""
        seen = self._networks.get(node)
        return seen[0] if seen is not None else None


class Servicer:
    """Answers the calls of hivemind's protocol for one node."""

    def __init__(
        self, p2p: Any, protocol: Any, places: Places, cache: SignatureCache, reached: Reached, ban_seconds: float
    ) -> None:
        self._p2p = p2p
        self._protocol = protocol
        self._places = places
        self._cache = cache
        self._reached = reached
        self._ban_seconds = ban_seconds
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._unchecked = 0
        self._banned: dict[str, float] = {}

    async def install(self, authorizer: Any) -> None:
        """Answer in the place of hivemind's own protocol."""
        protocol = self._protocol
        await protocol.remove_p2p_handlers(self._p2p)
        await protocol.add_p2p_handlers(self._p2p, AuthRPCWrapper(self, AuthRole.SERVICER, authorizer))

    async def rpc_ping(self, request: Any, context: Any) -> Any:
        self._refuse_banned(context)
        return await self._protocol.rpc_ping(request, context)

    async def rpc_find(self, request: Any, context: Any) -> Any:
        """The records under a key, and the nodes nearest to it that this one knows."""
        self._refuse_banned(context)
        (key,) = request.keys  # more than one are not asked for
        await self._greet(request, context)
        protocol, key_id = self._protocol, DHTID.from_bytes(key)
        result = dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
        if kept := self._places.under(key):
            result.type = dht_pb2.FOUND_DICTIONARY
            result.value = entries.pack_dictionary(kept)
            result.expiration_time = max(place.expires_at_seconds for place in kept.values())
        asking = DHTID.from_bytes(request.peer.node_id) if request.peer.node_id else None
        for node_id, peer_id in protocol.routing_table.get_nearest_neighbors(
            key_id, k=protocol.bucket_size, exclude=asking
        ):
            result.nearest_node_ids.append(node_id.to_bytes())
            result.nearest_peer_ids.append(peer_id.to_bytes())
        return dht_pb2.FindResponse(results=[result], peer=protocol.node_info)

    async def rpc_store(self, request: Any, context: Any) -> Any:
        """Give records places; a sender of a forged one is cut off, and hears nothing of the others."""
        self._refuse_banned(context)
        await self._greet(request, context)
        groups = list(_groups(request))
        if self._waiting >= MAX_CALLS_WAITING:
            raise PeerUnavailable("too many records at once")
        self._waiting += 1
        try:
            async with self._turn:
                await self._reached.refresh()
                stored = [all([await self._keep(key, entry) for entry in group]) for key, group in groups]
        except AuthenticationError as error:
            await self._ban(context.remote_id, str(error))
            raise
        finally:
            self._waiting -= 1
        return dht_pb2.StoreResponse(store_ok=stored, peer=self._protocol.node_info)

    async def _keep(self, key: bytes, entry: entries.Entry) -> bool:
        """Raises AuthenticationError if the record is forged."""
        network = self._reached.network_of(entry.owner)
        if not self._places.would_keep(key, entry.owner, entry.expires_at_seconds, network):
            return False
        try:
            record = entries.read_record(key, entry)
        except RemoteProtocolError as error:
            log.debug("a record is refused: %s", error)
            return False
        self._cache.check(record)
        self._unchecked += 1
        if self._unchecked >= CHECKS_AT_ONCE:
            self._unchecked = 0
            await asyncio.sleep(0)
        return self._places.keep(key, entry.owner, entry.value, entry.expires_at_seconds, network)

    async def _greet(self, request: Any, context: Any) -> None:
        """Note the node that calls, if it takes part in the DHT."""
        if request.peer.node_id:
            await self._protocol.rpc_ping(dht_pb2.PingRequest(peer=request.peer), context)

    def _refuse_banned(self, context: Any) -> None:
        """Raises AuthenticationError."""
        until = self._banned.get(context.remote_id.to_base58())
        if until is not None and until > time.monotonic():
            raise AuthenticationError("this node has sent a forged record")

    async def _ban(self, peer_id: PeerID, reason: str) -> None:
        log.info("node %s is cut off for a while: %s", peer_id.to_base58(), reason)
        now = time.monotonic()
        self._banned = {node: until for node, until in self._banned.items() if until > now}
        if len(self._banned) < MAX_BANNED:
            self._banned[peer_id.to_base58()] = now + self._ban_seconds
        try:
            await control.disconnect(self._p2p, peer_id, seconds=1.0)
        except PeerUnavailable as error:
            log.debug("it could not be disconnected: %s", error)


def bind_node_ids(dht: Any) -> None:
    """Let no node into the routing table under any id but the one that follows from its identity.

    A node that is heard of is not silent: it may have been started again.
    """
    protocol = dht.protocol
    update = protocol.update_routing_table

    async def update_routing_table(node_id: Any, peer_id: PeerID, responded: bool = True) -> None:
        table = protocol.routing_table
        if responded and node_id != node_id_of(peer_id.to_base58()):
            return
        if responded and node_id not in table and len(table.uid_to_peer_id) >= MAX_KNOWN_NODES:
            return
        if responded:
            dht.blacklist.register_success(peer_id)
        await update(node_id, peer_id, responded=responded)

    protocol.update_routing_table = update_routing_table


def _groups(request: Any) -> Iterable[tuple[bytes, list[entries.Entry]]]:
    """The key and the records of each part of a store. Raises RemoteProtocolError."""
    count = len(request.keys)
    if not count == len(request.subkeys) == len(request.values) == len(request.expiration_time):
        raise RemoteProtocolError("a store of the DHT is malformed")
    room = entries.MAX_ENTRIES
    for key, tag, value, expires_at in zip(
        request.keys, request.subkeys, request.values, request.expiration_time, strict=True
    ):
        if tag == entries.DICTIONARY_TAG:
            group = entries.unpack_dictionary(value)
        else:
            group = [entries.unpack_single(tag, value, expires_at)]
        room -= len(group)
        if room < 0:
            raise RemoteProtocolError("a store of the DHT has too many records")
        yield key, group


# --- parts of hivemind's node ----------------------------------------------------------------------------------------


def take_over(dht: Any, silent_seconds: float, max_silent_seconds: float) -> None:
    """Put bounded parts in the place of those of hivemind's node that keep or unpack what others send."""
    dht.protocol.storage = dht.protocol.cache = NoStorage()
    dht.protocol.serializer = NoValues
    dht.blacklist = SilentNodes(silent_seconds, max_silent_seconds)
    bind_node_ids(dht)


class NoStorage(DHTLocalStorage):
    """Nothing is kept here: records have their `Places`, and a cache would hide them."""

    def store(self, key: Any, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        return False

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        return False

    def items(self) -> Iterator[Any]:
        return iter(())


class NoValues(MSGPackSerializer):
    """A walk through the DHT is after nodes: values that one of them sends along are not unpacked."""

    @classmethod
    def loads(cls, buf: bytes) -> object:
        return DictionaryDHTValue()


class SilentNodes:
    """Nodes that did not answer are left out of searches, longer each time; by a clock that nobody sets."""

    def __init__(
        self, first_seconds: float, longest_seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._monotonic = monotonic
        self._until: dict[Any, tuple[float, float]] = {}
        """Until when a node is left out, and for how long the next time."""

    def register_failure(self, peer_id: Any) -> None:
        now = self._monotonic()
        until, seconds = self._until.get(peer_id, (now, self._first_seconds))
        if until <= now:
            self._until[peer_id] = now + seconds, min(2 * seconds, self._longest_seconds)
        if len(self._until) > 1024:  # those that were left out longest ago
            for node, _ in sorted(self._until.items(), key=lambda item: item[1][0])[:256]:
                del self._until[node]

    def register_success(self, peer_id: Any) -> None:
        self._until.pop(peer_id, None)

    def __contains__(self, peer_id: object) -> bool:
        return self._until.get(peer_id, (float("-inf"), 0.0))[0] > self._monotonic()
