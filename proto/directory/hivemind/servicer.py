"""Answers to the calls of other nodes, in the place of hivemind's own: all of it within bounds.

hivemind's own answers have none: a call may be of any size and name any number of keys, forged signatures are checked
in one go on the event loop, and a node may have any number of ids, each of which is sent all records.  Here a node has
few calls under way at once, and the large answers, all records under a key, take turns at a pace: a question of sixty
bytes has an answer of up to 2.8 MB.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...errors import AuthenticationError, PeerUnavailable, RemoteProtocolError
from ..signed import CHECKS_AT_ONCE, SignatureCache
from . import control, entries
from .exchange import node_id_of
from .places import Network, Places, network_of_maddr
from .shim import DHTID, AuthRole, AuthRPCWrapper, PeerID, dht_pb2

log = logging.getLogger(__name__)

MAX_CALLS = 256
"""Calls that are answered, or wait for their turn."""
MAX_CALLS_OF_A_NODE = 8
"""The same of one node: a walk asks a node one question at a time, and a few walks may be under way."""
MAX_QUESTION_BYTES = 1024
"""Largest ping or question for a key."""
MAX_STORE_BYTES = 16384
"""Largest call that gives records: this version gives one at a time."""
ANSWER_BYTES_PER_SECOND = 32e6
"""Records that are sent to all nodes together."""
MAX_BANNED = 1024


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


@dataclass(frozen=True, slots=True)
class BoundedCall:
    """Reads the calls of one kind, before anything is made of them that are too large."""

    message: Any
    max_bytes: int

    def FromString(self, data: bytes) -> Any:
        if len(data) > self.max_bytes:
            raise RemoteProtocolError(f"a call of the DHT has at most {self.max_bytes} bytes, not {len(data)}")
        return self.message.FromString(data)


class Servicer:
    """Answers the calls of hivemind's protocol for one node."""

    def __init__(
        self,
        p2p: Any,
        protocol: Any,
        places: Places,
        cache: SignatureCache,
        reached: Reached,
        ban_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """`clock` gives Unix seconds."""
        self._p2p = p2p
        self._protocol = protocol
        self._places = places
        self._cache = cache
        self._reached = reached
        self._ban_seconds = ban_seconds
        self._clock = clock
        self._check_turn, self._answer_turn = asyncio.Lock(), asyncio.Lock()
        self._calls: Counter[str] = Counter()
        self._unchecked = 0
        self._banned: dict[str, float] = {}

    async def install(self, authorizer: Any) -> None:
        """Answer in the place of hivemind's own protocol."""
        protocol, own = self._protocol, AuthRPCWrapper(self, AuthRole.SERVICER, authorizer)
        await protocol.remove_p2p_handlers(self._p2p)
        for name, call in {
            "rpc_ping": BoundedCall(dht_pb2.PingRequest, MAX_QUESTION_BYTES),
            "rpc_find": BoundedCall(dht_pb2.FindRequest, MAX_QUESTION_BYTES),
            "rpc_store": BoundedCall(dht_pb2.StoreRequest, MAX_STORE_BYTES),
        }.items():
            await self._p2p.add_protobuf_handler(f"{type(protocol).__name__}.{name}", getattr(own, name), call)

    async def rpc_ping(self, request: Any, context: Any) -> Any:
        """That this node is there, its clock, and whether it reaches the one that calls, if that was asked."""
        with self._admitted(context):
            reached = request.validate and await self._protocol.call_ping(context.remote_id) is not None
            if reached or not request.validate:
                await self._greet(request, context)
            return dht_pb2.PingResponse(peer=self._protocol.node_info, dht_time=self._clock(), available=reached)

    async def rpc_find(self, request: Any, context: Any) -> Any:
        """The records under a key, or, where it has none, the nodes nearest to it that this one knows."""
        with self._admitted(context):
            (key,) = request.keys  # more than one are not asked for
            key_id = DHTID.from_bytes(key)
            takes_part = await self._greet(request, context)
            result = await self._records_under(key)
            if result.type == dht_pb2.FOUND_DICTIONARY:  # a walk goes to a key beside: this is no step of one
                return dht_pb2.FindResponse(results=[result], peer=self._protocol.node_info)
            protocol, asking = self._protocol, node_id_of(context.remote_id.to_base58()) if takes_part else None
            for node_id, peer_id in protocol.routing_table.get_nearest_neighbors(
                key_id, k=protocol.bucket_size, exclude=asking
            ):
                result.nearest_node_ids.append(node_id.to_bytes())
                result.nearest_peer_ids.append(peer_id.to_bytes())
            return dht_pb2.FindResponse(results=[result], peer=protocol.node_info)

    async def _records_under(self, key: bytes) -> Any:
        """All records under a key, in hivemind's form."""
        if not self._places.records_under(key):
            return dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
        await self._answer_turn.acquire()
        packed = b""
        try:
            kept = self._places.records_under(key)
            packed = entries.pack_dictionary(kept)
            latest = max((place.expires_at_seconds for place in kept.values()), default=0.0)
            return dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=packed, expiration_time=latest)
        finally:
            seconds = len(packed) / ANSWER_BYTES_PER_SECOND
            asyncio.get_running_loop().call_later(seconds, self._answer_turn.release)

    async def rpc_store(self, request: Any, context: Any) -> Any:
        """Give records places; a sender of a forged one is cut off, and hears nothing of the others."""
        with self._admitted(context):
            await self._greet(request, context)
            groups = list(_groups(request))
            try:
                async with self._check_turn:
                    await self._reached.refresh()
                    stored = [all([await self._keep(key, entry) for entry in group]) for key, group in groups]
            except AuthenticationError as error:
                await self._ban(context.remote_id, str(error))
                raise
            return dht_pb2.StoreResponse(store_ok=stored, peer=self._protocol.node_info)

    @contextmanager
    def _admitted(self, context: Any) -> Iterator[None]:
        """A call, while it is answered. Raises AuthenticationError for a banned node, PeerUnavailable."""
        node = context.remote_id.to_base58()
        until = self._banned.get(node)
        if until is not None and until > time.monotonic():
            raise AuthenticationError("this node has sent a forged record")
        if self._calls[node] >= MAX_CALLS_OF_A_NODE or self._calls.total() >= MAX_CALLS:
            raise PeerUnavailable("too many calls at once")
        self._calls[node] += 1
        try:
            yield
        finally:
            self._calls[node] -= 1
            self._calls += Counter()  # without those that have none

    async def _keep(self, key: bytes, entry: entries.Entry) -> bool:
        """Raises AuthenticationError if the record is forged."""
        self._unchecked += 1
        if self._unchecked >= CHECKS_AT_ONCE:
            self._unchecked = 0
            await asyncio.sleep(0)
        network = self._reached.network_of(entry.owner)
        if not self._places.would_keep(key, entry.owner, entry.expires_at_seconds, network):
            return False
        try:
            record = entries.read_record(key, entry)
        except RemoteProtocolError as error:
            log.debug("a record is refused: %s", error)
            return False
        self._cache.check(record)
        return self._places.keep(key, entry.owner, entry.value, entry.expires_at_seconds, network)

    async def _greet(self, request: Any, context: Any) -> bool:
        """Note the node that calls, if it takes part in the DHT; whether it does."""
        node_id = node_id_of(context.remote_id.to_base58())
        takes_part: bool = request.peer.node_id == node_id.to_bytes()
        if takes_part:
            await self._protocol.update_routing_table(node_id, context.remote_id, responded=True)
        return takes_part

    async def _ban(self, peer_id: PeerID, reason: str) -> None:
        log.info("node %s is cut off for a while: %s", peer_id.to_base58(), reason)
        now = time.monotonic()
        self._banned = {node: until for node, until in self._banned.items() if until > now}
        if len(self._banned) >= MAX_BANNED:
            del self._banned[next(iter(self._banned))]  # the one that was banned first
        self._banned[peer_id.to_base58()] = now + self._ban_seconds
        try:
            await control.disconnect(self._p2p, peer_id, seconds=1.0)
        except PeerUnavailable as error:
            log.debug("it could not be disconnected: %s", error)


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
        room -= max(len(group), 1)
        if room < 0:
            raise RemoteProtocolError("a store of the DHT has too many records")
        yield key, group
