"""Asks peers for the records under a name: the look-ups of a node that is no part of the DHT."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...proto.directory.directory import LookupCall, LookupDirectory
from ...proto.directory.records import open_peer_record
from ...proto.directory.signed import SignedRecord
from ...proto.directory.swarm_key import SwarmKey
from ...proto.errors import SwarmError
from ...proto.identity import Identity
from ...proto.network.address import Reach, reaches_of
from ...proto.network.transport import Dialer
from ...proto.wire.handshake import SESSION_ID_BYTES, sign_hello
from ...proto.wire.messages.calls import LookupReply, LookupRequest
from ...routing.swarm import Coordinate, PeerId
from ..peer_errors import blamed_on
from .look import Found

logger = logging.getLogger(__name__)

LOOK_BYTES = 96 << 10
"""Records that all answers of one look may have together, in the first place: about 140 of usual size."""
MIN_ANSWER_BYTES = 8 << 10
MAX_LOOK_BYTES = 4 << 20
"""More than any answer has."""


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
        """The call that asks the peer at this address for all that it has; it raises SwarmError."""

        async def call(name: str) -> Sequence[bytes]:
            return (await self.ask(address, name)).records

        return call

    async def ask(self, address: Reach, name: str, most_bytes: int = 0, place: Coordinate | None = None) -> LookupReply:
        """The answer of the peer at this address, of at most `most_bytes` if that is not 0. Raises SwarmError."""
        stub = self.dialer.stub(address)
        # Also without a key: the peers of a private swarm then say what is missing.
        hello = sign_hello(self.identity, address.peer, bytes(SESSION_ID_BYTES), self.clock(), self.swarm_key)
        with blamed_on(address):
            return await stub.lookup(LookupRequest(name, hello, most_bytes, place), self.seconds)


class SwarmLookups:
    """Asks several peers for the hosts that are best from here: a few of every block, not all that there are.

    The union of the answers counts, so a peer that hides some records hides nothing that others tell.  All answers
    together have about `LOOK_BYTES`; `look_for_more` doubles that, for a client that misses blocks.
    """

    def __init__(self, asker: LookupAsker, everything: bool = False) -> None:
        """`everything`: ask for all records that peers have."""
        self._asker = asker
        self._everything = everything
        self._calls: dict[str, LookupCall] = {}
        self._directory = LookupDirectory(self._calls, asker.clock, asker.seconds)
        self._look_bytes = LOOK_BYTES
        self._incomplete = False

    @property
    def is_complete(self) -> bool:
        """Whether the peers that answered last know no more than they told."""
        return not self._incomplete

    @property
    def can_look_for_more(self) -> bool:
        """Whether another look would be told more."""
        return self._incomplete and self._look_bytes < MAX_LOOK_BYTES

    def look_for_more(self) -> None:
        """From now on have twice as many records told."""
        self._look_bytes = min(2 * self._look_bytes, MAX_LOOK_BYTES)

    async def look(self, name: str, peers: Sequence[Reach], place: Coordinate | None) -> tuple[SignedRecord, ...]:
        """The records that these peers tell a client at `place`. Raises SwarmError if none of them answers."""
        chosen = {str(address): address for address in peers}
        most_bytes = 0 if self._everything else max(self._look_bytes // max(len(chosen), 1), MIN_ANSWER_BYTES)
        self._incomplete = False
        self._calls.clear()
        self._calls.update({key: self._call(address, most_bytes, place) for key, address in chosen.items()})
        return await self._directory.lookup(name)

    def _call(self, address: Reach, most_bytes: int, place: Coordinate | None) -> LookupCall:
        async def call(name: str) -> Sequence[bytes]:
            reply = await self._asker.ask(address, name, most_bytes, place)
            self._incomplete |= bool(most_bytes) and not reply.is_complete
            return reply.records

        return call


def found_in(records: Sequence[SignedRecord], swarm_key: SwarmKey | None) -> Mapping[PeerId, Found]:
    """The peers whose records hold, with the ways that lead to them."""
    opened = {}
    for record in records:
        try:
            with blamed_on(record.peer_id):
                opened[record.peer_id] = (open_peer_record(record, swarm_key), record.encode())
        except SwarmError as error:
            logger.debug("a record is ignored: %s", error)

    def addresses_of(relay: PeerId) -> Sequence[str]:
        return opened[relay][0].addresses if relay in opened else ()

    return {
        peer: Found(record, encoded, reaches_of(record, addresses_of)) for peer, (record, encoded) in opened.items()
    }
