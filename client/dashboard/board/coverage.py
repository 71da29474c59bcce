"""Which peers serve which blocks: the map of a model, its replication, its room, and its weakest block."""

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
    """Peers through which chains may lead."""
    kv_tokens_free: int
    """Room in this block at all of these, in tokens."""
    free_sessions: int
    """Requests of `SESSION_TOKENS` tokens that find room in this block."""


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
    """Rows are peers, columns are blocks."""

    columns: tuple[BlockColumn, ...]
    rows: tuple[MapRow, ...]
    """The peers that announce blocks of the model; what reaches beyond it is cut."""
    weakest: BlockColumn
    """The first of the blocks with the fewest servers; of several, with the least room."""
    missing: tuple[int, ...]
    """The blocks that no peer serves."""

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def free_sessions(self) -> int:
        """Requests for which every block has room: no more fit, and a chain may fit fewer."""
        return min(column.free_sessions for column in self.columns)


def coverage_map(num_blocks: int, peers: Sequence[PeerRow]) -> CoverageMap:
    """The map of a model of `num_blocks` blocks. O(peers x blocks per peer)."""
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
