"""The calls that have one answer: look-ups in the directory, and pings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...proto.errors import AuthenticationError, WrongSwarm
from ...proto.network.address import network_of_host
from ...proto.wire.handshake import PROTOCOL_VERSION, check_protocol, check_protocol_of
from ...proto.wire.messages.calls import LookupReply, LookupRequest, PingReply, PingRequest
from ...proto.wire.messages.limits import MAX_RECORDS_PER_KEY
from ...routing.nearby import Asker

if TYPE_CHECKING:
    from .parts import PeerParts

MAX_LOOKUP_BYTES = 3 << 20
MIN_RECORD_BYTES = 256
"""No record of a peer is smaller: digest, id, key and signature alone are 168 bytes."""
LAST_UNNAMED_PROTOCOL = 2
"""Nodes up to this protocol version do not state it in a ping."""


class UnaryCalls:
    """Answers look-ups and pings."""

    def __init__(self, parts: PeerParts) -> None:
        self._parts = parts

    async def lookup(self, request: LookupRequest, host: str) -> LookupReply:
        """Answer a caller at `host` with records under a name; in a private swarm for members only. Raises SwarmError.

        It does not matter whether the caller is the signer of the hello: its id only serves to spread the answers.
        """
        if self._parts.swarm_key is not None:
            self._parts.hellos.check(request.hello)
        else:
            check_protocol_of(request.hello)
        most_bytes = min(request.most_bytes or MAX_LOOKUP_BYTES, MAX_LOOKUP_BYTES)
        most = min(most_bytes // MIN_RECORD_BYTES, MAX_RECORDS_PER_KEY)
        asker = Asker(request.hello.signer, request.place) if request.most_bytes else None
        answer = await self._parts.lookup(request.key, network_of_host(host), asker, most)
        records, left = list[bytes](), most_bytes
        for record in answer.records:
            encoded = record.encode()
            left -= len(encoded)
            if left < 0:
                break  # one more, and the whole answer would be refused
            records.append(encoded)
        return LookupReply(tuple(records), answer.known)

    async def ping(self, request: PingRequest) -> PingReply:
        """Answer with the peer's clock and public status; in a private swarm without the model's name."""
        try:
            check_protocol(request.protocol or LAST_UNNAMED_PROTOCOL)
        except WrongSwarm as error:
            # A peer of such a version that wants to join shows its user the reason of this kind of refusal only.
            raise error if request.protocol else AuthenticationError(str(error)) from None
        parts, counters = self._parts, self._parts.counters
        public = parts.swarm_key is None
        return PingReply(
            clock=parts.clock(),
            peer_id=parts.identity.peer_id,
            protocol=PROTOCOL_VERSION,
            model_digest=parts.model_digest if public else "",
            model_name=parts.model_name if public else "",
            steps_pushed=counters.steps_pushed,
            steps_relayed=counters.steps_relayed,
            steps_answered=counters.steps_answered,
            rebuilt_tokens=counters.rebuilt_tokens,
            sessions=parts.sessions.sessions,
            queued=parts.sessions.waiting,
            kv_tokens_free=max(0, parts.sessions.kv_token_blocks_free),
            replay_bytes=parts.replay.nbytes,
            dht_addresses=tuple(parts.dht_addresses()),
        )
