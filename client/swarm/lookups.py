"""Asks peers for the records under a name: look-ups for a node that is not part of the DHT."""

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
"""Initial limit for the records in all answers of one look: about 140 of usual size."""
MIN_ANSWER_BYTES = 8 << 10
MAX_LOOK_BYTES = 4 << 20
"""More than any answer has."""


@dataclass(frozen=True)
class LookupAsker:
    """Sends look-ups on behalf of one node; does not check the answers."""

    identity: Identity
    dialer: Dialer
    swarm_key: SwarmKey | None
    clock: Callable[[], float]
    """Unix seconds."""
    seconds: float
    """How long a peer has to answer."""

    def call(self, address: Reach) -> LookupCall:
        """Return a call that asks the peer at this address for all its records; the call raises SwarmError."""

        async def call(name: str) -> Sequence[bytes]:
            return (await self.ask(address, name)).records

        return call

    async def ask(self, address: Reach, name: str, most_bytes: int = 0, place: Coordinate | None = None) -> LookupReply:
        """Ask the peer at this address for at most `most_bytes` of records (0: all). Raises SwarmError."""
        stub = self.dialer.stub(address)
        # Sent without a swarm key, too: the peers of a private swarm then say that the key is missing.
        hello = sign_hello(self.identity, address.peer, bytes(SESSION_ID_BYTES), self.clock(), self.swarm_key)
        with blamed_on(address):
            return await stub.lookup(LookupRequest(name, hello, most_bytes, place), self.seconds)


class SwarmLookups:
    """Asks several peers for the best hosts from here: a few of every block, not all that exist.

    The result is the union of the answers, so a peer cannot hide records that others have.  All answers together have
    about `LOOK_BYTES`; `look_for_more` doubles that, for a client that finds no host for some blocks.
    """

    def __init__(self, asker: LookupAsker, everything: bool = False) -> None:
        """`everything`: ask for all records that the peers have."""
        self._asker = asker
        self._everything = everything
        self._calls: dict[str, LookupCall] = {}
        self._directory = LookupDirectory(self._calls, asker.clock, asker.seconds)
        self._look_bytes = LOOK_BYTES
        self._incomplete = False

    @property
    def is_complete(self) -> bool:
        """Whether the last answers had all the records that the peers know."""
        return not self._incomplete

    @property
    def can_look_for_more(self) -> bool:
        """Whether a look with a larger limit would bring more records."""
        return self._incomplete and self._look_bytes < MAX_LOOK_BYTES

    def look_for_more(self) -> None:
        """Double the limit for further looks."""
        self._look_bytes = min(2 * self._look_bytes, MAX_LOOK_BYTES)

    async def look(self, name: str, peers: Sequence[Reach], place: Coordinate | None) -> tuple[SignedRecord, ...]:
        """Return the records that these peers have for a client at `place`. Raises SwarmError if none answers."""
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
    """Return the peers whose records are valid, with the ways to reach them."""
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
