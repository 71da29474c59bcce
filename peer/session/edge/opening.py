"""Checks what a session asks for when it opens (as a whole, before it is admitted) or gets new neighbours.

Of the frame, only a value of a few hundred bytes is kept, and the names of pages.  These are counted over all sessions
that wait or are open; names that exceed the budget are dropped (the session then computes what it might have adopted).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....proto.directory.records import open_peer_record
from ....proto.directory.signed import SignedRecord, verify_record
from ....proto.errors import AuthenticationError, RemoteProtocolError, SessionLost
from ....proto.network.address import Reach, network_of_host, reaches_of
from ....proto.wire.handshake import Grant, check_capability
from ....proto.wire.messages.opening import OpenFrame, PackedDigests, Signed
from ....proto.wire.messages.session import RerouteFrame
from ....proto.wire.prefixes import check_prefixes
from ....proto.wire.steps import MAX_ROWS
from ....routing.swarm import Coordinate, PeerId
from ..transfer import TurnTaker

if TYPE_CHECKING:
    from ..parts import PeerParts

MAX_NAME_BYTES = 16 << 20
"""For the page names of all sessions that wait or are open."""
MAX_NAME_BYTES_PER_CLIENT = 2 << 20


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """A session's grant, and where its outputs go."""

    grant: Grant
    relay: bool
    successor: tuple[Reach, ...]
    """Where the successor is reached; empty where the outputs go to the client."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The part of a session's first frame that is kept."""

    neighbourhood: Neighbourhood
    wait_seconds: float
    prefixes: tuple[PackedDigests, ...]
    taker: TurnTaker
    place: Coordinate | None = None
    """The coordinate that the client states."""

    @property
    def grant(self) -> Grant:
        return self.neighbourhood.grant


class NameBudget:
    """Counts the bytes of page names of all sessions, within a budget for all and one for each client."""

    def __init__(self, most: int = MAX_NAME_BYTES, most_per_client: int = MAX_NAME_BYTES_PER_CLIENT) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._held: Counter[PeerId] = Counter()

    @property
    def nbytes(self) -> int:
        return self._held.total()

    def take(self, client: PeerId, prefixes: tuple[PackedDigests, ...]) -> tuple[PackedDigests, ...]:
        """Return the prefixes, without names if these exceed the budget; give the result back when the session ends."""
        size = sum(map(len, prefixes))
        if self.nbytes + size > self._most or self._held[client] + size > self._most_per_client:
            return (b"",) * len(prefixes)
        self._held[client] += size
        return prefixes

    def give_back(self, client: PeerId, prefixes: tuple[PackedDigests, ...]) -> None:
        """Stop counting prefixes that `take` returned."""
        self._held[client] -= sum(map(len, prefixes))
        if not self._held[client]:
            del self._held[client]


class OpeningCheck:
    """Checks what clients ask for."""

    def __init__(self, parts: PeerParts) -> None:
        self._parts = parts

    def opening(self, frame: OpenFrame, host: str) -> Opening:
        """Check a session's first frame, from a client seen at `host`; give the prefixes of the result back at the end.

        Raises SwarmError.
        """
        client, session_id = self._parts.hellos.check(frame.hello)
        grant = self._grant(frame.capability, client, session_id)
        self.hosted(grant)
        check_prefixes(frame.prefixes, grant.kv_tokens, grant.max_rows)
        self._parts.engine.wire_format(grant.wire_format)
        neighbourhood = self._neighbourhood(grant, frame.relay, frame.successor_record)
        names = self._parts.names.take(client, frame.prefixes)
        taker = TurnTaker(network_of_host(host), client)
        return Opening(neighbourhood, frame.wait_seconds, names, taker, frame.place)

    def reroute(self, frame: RerouteFrame, old: Grant) -> Neighbourhood:
        """Check the new neighbours of an open session. Raises SwarmError."""
        grant = self._grant(frame.capability, old.client, old.session_id)
        same = (grant.blocks, grant.kv_tokens, grant.max_rows, grant.wire_format, grant.successor is None)
        if same != (old.blocks, old.kv_tokens, old.max_rows, old.wire_format, old.successor is None):
            raise RemoteProtocolError("a reroute changes neighbours and the format of inputs only")
        return self._neighbourhood(grant, frame.relay, frame.successor_record)

    def hosted(self, grant: Grant) -> None:
        """Raise SessionLost if the blocks of a new session are not hosted now; open sessions keep theirs."""
        hosted = self._parts.hosting.blocks
        if not hosted.covers(grant.blocks):
            raise SessionLost(f"the peer hosts blocks {hosted} now, not {grant.blocks}")

    def _grant(self, signed: Signed, client: PeerId, session_id: bytes) -> Grant:
        parts = self._parts
        return check_capability(
            signed,
            client=client,
            session_id=session_id,
            me=parts.identity.peer_id,
            model_digest=parts.model_digest,
            max_rows=MAX_ROWS,
            now=parts.clock(),
        )

    def _neighbourhood(self, grant: Grant, relay: bool, successor_record: bytes) -> Neighbourhood:
        if grant.successor is None or relay:
            return Neighbourhood(grant, relay, ())
        return Neighbourhood(grant, relay, self._reaches_in(successor_record, grant.successor))

    def _reaches_in(self, encoded: bytes, successor: PeerId) -> tuple[Reach, ...]:
        """The addresses that the successor or its relay has signed: a client cannot make this peer dial any others."""
        parts = self._parts
        record = SignedRecord.decode(encoded)
        if record.peer_id != successor:
            raise AuthenticationError("the successor's record belongs to another peer")
        verify_record(record, parts.clock(), cache=parts.record_signatures)
        return reaches_of(open_peer_record(record, parts.swarm_key), parts.relay_addresses)
