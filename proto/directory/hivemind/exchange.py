"""How a node asks others: whether they are there, which nodes they know, for the records under a key, to keep its own.

What a node answers is bounded and checked before anything is made of it; an answer that breaks a rule is none.  In
particular a node has one place in the DHT, which follows from its identity: other places are not believed, whatever a
node says of itself or of others, or one node could be all of the nodes nearest to a key.

A walk through the DHT goes to a key beside the one that is meant: it has the same nearest nodes and no records, which
hivemind would fetch from every node on the way.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import (
    ClockSkew,
    DeadlineExceeded,
    PeerUnavailable,
    RemoteProtocolError,
    SwarmError,
    WrongKey,
    one_line,
)
from ..directory import superseded
from ..signed import SignedRecord
from . import entries
from .shim import DHTID, DHTLocalStorage, P2PHandlerError, PeerID, dht_pb2

if TYPE_CHECKING:
    from .daemon import RunningNode

REPLICAS = 5
"""Nodes that are asked to keep a record."""
MAX_KNOWN_NODES = 4096
"""Nodes in the routing table, those that would replace others included."""
MAX_SILENT_NODES = 1024
MAX_ROUNDS = 3
"""Walks to a key, as long as some of the nodes that are found do not answer."""
_MAX_PEER_ID_BYTES = 64
_SAID = re.compile(r"(ClockSkew|PeerUnavailable|AuthenticationError|RemoteProtocolError)\(['\"](.*)['\"]\)")
"""How hivemind passes on an error of ours that another node has raised."""

_Answer = TypeVar("_Answer")


def node_id_of(peer_id: str) -> Any:
    """The place of a node in the DHT: it follows from its identity, so that a node has one."""
    return DHTID.generate(f"blockswarm node {peer_id}")


@contextmanager
def translated(failure: str) -> Iterator[None]:
    """Raises PeerUnavailable for errors of hivemind's, which are of any class: they are about what a node has sent."""
    try:
        yield
    except SwarmError:
        raise
    except Exception as error:
        raise PeerUnavailable(f"{failure}: {one_line(repr(error))}") from error


# --- pings -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer of a node to a ping."""

    reaches_back: bool
    """Whether it has reached this node, if that was asked."""
    clock_seconds: float
    """The clock of its machine, Unix time; 0: it says none."""

    def ahead_seconds(self, asked_at: float, answered_at: float) -> float:
        """By how much its clock is ahead at least, given the moments of the ping by another clock."""
        return self.clock_seconds - min(max(self.clock_seconds, asked_at), answered_at) if self.clock_seconds else 0.0


async def ping(protocol: Any, peer_id: Any, where: str, check: bool = False) -> Pong:
    """Ask a node whether it is there, so that both know each other; `check`: also whether it can reach this one.

    `where` names it in errors. Raises DeadlineExceeded if it says nothing, PeerUnavailable, RemoteProtocolError if it
    is no node of this DHT; in a private swarm also WrongKey, and ClockSkew if it refuses the time of the call.
    """
    request = dht_pb2.PingRequest(peer=protocol.node_info, validate=check)
    try:
        response = await protocol.get_stub(peer_id).rpc_ping(request, timeout=protocol.wait_timeout)
        if response is None:
            raise WrongKey(f"{where} does not answer to this swarm key")
        if response.peer.node_id != node_id_of(peer_id.to_base58()).to_bytes():
            raise RemoteProtocolError(f"{where} is no node of this DHT: its place is not that of its identity")
    except Exception as error:  # hivemind's, of any class
        await protocol.update_routing_table(None, peer_id, responded=False)
        raise _refusal(error, where, private=protocol.authorizer is not None) from error
    await protocol.update_routing_table(node_id_of(peer_id.to_base58()), peer_id, responded=True)
    return Pong(response.available, response.dht_time)


def _refusal(error: Exception, where: str, private: bool) -> SwarmError:
    """The error for the operator behind one of a call, which is known by its class and by its text."""
    if isinstance(error, SwarmError):
        return error
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{where} does not answer")
    if isinstance(error, P2PHandlerError) and (said := _SAID.fullmatch(one_line(str(error)))):
        return (ClockSkew if said[1] == "ClockSkew" else PeerUnavailable)(f"{where} says: {said[2]}")
    if isinstance(error, P2PHandlerError) and private:
        return WrongKey(f"{where} does not answer to this swarm key")
    return PeerUnavailable(
        f"{where} does not answer ({one_line(str(error) or repr(error))})",
        hint="Is it a peer of a private swarm (then pass its key), or of another version?",
    )


# --- walks -----------------------------------------------------------------------------------------------------------


async def neighbours(
    protocol: Any, peer_id: Any, keys: Collection[Any]
) -> dict[Any, tuple[None, dict[Any, Any]]] | None:
    """The nodes nearest to each key that another node knows, by node id, in hivemind's form; None if it says none."""
    request = dht_pb2.FindRequest(keys=[key.to_bytes() for key in keys], peer=protocol.node_info)
    try:
        with translated("a node of the DHT does not answer"):
            response = await protocol.get_stub(peer_id).rpc_find(request, timeout=protocol.wait_timeout)
            if len(response.results) != len(keys):
                raise RemoteProtocolError("an answer of the DHT is malformed")
            nearest = [_nodes_in(result, protocol.bucket_size) for result in response.results]
            if response.peer.node_id:  # nodes that only read have no place
                await protocol.update_routing_table(DHTID.from_bytes(response.peer.node_id), peer_id, responded=True)
    except SwarmError:
        await protocol.update_routing_table(None, peer_id, responded=False)
        return None
    return {key: (None, nodes) for key, nodes in zip(keys, nearest, strict=True)}


def _nodes_in(result: Any, most: int) -> dict[Any, Any]:
    """The first nodes of an answer that have the place of their identity."""
    nodes = {}
    for place, peer in zip(result.nearest_node_ids[:most], result.nearest_peer_ids[:most], strict=False):
        if len(peer) <= _MAX_PEER_ID_BYTES:
            peer_id = PeerID(peer)
            node_id = node_id_of(peer_id.to_base58())
            if place == node_id.to_bytes():
                nodes[node_id] = peer_id
    return nodes


async def nearest_nodes(node: RunningNode, key: bytes, with_self: bool, beam: int | None = None) -> list[Any]:
    """The nodes nearest to a key, without this one, which may be one of the five.

    At least `beam` nodes are asked, twenty if it is not given.  Raises PeerUnavailable if the walk fails or takes
    longer than `lookup_seconds`.
    """
    beside, seconds = DHTID(int.from_bytes(key, "big") ^ 1), node.timing.lookup_seconds
    try:
        async with asyncio.timeout(seconds):
            with translated("a walk through the DHT failed"):
                found = await node.dht.find_nearest_nodes(
                    [beside], k_nearest=REPLICAS, beam_size=beam, exclude_self=not with_self
                )
    except TimeoutError:
        raise PeerUnavailable(f"the DHT did not answer in {seconds:.0f} s") from None
    return [peer_id for node_id, peer_id in found[beside].items() if node_id != node.dht.node_id]


async def at_nearest(
    node: RunningNode,
    key: bytes,
    with_self: bool,
    call: Callable[[Any], Awaitable[_Answer | None]],
    enough: int = REPLICAS,
    rng: random.Random | None = None,
) -> dict[Any, _Answer]:
    """The answers of the nodes nearest to a key, and of the next ones in the place of those that do not answer (None).

    Where `enough` answers are fewer than there are such nodes, the ones that are asked are chosen at random by `rng`.
    A node that is gone stays in the tables of others until they call it.  Raises PeerUnavailable if a walk fails before
    anybody has answered.
    """
    answers: dict[Any, _Answer] = {}
    asked: set[Any] = set()
    for _ in range(MAX_ROUNDS):
        try:
            others = [peer_id for peer_id in await nearest_nodes(node, key, with_self) if peer_id not in asked]
        except PeerUnavailable:
            if answers:
                break
            raise
        if rng is not None:
            others = rng.sample(others, min(enough - len(answers), len(others)))
        asked.update(others)
        said = await asyncio.gather(*(call(peer_id) for peer_id in others))
        answers |= {peer_id: answer for peer_id, answer in zip(others, said, strict=True) if answer is not None}
        if None not in said or len(answers) >= enough:
            break
    return answers


# --- records ---------------------------------------------------------------------------------------------------------


async def give(node: RunningNode, peer_id: Any, record: SignedRecord, key: bytes) -> bool | None:
    """Ask a node to keep a record under a key: whether it does; None if there is no answer."""
    stored = await node.dht.protocol.call_store(
        peer_id,
        [DHTID.from_bytes(key)],
        [entries.value_of(record)],
        [float(record.expires_at_seconds)],
        subkeys=[record.peer_id],
    )
    return bool(stored[0]) if stored else None


async def ask(node: RunningNode, peer_id: Any, key: bytes) -> list[entries.Entry] | None:
    """The entries that a node has under a key, not checked; None if there is no answer."""
    protocol = node.dht.protocol
    request = dht_pb2.FindRequest(keys=[key], peer=protocol.node_info)
    try:
        with translated("a node of the DHT does not answer"):
            response = await protocol.get_stub(peer_id).rpc_find(request, timeout=node.timing.call_seconds)
            if response is None:
                raise WrongKey("a stranger has answered in a private swarm")
    except SwarmError:
        node.dht.blacklist.register_failure(peer_id)
        return None
    node.dht.blacklist.register_success(peer_id)
    if len(response.results) != 1 or response.results[0].type != dht_pb2.FOUND_DICTIONARY:
        return []
    try:
        return entries.unpack_dictionary(response.results[0].value)
    except RemoteProtocolError:
        return []


async def read_back(
    node: RunningNode, record: SignedRecord, key: bytes, given: Mapping[Any, bool], promises_do: bool
) -> None:
    """See that one of the nodes that a record was given to keeps it. Raises what `announce` does.

    `promises_do`: reading back would bring many records, so that three nodes which say that they keep it will do.
    """
    if promises_do and sum(given.values()) > REPLICAS // 2:
        return
    seen: list[entries.Entry] = []
    for peer in sorted(given, key=lambda peer: not given[peer]):
        seen += await ask(node, peer, key) or []
        if any(entry.value == entries.value_of(record) for entry in seen):
            break
    check_kept(record, seen)


def check_kept(record: SignedRecord, seen: Sequence[entries.Entry]) -> None:
    """Check what a node has under the key of a record after it was given to it. Raises what `announce` does."""
    own = [entry for entry in seen if entry.owner == record.peer_id]
    if any(entry.value == entries.value_of(record) for entry in own):
        return
    if any(entry.expires_at_seconds >= record.expires_at_seconds for entry in own):
        raise superseded(record)
    raise PeerUnavailable("no node of the DHT kept the record", hint="It is announced again soon; check the net.")


def in_turns(answers: Sequence[Sequence[entries.Entry]], rng: random.Random) -> Iterator[entries.Entry]:
    """The different entries of all answers, taken from each in turn and by chance.

    Not all may be looked at: a node that makes up any number of them fills its own turns only.
    """
    shuffled = [rng.sample(answer, len(answer)) for answer in answers]
    seen = set()
    for entry in itertools.chain.from_iterable(itertools.zip_longest(*shuffled)):
        if entry is not None and entry not in seen:
            seen.add(entry)
            yield entry


# --- parts of hivemind's node ----------------------------------------------------------------------------------------


def take_over(dht: Any, silent_seconds: float, max_silent_seconds: float) -> None:
    """Put bounded parts in the place of those of hivemind's node that keep or read what others send."""
    protocol = dht.protocol
    protocol.storage = protocol.cache = NoStorage()
    dht.blacklist = SilentNodes(silent_seconds, max_silent_seconds)
    bind_node_ids(dht)
    protocol.call_find = functools.partial(neighbours, protocol)

    async def call_ping(peer_id: Any, **_: object) -> Any:
        try:
            await ping(protocol, peer_id, peer_id.to_base58())
        except SwarmError:
            return None
        return node_id_of(peer_id.to_base58())

    protocol.call_ping = call_ping


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


class NoStorage(DHTLocalStorage):
    """Nothing is kept here: records have their `Places`, and a cache would hide them."""

    def store(self, key: Any, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        return False

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        return False

    def items(self) -> Iterator[Any]:
        return iter(())


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
        if len(self._until) > MAX_SILENT_NODES:  # those that were left out longest ago
            for node, _ in sorted(self._until.items(), key=lambda item: item[1][0])[:256]:
                del self._until[node]

    def register_success(self, peer_id: Any) -> None:
        self._until.pop(peer_id, None)

    def __contains__(self, peer_id: object) -> bool:
        return self._until.get(peer_id, (float("-inf"), 0.0))[0] > self._monotonic()
