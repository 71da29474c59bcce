"""Everything that a peer's service is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...proto.directory.signed import SignatureCache, SignedRecord
from ...proto.directory.swarm_key import SwarmKey
from ...proto.identity import Identity
from ...proto.network.address import AddressesOf, nowhere
from ...proto.network.transport import Dialer
from ...proto.wire.handshake import HelloChecker
from ...routing.admit.table import SessionTable
from ...routing.nearby import Asker
from ...routing.swarm import BlockRange, Coordinate, PeerId
from ..engine.engine import Engine
from ..timing import PeerTiming
from .edge.dials import DialBudget
from .edge.opening import NameBudget
from .replay_store import ReplayStore
from .work.seams import Counters


class Hosts(Protocol):
    """Knows what the peer hosts now."""

    @property
    def blocks(self) -> BlockRange: ...


class LookupAnswer(Protocol):
    """Signed records, the most useful first, and the number of all that there are."""

    @property
    def records(self) -> Sequence[SignedRecord]: ...

    @property
    def known(self) -> int: ...


class Lookup(Protocol):
    """Looks records up."""

    async def __call__(self, name: str, network: str, asker: Asker | None = None, most: int = ..., /) -> LookupAnswer:
        """At most `most` records under a name, for an asker in a network or by chance. Raises SwarmError."""
        ...


@dataclass
class PeerParts:
    """Everything that a peer's service is made of."""

    identity: Identity
    engine: Engine
    hosting: Hosts
    sessions: SessionTable
    replay: ReplayStore
    hellos: HelloChecker
    dialer: Dialer
    model_digest: str
    model_name: str
    swarm_key: SwarmKey | None
    lookup: Lookup
    """Records from the directory that this peer is part of."""
    dht_addresses: Callable[[], list[str]]
    clock: Callable[[], float] = time.time
    timing: PeerTiming = field(default_factory=PeerTiming)
    counters: Counters = field(default_factory=Counters)
    on_admitted: Callable[[float], None] = lambda wait_seconds: None
    """Is told how long each admitted session has waited for room."""
    on_failure: Callable[[str], None] = lambda code: None
    """Is told the code of every error with which a session is refused or ends."""
    on_client: Callable[[PeerId, Coordinate], None] = lambda client, place: None
    """Is told the coordinate that the client of an admitted session states."""
    on_visit: Callable[[float], None] = lambda seconds: None
    """Is told how many seconds a step spent here besides computing, see `SessionParts`."""
    record_signatures: SignatureCache = field(default_factory=SignatureCache)
    names: NameBudget = field(default_factory=NameBudget)
    dials: DialBudget = field(default_factory=DialBudget)
    relay_addresses: AddressesOf = nowhere
    """The addresses of a successor's relays, from their own records."""
