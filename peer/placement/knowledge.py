"""The swarm as a peer knows it: the records that it has read, as long as they count in plans.

Records get lost, so a peer counts for a while after its record has expired (`peer_memory_seconds`).  But the data plane
knows better: a peer whose next record is overdue is pinged, and if it does not answer it is taken for gone.  No I/O
here; `SwarmWatch` reads and pings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...proto.directory.records import PeerRecord
from ...proto.wire.timing import OVERDUE_REFRESHES
from ...routing.place.moves import ClaimTiming
from ...routing.swarm import ModelSpec, PeerId, PeerSpec, PeerState, Swarm

MAX_REMEMBERED = 2000


@dataclass(frozen=True, slots=True)
class _Remembered:
    record: PeerRecord
    is_gone: bool = False
    """Its record was overdue, and it did not answer."""


class SwarmKnowledge:
    """The newest record of each other peer. Bounded."""

    def __init__(self, own: PeerId, num_blocks: int, timing: ClaimTiming) -> None:
        self._own = own
        self._num_blocks = num_blocks
        self._timing = timing
        self._peers: dict[PeerId, _Remembered] = {}

    def read(self, records: Iterable[PeerRecord], now_seconds: float) -> None:
        """Take in the records of one look, except this peer's own and those with blocks that the model does not have.

        If there are too many, peers of this look are kept before others, known ones before new ones, and then the
        newest: ids cost nothing, and a crowd of them must not displace known peers.
        """
        known_before, found = set(self._peers), set[PeerId]()
        for record in records:
            spec = record.spec
            if spec.id == self._own or not self._fits(spec):
                continue
            found.add(spec.id)
            # A clock that is ahead must not make a record outlive its peer.
            issued = min(spec.issued_seconds, now_seconds + self._timing.clock_tolerance_seconds)
            known = self._peers.get(spec.id)
            if known is None or known.record.spec.issued_seconds < issued:
                self._peers[spec.id] = _Remembered(replace(record, spec=replace(spec, issued_seconds=issued)))
        oldest = now_seconds - self._timing.peer_memory_seconds
        lasting = [r for r in self._peers.values() if r.record.spec.issued_seconds > oldest]

        def rank(remembered: _Remembered) -> tuple[bool, bool, float]:
            spec = remembered.record.spec
            return spec.id not in found, spec.id not in known_before, -spec.issued_seconds

        self._peers = {r.record.spec.id: r for r in sorted(lasting, key=rank)[:MAX_REMEMBERED]}

    def overdue(self, now_seconds: float) -> list[PeerRecord]:
        """Return the records of peers that should have been announced again by now and are not known to be gone."""
        oldest = now_seconds - OVERDUE_REFRESHES * self._timing.refresh_seconds
        return [r.record for r in self._peers.values() if not r.is_gone and r.record.spec.issued_seconds < oldest]

    def gone(self, peer: PeerId) -> None:
        """Note that the peer does not answer: it is left out until a newer record of it is read."""
        if peer in self._peers:
            self._peers[peer] = replace(self._peers[peer], is_gone=True)

    @property
    def records(self) -> tuple[PeerRecord, ...]:
        """The records of peers that are not gone, in ascending order of id."""
        return tuple(self._peers[peer].record for peer in sorted(self._peers) if not self._peers[peer].is_gone)

    def snapshot(self, own: PeerSpec, now_seconds: float) -> Swarm:
        """Return the swarm to plan with; `own` is this peer as it is now."""
        others = [record.spec for record in self.records if record.spec.state is not PeerState.LEAVING]
        return Swarm.of_announced(ModelSpec(self._num_blocks), [*others, own], now_seconds)

    def _fits(self, spec: PeerSpec) -> bool:
        claimed = spec.claim.blocks if spec.claim is not None else None
        return all(blocks is None or blocks.stop <= self._num_blocks for blocks in (spec.blocks, claimed))
