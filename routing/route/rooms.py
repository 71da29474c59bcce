"""The room that a snapshot's peers announce, in arrays: free KV tokens now, and the releases to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..perf import BoolArray, FloatArray, IntArray
from ..swarm import PeerSpec

_INFINITY = float("inf")


@dataclass(frozen=True)
class Releases:
    """When the peers' reserved KV tokens become free, by peer and then by time; parallel arrays."""

    owner: IntArray
    at_seconds: FloatArray
    """On the snapshot's clock."""
    tokens: IntArray
    freed: IntArray
    """Tokens that this release and the owner's earlier ones free together."""
    first: IntArray
    """(n + 1,): peer j's releases are first[j] to first[j + 1]."""

    @classmethod
    def of(cls, peers: Sequence[PeerSpec]) -> Releases:
        owner = np.repeat(np.arange(len(peers)), [len(peer.releases) for peer in peers])
        rows = [release for peer in peers for release in peer.releases]
        at_seconds = np.array([row.at_seconds for row in rows], dtype=np.float64)
        return cls.sorted(len(peers), owner, at_seconds, np.array([row.tokens for row in rows], dtype=np.int64))

    @classmethod
    def sorted(cls, num_peers: int, owner: IntArray, at_seconds: FloatArray, tokens: IntArray) -> Releases:
        """Build from releases in any order."""
        order = np.lexsort((tokens, at_seconds, owner))
        owner, at_seconds, tokens = owner[order], at_seconds[order], tokens[order]
        first = np.searchsorted(owner, np.arange(num_peers + 1))
        total = np.concatenate(([0], np.cumsum(tokens)))
        return cls(owner, at_seconds, tokens, total[1:] - total[first[owner]], first)

    def replaced(self, only: Mapping[int, tuple[float, int]]) -> Releases:
        """A copy in which each peer in `only` has just one release: (moment, tokens)."""
        if not only:
            return self
        others = ~np.isin(self.owner, list(only))
        at_seconds, tokens = zip(*only.values(), strict=True)
        return Releases.sorted(
            len(self.first) - 1,
            np.append(self.owner[others], np.array(list(only), dtype=np.int64)),
            np.append(self.at_seconds[others], at_seconds),
            np.append(self.tokens[others], np.array(tokens, dtype=np.int64)),
        )


@dataclass(frozen=True)
class SnapshotRooms:
    """The announced room of a snapshot's peers at one moment, for a request of `need` KV tokens per block.

    It implements the search's `TabulatedRooms`: for each peer the answers of `releases.Room`, in arrays.
    """

    need: int
    free: IntArray
    """(n,); 0 for a peer that may not be used."""
    usable: BoolArray
    releases: Releases
    now_seconds: float

    @cached_property
    def delay(self) -> FloatArray:
        """Per release: seconds from now, >= 0."""
        return np.maximum(self.releases.at_seconds - self.now_seconds, 0.0)

    def blocks_within(self, wait_seconds: float) -> IntArray:
        freed = self.releases.tokens * (self.delay <= wait_seconds)
        available = self.free + np.bincount(self.releases.owner, weights=freed, minlength=len(self.free))
        blocks: IntArray = np.where(self.usable, np.maximum(available, 0), 0).astype(np.int64) // self.need
        return blocks

    def wait_seconds(self, peer: int, blocks: int) -> float:
        missing = blocks * self.need - int(self.free[peer])
        if missing <= 0:
            return 0.0
        mine = slice(self.releases.first[peer], self.releases.first[peer + 1])
        index = int(np.searchsorted(self.releases.freed[mine], missing))
        delays = self.delay[mine]
        return float(delays[index]) if index < len(delays) and self.usable[peer] else _INFINITY

    def waits(self, longest: int) -> FloatArray:
        """Each row is a run of zeros, then of the releases' delays in order of time, then of infinities."""
        peers, releases = np.arange(len(self.free)), self.releases
        owner = np.concatenate((peers, releases.owner, peers))
        delay = np.concatenate((np.zeros(len(peers)), self.delay, np.full(len(peers), np.inf)))
        available = np.concatenate((self.free, self.free[releases.owner] + releases.freed))
        room = np.concatenate((np.clip(available // self.need, 0, longest), np.full(len(peers), longest)))
        order = np.argsort(owner, kind="stable")
        ends = owner[order] * longest + room[order]
        waits = np.repeat(delay[order], np.diff(ends, prepend=0)).reshape(len(peers), longest)
        waits[~self.usable] = np.inf
        return waits
