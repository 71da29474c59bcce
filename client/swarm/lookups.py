"""Asks peers for the records under a name: the look-ups of a node that is no part of the DHT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...proto.directory.directory import LookupCall
from ...proto.directory.swarm_key import SwarmKey
from ...proto.identity import Identity
from ...proto.network.address import Reach
from ...proto.network.transport import Dialer
from ...proto.wire.handshake import SESSION_ID_BYTES, sign_hello
from ...proto.wire.messages.calls import LookupRequest
from ..peer_errors import blamed_on


@dataclass(frozen=True)
class LookupAsker:
    """Asks as one node; the answers are not checked here."""

    identity: Identity
    dialer: Dialer
    swarm_key: SwarmKey | None
    clock: Callable[[], float]
    """Unix seconds."""
    seconds: float
    """How long a peer has to answer."""

    def call(self, address: Reach) -> LookupCall:
        """The call that asks the peer at this address; it raises SwarmError."""
        stub = self.dialer.stub(address)

        async def call(name: str) -> Sequence[bytes]:
            # Also without a key: the peers of a private swarm then say what is missing.
            hello = sign_hello(self.identity, address.peer, bytes(SESSION_ID_BYTES), self.clock(), self.swarm_key)
            with blamed_on(address):
                return (await stub.lookup(LookupRequest(name, hello), self.seconds)).records

        return call
