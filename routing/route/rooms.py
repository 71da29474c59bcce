"""The room that a snapshot's peers announce, in arrays: free KV tokens now, and the releases to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..perf import FloatArray, IntArray
from ..swarm import PeerSpec, Swarm

_INFINITY = float("inf")
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Releases:
    """When the peers' reserved KV tokens become free, by peer and then by time; parallel arrays."""

    owner: IntArray
    delay: FloatArray
    """Seconds from the snapshot's time, >= 0."""
    tokens: IntArray
    freed: IntArray
    """Tokens that this release and the owner's earlier ones make free together."""
    first: IntArray
    """(n + 1,): peer j's releases are first[j] to first[j + 1]."""

    @classmethod
    def of(cls, swarm: Swarm, peers: Sequence[PeerSpec]) -> Releases:
        rows = sorted(
            (j, max(r.at_seconds - swarm.now_seconds, 0.0), r.tokens) for j, p in enumerate(peers) for r in p.releases
        )
        owner = np.array([row[0] for row in rows], dtype=np.int64)
        tokens = np.array([row[2] for row in rows], dtype=np.int64)
        first = np.searchsorted(owner, np.arange(len(peers) + 1))
        total = np.concatenate(([0], np.cumsum(tokens)))
        delay = np.array([row[1] for row in rows], dtype=np.float64)
        return cls(owner, delay, tokens, total[1:] - total[first[owner]], first)


@dataclass(frozen=True)
class SnapshotRooms:
    """The announced room of a snapshot's peers, for a request of `need` KV tokens per block.

    The `TabulatedRooms` of the search: for each peer the answers of `releases.Room`, in arrays.
    """

    need: int
    free: IntArray
    """(n,); 0 for a peer that may not be used."""
    usable: BoolArray
    releases: Releases

    def blocks_within(self, wait_seconds: float) -> IntArray:
        freed = self.releases.tokens * (self.releases.delay <= wait_seconds)
        available = self.free + np.bincount(self.releases.owner, weights=freed, minlength=len(self.free))
        blocks: IntArray = np.where(self.usable, np.maximum(available, 0), 0).astype(np.int64) // self.need
        return blocks

    def wait_seconds(self, peer: int, blocks: int) -> float:
        missing = blocks * self.need - int(self.free[peer])
        if missing <= 0:
            return 0.0
        mine = slice(self.releases.first[peer], self.releases.first[peer + 1])
        index = int(np.searchsorted(self.releases.freed[mine], missing))
        delays = self.releases.delay[mine]
        return float(delays[index]) if index < len(delays) and self.usable[peer] else _INFINITY

    def waits(self, longest: int) -> FloatArray:
        """Each row is a run of zeros, of every release's delay in order of time, and of infinities."""
        peers, releases = np.arange(len(self.free)), self.releases
        owner = np.concatenate((peers, releases.owner, peers))
        delay = np.concatenate((np.zeros(len(peers)), releases.delay, np.full(len(peers), np.inf)))
        available = np.concatenate((self.free, self.free[releases.owner] + releases.freed))
        room = np.concatenate((np.clip(available // self.need, 0, longest), np.full(len(peers), longest)))
        order = np.argsort(owner, kind="stable")
        ends = owner[order] * longest + room[order]
        waits = np.repeat(delay[order], np.diff(ends, prepend=0)).reshape(len(peers), longest)
        waits[~self.usable] = np.inf
        return waits
