"""Repairing a chain that has lost peers: the hops that still work stay, and every gap between them is filled.

Gaps are filled one after the other, in the order of their blocks, each with the cheapest chain over its blocks that
uses no peer of the chain so far.  So a repair may cost more than the cheapest chain through the same kept hops, but it
keeps all attention caches of the kept hops.  A client asks its router for every gap (`Repair` tells the blocks, and the
peers that are excluded); the simulator, which has a placement in arrays, calls `fill_gaps`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from ..perf import Segment
from ..swarm import BlockRange
from .costs import HubCosts, PeerRooms
from .lattice import Spans
from .search import ChainSearch, FoundChain

P = TypeVar("P", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Repair(Generic[P]):
    """A chain over `blocks` under repair: the hops that it has, in order of their blocks."""

    blocks: BlockRange
    hops: tuple[tuple[P, BlockRange], ...]

    @property
    def gap(self) -> BlockRange | None:
        """The first blocks that no hop computes; None if the chain is whole."""
        block = self.blocks.start
        for _, computed in self.hops:
            if block < computed.start:
                return BlockRange(block, computed.start)
            block = computed.stop
        return BlockRange(block, self.blocks.stop) if block < self.blocks.stop else None

    @property
    def peers(self) -> frozenset[P]:
        """The peers of the chain so far: none of them may be used again."""
        return frozenset(peer for peer, _ in self.hops)

    def filled(self, hops: Iterable[tuple[P, BlockRange]]) -> Repair[P]:
        """The repair with these hops in the gap. Raises ValueError if they do not cover all of it."""
        gap, chain = self.gap, tuple(sorted((*self.hops, *hops), key=lambda hop: hop[1].start))
        repair = replace(self, hops=chain)
        if gap is None or (repair.gap is not None and repair.gap.start < gap.stop):
            raise ValueError(f"hops {chain} do not fill the gap {gap}")
        return repair


def fill_gaps(spans: Spans, costs: HubCosts, rooms: PeerRooms, kept: Sequence[Segment]) -> FoundChain | None:
    """The chain made of the kept hops and the cheapest hops for every gap; None if a gap cannot be filled.

    Cost and wait are those of the new hops only: the kept ones have their room.
    """
    repair = Repair(BlockRange(0, spans.num_blocks), tuple(kept))
    cost = wait = 0.0
    while (gap := repair.gap) is not None:
        found = cheapest_over(spans, costs, rooms, gap, repair.peers)
        if found is None:
            return None
        repair = repair.filled(found.chain)
        cost, wait = cost + found.cost_seconds, max(wait, found.wait_seconds)
    return FoundChain(repair.hops, cost, wait)


def cheapest_over(
    spans: Spans, costs: HubCosts, rooms: PeerRooms, gap: BlockRange, excluded: Collection[int]
) -> FoundChain | None:
    """The cheapest chain over the blocks of `gap` without the excluded peers; None if there is none.

    Blocks are numbered as in the whole model.
    """
    start, stop = (np.clip(ends, gap.start, gap.stop) - gap.start for ends in (spans.start, spans.stop))
    out = list(excluded)
    stop[out] = start[out]
    found = ChainSearch(Spans(len(gap), start, stop), costs).cheapest(rooms)
    if found is None:
        return None
    chain = tuple((j, BlockRange(blocks.start + gap.start, blocks.stop + gap.start)) for j, blocks in found.chain)
    return replace(found, chain=chain)
