"""The peers that this client knows, and the blocks that it has seen served at once since it started."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

from ...proto.directory.records import PeerRecord
from ...proto.network.address import Reach
from ...proto.wire.messages.calls import PingReply
from ...proto.wire.precision import precision_rank
from ...routing.swarm import BlockRange, PeerSpec, PeerState
from .bans import Run


@dataclass(frozen=True)
class KnownPeer:
    """A peer that has a valid record and answered a ping: its announcement, addresses and measurements."""

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


class SeenRuns:
    """The longest runs of consecutive blocks that were served at once, for each precision."""

    def __init__(self) -> None:
        self._runs: dict[int, list[BlockRange]] = {}
        """By the rank of the least precise peer; none is part of another one, so there are at most `num_blocks`."""

    def note(self, peers: Iterable[PeerSpec]) -> None:
        """Remember the peers of one look that may be used. O(peers log peers)."""
        serving = [(precision_rank(peer.numeric_format), peer.blocks) for peer in peers if _serves(peer)]
        for rank in {rank for rank, _ in serving}:
            for run in _runs_in(blocks for other, blocks in serving if other >= rank and blocks is not None):
                seen = self._runs.setdefault(rank, [])
                if not any(longer.covers(run) for longer in seen):
                    seen[:] = [*(other for other in seen if not run.covers(other)), run]

    def covers(self, blocks: BlockRange, min_precision: str | None = None) -> bool:
        """Return whether all of `blocks` were served in one look, at least as precisely as `min_precision`."""
        least = precision_rank(min_precision) if min_precision is not None else min(self._runs, default=0)
        return any(run.covers(blocks) for rank, runs in self._runs.items() if rank >= least for run in runs)


def _serves(peer: PeerSpec) -> bool:
    return peer.blocks is not None and peer.state in (PeerState.SERVING, PeerState.DRAINING)


def _runs_in(ranges: Iterable[BlockRange]) -> list[BlockRange]:
    """Join the ranges that touch or overlap."""
    runs: list[BlockRange] = []
    for blocks in sorted(ranges, key=attrgetter("start")):
        if runs and blocks.start <= runs[-1].stop:
            runs[-1] = BlockRange(runs[-1].start, max(runs[-1].stop, blocks.stop))
        else:
            runs.append(blocks)
    return runs
