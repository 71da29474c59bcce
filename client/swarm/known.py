"""A peer as this client knows it: what it announces, how it is reached, and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...proto.directory.records import PeerRecord
from ...proto.network.address import Reach
from ...proto.wire.messages.calls import PingReply
from .bans import Run


@dataclass(frozen=True)
class KnownPeer:
    """A peer that has a valid record and answered a ping."""

    record: PeerRecord
    encoded: bytes
    """The signed record, from which a predecessor learns how to reach it."""
    address: Reach
    rtt_seconds: float
    clock_offset_seconds: float
    """Its clock minus ours."""
    status: PingReply
    """Its last answer to a ping."""
    others: tuple[Reach, ...] = ()
    """Other ways to reach it, best first; they may not work."""

    @property
    def run(self) -> Run:
        return self.record.spec.id, self.record.incarnation

    def reached_by(self, way: Reach) -> KnownPeer:
        """Return the same peer, reached by another of its ways."""
        ways = tuple(other for other in (self.address, *self.others) if other != way)
        return replace(self, address=way, others=ways)
