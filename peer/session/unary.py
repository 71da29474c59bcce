"""The calls that have one answer: look-ups in the directory, and pings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...proto.errors import AuthenticationError, WrongSwarm
from ...proto.wire.handshake import PROTOCOL_VERSION, check_protocol, check_protocol_of
from ...proto.wire.messages.calls import LookupReply, LookupRequest, PingReply, PingRequest
from ...proto.wire.messages.limits import MAX_RECORDS_PER_KEY

if TYPE_CHECKING:
    from .parts import PeerParts

MAX_LOOKUP_BYTES = 3 << 20
LAST_UNNAMED_PROTOCOL = 2
"""Nodes up to this version do not name it in a ping."""


class UnaryCalls:
    """Answers look-ups and pings."""

    def __init__(self, parts: PeerParts) -> None:
        self._parts = parts

    async def lookup(self, request: LookupRequest) -> LookupReply:
        """Records under a name; in a private swarm for members only. Raises SwarmError."""
        if self._parts.swarm_key is not None:
            self._parts.hellos.check(request.hello)
        else:
            check_protocol_of(request.hello)
        records: list[bytes] = []
        size = 0
        for record in await self._parts.lookup(request.key):
            size += len(record)
            if size > MAX_LOOKUP_BYTES or len(records) == MAX_RECORDS_PER_KEY:
                break  # one more, and the whole answer would be refused
            records.append(record)
        return LookupReply(tuple(records))

    async def ping(self, request: PingRequest) -> PingReply:
        """The peer's clock and public status; in a private swarm without the model's name."""
        try:
            check_protocol(request.protocol or LAST_UNNAMED_PROTOCOL)
        except WrongSwarm as error:
            # A peer of such a version that wants to join tells its user the reason only of this kind of refusal.
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
