"""How a node reads the records under a key, and has others keep its own: at the nodes nearest to the key.

A walk through the DHT goes to a key beside the one that is meant: it has the same nearest nodes and no records, which
hivemind would fetch from every node on the way.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from ...errors import PeerUnavailable, RemoteProtocolError
from ..directory import superseded
from ..signed import SignedRecord
from . import entries
from .daemon import HIVEMIND_FAILURES, REPLICAS, RunningNode
from .shim import DHTID, P2PHandlerError, dht_pb2


async def nearest_nodes(node: RunningNode, key: bytes, with_self: bool) -> tuple[list[Any], bool]:
    """The nodes nearest to a key, without this one; and whether it is one of them."""
    beside = DHTID(int.from_bytes(key, "big") ^ 1)
    found = await node.dht.find_nearest_nodes([beside], k_nearest=REPLICAS, exclude_self=not with_self)
    others = [peer_id for node_id, peer_id in found[beside].items() if node_id != node.dht.node_id]
    return others, len(others) < len(found[beside])


async def give(node: RunningNode, peer_id: Any, record: SignedRecord) -> bool | None:
    """Ask a node to keep a record: whether it does; None if there is no answer."""
    stored = await node.dht.protocol.call_store(
        peer_id,
        [DHTID.from_bytes(record.key)],
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
        response = await protocol.get_stub(peer_id).rpc_find(request, timeout=node.timing.call_seconds)
    except (P2PHandlerError, DecodeError, *HIVEMIND_FAILURES):
        response = None
    if response is None:  # also where a stranger has answered in a private swarm
        node.dht.blacklist.register_failure(peer_id)
        return None
    node.dht.blacklist.register_success(peer_id)
    if len(response.results) != 1 or response.results[0].type != dht_pb2.FOUND_DICTIONARY:
        return []
    try:
        return entries.unpack_dictionary(response.results[0].value)
    except RemoteProtocolError:
        return []


async def ask_all(node: RunningNode, peer_ids: Sequence[Any], key: bytes) -> list[list[entries.Entry]]:
    """The entries of each of those nodes that answer."""
    answers = await asyncio.gather(*(ask(node, peer_id, key) for peer_id in peer_ids))
    return [answer for answer in answers if answer is not None]


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
