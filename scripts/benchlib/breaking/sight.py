"""The records that a peer would give to a client: which peers are seen through it."""

from __future__ import annotations

import asyncio
import time

from blockswarm.proto.directory.records import open_peer_record
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.directory.swarm_key import swarm_key_name
from blockswarm.proto.errors import SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.streams import translated_grpc_errors
from blockswarm.proto.network.transport import Dialer
from blockswarm.proto.wire.handshake import SESSION_ID_BYTES, sign_hello
from blockswarm.proto.wire.messages.calls import LookupRequest
from blockswarm.routing.swarm import PeerState

from .world import MODEL, Node


def seen_by(node: Node) -> set[str]:
    """The ids of the peers that it lists as serving; none if it does not answer."""
    return set(blocks_seen_by(node))


def blocks_seen_by(node: Node) -> dict[str, str]:
    """The blocks of the peers that it lists as serving, by id; none if it does not answer."""
    try:
        return asyncio.run(_ask(PeerAddress.parse(node.address)))
    except SwarmError:
        return {}


async def _ask(address: PeerAddress) -> dict[str, str]:
    dialer = Dialer(rule=EVERY_RANGE)
    name = swarm_key_name(open_checkpoint(str(MODEL)).model_digest().hex(), None)
    hello = sign_hello(Identity.generate(), address.peer, bytes(SESSION_ID_BYTES), time.time(), None)
    try:
        with translated_grpc_errors(str(address)):
            reply = await dialer.stub(address).lookup(LookupRequest(name, hello), 10.0)
        signed = [SignedRecord.decode(record) for record in reply.records]
        specs = [(s.peer_id, open_peer_record(s, None).spec) for s in signed]
        return {peer_id: str(spec.blocks) for peer_id, spec in specs if spec.state is PeerState.SERVING}
    finally:
        await dialer.close()
