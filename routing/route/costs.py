"""The two quantities that the search weighs: the cost of a chain, and a request's wait for room on its peers.

Costs are hub-and-spoke (every hop is a round trip from the client) or push (one-way delays client -> p1 -> ... ->
client).  The wait on a peer is a step function of the number of blocks used there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ..perf import FloatArray, IntArray, Segment
from .lattice import Lattice


@dataclass(frozen=True)
class HubCosts:
    """Hub-and-spoke: a hop of k blocks at peer j costs `visit[j] + per_block[j] * k` seconds; arrays (n,)."""

    visit: FloatArray
    per_block: FloatArray

    def chain_seconds(self, chain: Sequence[Segment]) -> float:
        """Cost of a chain, seconds."""
        return math.fsum(float(self.visit[j] + self.per_block[j] * len(blocks)) for j, blocks in chain)


@dataclass(frozen=True)
class PushCosts:
    """Push: `enter[first] + trips * between[i, j]... + leave[last] + per_block[j] * k...` seconds; (n,) and (n, n).

    The diagonal of `between` is infinite: a peer does not follow itself.  `trips` > 0.
    """

    enter: FloatArray
    per_block: FloatArray
    leave: FloatArray
    between: FloatArray
    lattice: Lattice
    """Compiled from the spans and `between`."""
    trips: float
    visit: FloatArray | None = None
    """(n,): additional seconds of a hop; None: nothing."""

    def chain_seconds(self, chain: Sequence[Segment]) -> float:
        """Cost of a chain, seconds."""
        peers = [j for j, _ in chain]
        terms = [float(self.per_block[j] * len(blocks)) for j, blocks in chain]
        terms += [float(self.visit[j]) for j in peers] if self.visit is not None else []
        terms += [self.trips * float(self.between[i, j]) for i, j in itertools.pairwise(peers)]
        return math.fsum([*terms, float(self.enter[peers[0]]), float(self.leave[peers[-1]])])


class PeerRooms(Protocol):
    """The peers' free room over time, as one request sees it."""

    def blocks_within(self, wait_seconds: float) -> IntArray:
        """(n,): how many blocks of the request each peer has room for after waiting at most that long."""
        ...

    def wait_seconds(self, peer: int, blocks: int) -> float:
        """Seconds until the peer has room for that many blocks; infinite if never."""
        ...


@runtime_checkable
class TabulatedRooms(PeerRooms, Protocol):
    """Rooms that can tabulate the waits of all peers at once, which makes the search fast in large swarms."""

    def waits(self, longest: int) -> FloatArray:
        """(n, longest): `wait_seconds(peer, blocks)` at [peer, blocks - 1]."""
        ...


def tabulated_waits(rooms: PeerRooms, most_blocks: IntArray, lengths: IntArray) -> FloatArray:
    """(n, longest): the wait of every peer for 1, 2, ... blocks, (peer, blocks) at [peer, blocks - 1].

    Taken from `TabulatedRooms.waits` if the rooms have it; else asked for one by one, within each peer's range.
    """
    longest = int(lengths.max())
    if isinstance(rooms, TabulatedRooms):
        return rooms.waits(longest)
    table = np.full((len(lengths), longest), np.inf)
    free, most = np.minimum(rooms.blocks_within(0.0), lengths), np.minimum(most_blocks, lengths)
    table[np.arange(1, longest + 1) <= free[:, None]] = 0.0
    for j in np.flatnonzero(free < most).tolist():
        blocks = np.arange(free[j] + 1, most[j] + 1).tolist()
        table[j, free[j] : most[j]] = [rooms.wait_seconds(j, k) for k in blocks]
    return table
