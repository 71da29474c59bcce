"""Hosts worth recommending to a node, or worth a ping: the best few of every block, seen from the node's position.

The cost of a block on a peer is its computation plus its share of a visit, which is the round trip and the peer's visit
time.  The cheapest host of every block comes first, then the second cheapest, and so on (`cover`).  If many nodes ask
from one place, they must not all be sent to the same hosts: each sees every cost increased by up to a half (`SPREAD`),
by a factor derived from its own name and the peer's, so that a node that asks twice, or asks two peers, gets the same
answer.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .coordinates import DIMENSIONS, is_plausible, point_of, rtts_to
from .swarm import Coordinate, PeerSpec, PeerState
from .timing import LEAVING_PENALTY_SECONDS, UNKNOWN_RTT_SECONDS

FloatArray = NDArray[np.float64]

SPREAD = 0.5
"""The largest fraction by which a peer's cost is increased for one node and not for another."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A node that asks for the best hosts for it."""

    name: str
    """Any text; equal names get equal answers."""
    place: Coordinate | None
    """Its coordinate, with our dimensions; None: not known yet."""


def cover(ranges: Sequence[tuple[int, int]], num_blocks: int, hosts_per_block: int, most: int) -> list[int]:
    """Choose ranges so that first each block has one host, then a second one, and so on; returns their indices.

    `ranges` (start, stop) are in order of preference; only blocks below `num_blocks` count.  At most `most` are chosen.
    O(n * hosts_per_block) at worst; a round ends when every block has a host, as far as there are any.
    """
    inside = [range(start, min(stop, num_blocks)) for start, stop in ranges]
    change = [0] * (num_blocks + 1)
    for blocks in inside:
        if blocks:
            change[blocks.start] += 1
            change[blocks.stop] -= 1
    possible = list(itertools.accumulate(change[:-1]))
    hosts, chosen, left = [0] * num_blocks, list[int](), list(range(len(ranges)))
    for wanted in range(1, hosts_per_block + 1):
        short = sum(count < min(wanted, most_hosts) for count, most_hosts in zip(hosts, possible, strict=True))
        others = []
        for number, index in enumerate(left):
            if not short or len(chosen) == most:
                others += left[number:]
                break
            if not any(hosts[block] < wanted for block in inside[index]):
                others.append(index)
                continue
            chosen.append(index)
            for block in inside[index]:
                short -= hosts[block] == wanted - 1
                hosts[block] += 1
        left = others
        if not left or len(chosen) == most:
            break
    return chosen


@dataclass(frozen=True)
class HostTable:
    """The serving peers of one look, in arrays, so that a query over thousands of them takes about a millisecond.

    An implausible coordinate counts as none: `UNKNOWN_RTT_SECONDS` is assumed.
    """

    num_blocks: int
    indices: tuple[int, ...]
    """Each host's index in the sequence that the table was built from."""
    ranges: tuple[tuple[int, int], ...]
    own_seconds: FloatArray
    """(n,): computation of a block plus its share of the peer's visit time."""
    blocks: FloatArray
    """(n,): the number of blocks that each hosts."""
    points: FloatArray
    """(n, DIMENSIONS + 1): vector and height; NaN if no position is known."""
    marks: NDArray[np.uint64]
    """(n,): a hash of the id."""

    @classmethod
    def of(cls, specs: Sequence[PeerSpec], num_blocks: int) -> HostTable:
        """The table of the peers that serve some of the model's blocks."""
        hosts = [(i, spec, spec.blocks) for i, spec in enumerate(specs) if spec.blocks is not None and _serves(spec)]
        inside = [(i, spec, blocks) for i, spec, blocks in hosts if blocks.start < num_blocks]
        unknown = np.full((1, DIMENSIONS + 1), np.nan)
        points = [
            point_of(spec.coordinate) if spec.coordinate is not None and is_plausible(spec.coordinate) else unknown
            for _, spec, _ in inside
        ]
        return cls(
            num_blocks,
            tuple(i for i, _, _ in inside),
            tuple((blocks.start, blocks.stop) for _, _, blocks in inside),
            np.array([
                spec.cost.decode_seconds() + spec.cost.visit / len(blocks)
                + (LEAVING_PENALTY_SECONDS if spec.state is PeerState.DRAINING else 0.0)
                for _, spec, blocks in inside
            ]),
            np.array([len(blocks) for _, _, blocks in inside], dtype=np.float64),
            np.concatenate([np.empty((0, DIMENSIONS + 1)), *points]),
            np.array([_mark(spec.id) for _, spec, _ in inside], dtype=np.uint64),
        )  # fmt: skip

    def best(self, asker: Asker, hosts_per_block: int, most: int) -> list[int]:
        """At most `most` of the peers, as indices into the original sequence, the most useful first."""
        order = np.argsort(self._seconds(asker), kind="stable")
        taken = cover([self.ranges[i] for i in order], self.num_blocks, hosts_per_block, most)
        return [self.indices[order[i]] for i in taken]

    def _seconds(self, asker: Asker) -> FloatArray:
        """(n,): the cost of a block on each host, as this node sees it."""
        rtt = np.full(len(self.indices), np.nan)
        if asker.place is not None:
            rtt = rtts_to(self.points, asker.place)
        rtt = np.where(np.isnan(rtt), UNKNOWN_RTT_SECONDS, rtt)
        seconds = self.own_seconds + rtt / self.blocks
        return np.asarray(seconds * (1.0 + SPREAD * _uniform(self.marks ^ np.uint64(_mark(asker.name)))))


def _serves(spec: PeerSpec) -> bool:
    return spec.state in (PeerState.SERVING, PeerState.DRAINING)


def _mark(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="replace")).digest()[:8], "little")


def _uniform(marks: NDArray[np.uint64]) -> FloatArray:
    """Numbers from 0 to 1, one for each mark (the finalizer of splitmix64)."""
    mixed = marks
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) / 2.0**64)
