"""Puts together all parts of a peer's reach: the ways to it, and its services to others."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from ...proto.directory.records import MAX_RELAY_PLACES, PeerRecord
from ...proto.errors import SwarmError
from ...proto.network.address import PeerAddress, Reach, RelayedAddress
from ...proto.network.transport import Dialer, Handlers
from ...proto.wire.handshake import HelloChecker
from ...proto.wire.messages.opening import Signed
from ...routing.swarm import PeerId, PeerState
from ..config import RelayQuota
from ..timing import PeerTiming
from .ask import ReachAsker
from .checker import ReachChecker
from .keeper import RelayKeeper
from .reach import Listening, OwnReach
from .relay import RelayService
from .table import RelayTable
from .verdict import ReachVerdict


@dataclass(frozen=True)
class ReachNeeds:
    """The parts of a peer on which its reach depends."""

    own: PeerId
    listening: Listening
    quota: RelayQuota | None
    """The relaying that it offers; None: none."""
    initial_peers: Sequence[PeerAddress]
    others: Callable[[], Awaitable[Sequence[PeerRecord]]]
    """Looks up the records of other peers; raises SwarmError."""
    dialer: Dialer
    introduce: Callable[[PeerId], Signed]
    """Signs a hello."""
    hellos: HelloChecker
    handshake: Callable[[], AbstractAsyncContextManager[None]]
    clock: Callable[[], float]
    """Monotonic seconds."""
    rng: random.Random
    timing: PeerTiming
    first: ReachVerdict


class PeerReach:
    """The ways to this peer, the relaying that it offers, and the checks that it makes for others."""

    def __init__(self, needs: ReachNeeds, on_change: Callable[[], None]) -> None:
        """`on_change` is called when another reach should be announced."""
        self._needs = needs
        asker = ReachAsker(self._checkers, needs.dialer, needs.introduce, needs.rng, needs.timing)
        self.keeper = RelayKeeper(
            needs.own, self._relay_offers, needs.dialer, needs.introduce, self._note_relays, needs.clock, needs.rng,
            needs.timing,
        )  # fmt: skip
        self.ways = OwnReach(
            needs.listening, asker.ask, self.keeper, self._note_ways, needs.clock, needs.timing, needs.first
        )
        self._on_change = on_change
        self._checker = ReachChecker(needs.hellos, needs.dialer, self._is_direct, needs.clock, needs.timing)
        self.relay = self._make_relay(needs)

    def _make_relay(self, needs: ReachNeeds) -> RelayService | None:
        if needs.quota is None:
            return None
        table = RelayTable(needs.own, needs.quota)
        return RelayService(table, needs.hellos, needs.handshake, self._is_direct, needs.clock, needs.timing)

    def serving(self, handlers: Handlers) -> Handlers:
        """Return the handlers of a peer, with those of the calls about reach added."""
        relay = self.relay.handlers if self.relay is not None else None
        return replace(handlers, reach=self._checker.check, relay=relay)

    @property
    def relay_places(self) -> int:
        """The number of places that are free here."""
        if self.relay is None or not self.ways.direct:
            return 0
        return min(max(0, self.relay.table.free), MAX_RELAY_PLACES)

    @property
    def address(self) -> Reach | None:
        """The best way to this peer, for people."""
        if self.ways.addresses:
            return PeerAddress(self._needs.own, self.ways.addresses[0])
        nearest = self.keeper.nearest
        return RelayedAddress(self._needs.own, nearest) if nearest is not None else None

    @property
    def readings(self) -> dict[str, float]:
        """The readings for the metrics."""
        table = self.relay.table if self.relay is not None else None
        return {
            "reached_directly": float(self.ways.direct),
            "relays_in_use": len(self.ways.relays),
            "relayed_peers": table.peers if table is not None else 0,
            "relayed_connections": table.connections if table is not None else 0,
            "relayed_bytes": table.relayed_bytes if table is not None else 0,
        }

    async def run(self) -> None:
        """Keep the ways to this peer until cancelled."""
        await self.ways.run()

    def _is_direct(self) -> bool:
        return self.ways.direct

    def _note_relays(self) -> None:
        self.ways.note_relays()

    def _note_ways(self) -> None:
        if self.relay is not None and not self.ways.direct:
            self.relay.stop()
        self._on_change()

    async def _checkers(self) -> list[PeerAddress]:
        """One address of each peer that has any; the initial peers, which are known to answer, at the given address."""
        found = {address.peer: address for address in self._needs.initial_peers}
        try:
            others = await self._needs.others()
        except SwarmError:
            others = []
        for record in others:
            if record.addresses:
                found.setdefault(record.spec.id, PeerAddress(record.spec.id, record.addresses[0]))
        found.pop(self._needs.own, None)
        return list(found.values())

    async def _relay_offers(self) -> list[PeerAddress]:
        return [
            PeerAddress(record.spec.id, record.addresses[0])
            for record in await self._needs.others()
            if record.relay_places > 0 and record.addresses and record.spec.state is PeerState.SERVING
        ]
