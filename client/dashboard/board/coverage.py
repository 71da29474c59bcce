"""The map of a model: which peers serve which blocks, with replication, room, and the weakest block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....routing.place.windows import hosts_per_block, range_rows
from ....routing.swarm import BlockRange, PeerId
from .peers import PeerRow

SESSION_TOKENS = 1024
"""Free sessions are counted for requests of this length, prompt and answer together."""


@dataclass(frozen=True, slots=True)
class BlockColumn:
    """One block of the model."""

    block: int
    servers: int
    """The number of peers that chains may use for this block."""
    kv_tokens_free: int
    """Free room in this block, summed over these peers, in tokens."""
    free_sessions: int
    """How many requests of `SESSION_TOKENS` tokens fit into this block."""


@dataclass(frozen=True, slots=True)
class MapRow:
    """One peer's row of the map."""

    peer: PeerId
    short_id: str
    name: str
    state: str
    serves: bool
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class CoverageMap:
    """The map of a model: rows are peers, columns are blocks."""

    columns: tuple[BlockColumn, ...]
    rows: tuple[MapRow, ...]
    """The peers that announce blocks of the model; ranges are cut at its end."""
    weakest: BlockColumn
    """The block with the fewest servers; among these, the one with the least room, then the first."""
    missing: tuple[int, ...]
    """The blocks that no peer serves."""

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def free_sessions(self) -> int:
        """Upper bound on the requests that find room in every block; through chains fewer may fit."""
        return min(column.free_sessions for column in self.columns)


def coverage_map(num_blocks: int, peers: Sequence[PeerRow]) -> CoverageMap:
    """Return the map of a model of `num_blocks` blocks. O(peers x blocks per peer)."""
    hosting = [(peer, peer.blocks) for peer in peers if peer.blocks is not None and peer.blocks[0] < num_blocks]
    serving = [(peer, BlockRange(*blocks)) for peer, blocks in hosting if peer.serves]
    servers = hosts_per_block(range_rows(blocks for _, blocks in serving), num_blocks).tolist()
    tokens, sessions = [0] * num_blocks, [0] * num_blocks
    for peer, blocks in serving:
        room = peer.kv_tokens_free // len(blocks)
        for block in blocks:
            tokens[block] += room
            sessions[block] += room // SESSION_TOKENS
    columns = tuple(map(BlockColumn, range(num_blocks), servers, tokens, sessions))
    rows = (
        MapRow(peer.peer, peer.short_id, peer.name, peer.state, peer.serves, start, min(stop, num_blocks))
        for peer, (start, stop) in hosting
    )
    return CoverageMap(
        columns,
        tuple(rows),
        min(columns, key=lambda column: (column.servers, column.kv_tokens_free)),
        tuple(column.block for column in columns if not column.servers),
    )
