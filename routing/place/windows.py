"""The rules for windows, each once: which run of consecutive blocks a peer should take, and which it may leave.

The service of a block is the number of its servers, the sessions that they carry, or their throughput.  Of equally good
windows the first always wins, so that all peers choose alike.  A window of `size` blocks is named by its first block;
blocks count from 0.  The callers are CG-BP's greedy pass (cgbp.py), the online rule (rule.py, claims.py), and the
PETALS baselines (papers/).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..perf import FloatArray, IntArray
from ..swarm import BlockRange, PeerSpec, PeerState
from ..timing import RECORD_REFRESH_SECONDS

# --- counting ---------------------------------------------------------------------------------------------------


def range_rows(ranges: Iterable[BlockRange | None]) -> IntArray:
    """(n, 2): each range as a row (start, stop); 0, 0 for None."""
    rows = [(0, 0) if blocks is None else (blocks.start, blocks.stop) for blocks in ranges]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 2)


def hosts_per_block(rows: IntArray, num_blocks: int) -> IntArray:
    """(L,): how many of the ranges, (n, 2), contain each block; parts beyond the model are ignored. O(n + L)."""
    begin, end = (np.bincount(np.minimum(ends, num_blocks), minlength=num_blocks + 1) for ends in rows.T)
    return np.asarray(np.cumsum(begin - end)[:-1], dtype=np.int64)


def lasting_servers(peers: Iterable[PeerSpec], num_blocks: int) -> IntArray:
    """(L,): how many peers serve each block and will continue to: they have claimed no move that drops it."""
    servers = np.zeros(num_blocks, dtype=np.int64)
    for peer in peers:
        if peer.state is PeerState.SERVING and peer.blocks is not None:
            start, stop = peer.blocks.start, peer.blocks.stop
            if peer.claim is not None:
                start, stop = max(start, peer.claim.blocks.start), min(stop, peer.claim.blocks.stop)
            servers[start : max(start, stop)] += 1
    return servers


def leaves(peer: PeerSpec, blocks: BlockRange, refresh_seconds: float = RECORD_REFRESH_SECONDS) -> bool:
    """Whether the peer announces that it will not serve these blocks much longer.

    It drains, it has moved, or it has claimed a move and the claim has stood for a refresh (most claims that are
    withdrawn are withdrawn by then).  Both times are on the peer's own clock.
    """
    if peer.state is not PeerState.SERVING or peer.blocks is None or not peer.blocks.covers(blocks):
        return True
    claim = peer.claim
    stands = claim is not None and peer.issued_seconds - claim.at_seconds >= refresh_seconds
    return claim is not None and stands and not claim.blocks.covers(blocks)


def without_leaving_blocks(
    peers: Sequence[PeerSpec], num_blocks: int, refresh_seconds: float = RECORD_REFRESH_SECONDS
) -> tuple[PeerSpec, ...]:
    """The peers for new sessions: each with the blocks that it will keep, if others serve those that it will drop.

    A draining peer keeps the blocks that nobody else serves, and those between them: it waits for a successor, and
    announces no room once it takes no more sessions.
    """
    servers = lasting_servers(peers, num_blocks)
    kept: list[PeerSpec] = []
    for peer in peers:
        blocks = peer.blocks
        rest = None if blocks is None else _rest(peer, blocks, servers, refresh_seconds)
        if rest == blocks:
            kept.append(peer)
        elif rest is not None and blocks is not None:
            hashes = peer.block_hashes[rest.start - blocks.start : rest.stop - blocks.start]
            kept.append(replace(peer, blocks=rest, block_hashes=hashes))
    return tuple(kept)


def _rest(peer: PeerSpec, blocks: BlockRange, servers: IntArray, refresh_seconds: float) -> BlockRange | None:
    """The part of a peer's blocks that new sessions may use, given the lasting servers of each block."""
    if peer.state is PeerState.DRAINING:
        alone = [block for block in blocks if servers[block] == 0 and peer.kv_tokens_total > 0]
        return BlockRange(alone[0], alone[-1] + 1) if alone else None
    if peer.claim is None or not leaves(peer, blocks, refresh_seconds):
        return blocks
    if not is_safe_to_leave(servers, blocks, peer.claim.blocks):
        return blocks
    start, stop = max(blocks.start, peer.claim.blocks.start), min(blocks.stop, peer.claim.blocks.stop)
    return BlockRange(start, stop) if start < stop else None


def window_sums(values: NDArray[np.generic], size: int) -> FloatArray | IntArray:
    """(L - size + 1,): the sum of every window."""
    sums = np.concatenate(([0], np.cumsum(values)))
    return np.asarray(sums[size:] - sums[:-size])


# --- where to go ------------------------------------------------------------------------------------------------


def most_uncovered_window(uncovered: NDArray[np.bool_], size: int) -> int:
    """The window with the most uncovered blocks."""
    return int(np.argmax(window_sums(uncovered, size)))


def least_served_window(service: Sequence[float] | NDArray[np.generic], size: int) -> int:
    """The window whose service per block, sorted ascending, is lexicographically smallest. O(L size log size).

    So the window with the worst-served block wins; of equal ones the one with the worse second-worst block, and so on.
    `service`, (L,), is any measure of the service of a block: peers, sessions, throughput.
    """
    ascending = np.sort(np.lib.stride_tricks.sliding_window_view(np.asarray(service), size), axis=1)
    best = np.arange(len(ascending))
    for rank in range(size):
        column = ascending[best, rank]
        best = best[column == column.min()]
        if len(best) == 1:
            break
    return int(best[0])


# --- what may be left -------------------------------------------------------------------------------------------


def added_blocks(before: IntArray, after: IntArray) -> IntArray:
    """How many blocks of `after` are not in `before`, row by row of (..., 2) ranges."""
    low, high = np.maximum(before[..., 0], after[..., 0]), np.minimum(before[..., 1], after[..., 1])
    return np.asarray(after[..., 1] - after[..., 0] - np.maximum(high - low, 0))


def is_safe_to_leave(others: IntArray, before: BlockRange | None, after: BlockRange) -> bool:
    """Whether every block that a peer drops, by hosting `after` instead of `before`, keeps a server.

    `others`, (L,): servers of each block besides the peer itself.
    """
    return all(others[block] > 0 for block in before or () if block not in after)


def safe_starts(others: IntArray, before: BlockRange, size: int) -> NDArray[np.bool_]:
    """(L - size + 1,): `is_safe_to_leave` for every window of `size` blocks. O(L)."""
    critical = np.concatenate(([0], np.cumsum(others < 1)))
    starts = np.arange(len(others) - size + 1)
    low = np.maximum(starts, before.start)
    high = np.maximum(low, np.minimum(starts + size, before.stop))
    return np.asarray(critical[high] - critical[low] == critical[before.stop] - critical[before.start])
