"""The vocabulary of the swarm: what a peer is, what it hosts, what a route and a placement are.

Every value here is frozen: a `Swarm` is a snapshot, decisions are pure functions over it.  Units: seconds,
bytes, tokens; blocks count from 0 and ranges are half-open.  Other units are converted where they are loaded.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NewType

PeerId = NewType("PeerId", str)
"""The base58 libp2p id of a node ("12D3KooW..."); it contains the node's public key."""


def short_id(peer: PeerId) -> str:
    """The end of a peer's id, enough for people to tell peers apart; all ids begin alike."""
    return f"..{peer[-6:]}"


@dataclass(frozen=True, order=True, slots=True)
class BlockRange:
    """A non-empty run of consecutive transformer blocks, `start` included, `stop` not."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a block range needs 0 <= start < stop, not {self.start}:{self.stop}")

    @classmethod
    def parse(cls, text: str) -> BlockRange:
        """Read "A:B" (half-open, from 0). Raises ValueError for anything else."""
        start, colon, stop = text.partition(":")
        if not (colon and start.isdecimal() and stop.isdecimal()):
            raise ValueError(f"a block range is written A:B, for example 8:16, not {text!r}")
        return cls(int(start), int(stop))

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __contains__(self, block: object) -> bool:
        return isinstance(block, int) and self.start <= block < self.stop

    def covers(self, other: BlockRange) -> bool:
        """Whether every block of `other` is in this range."""
        return self.start <= other.start and other.stop <= self.stop

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The facts of a model that placement and routing need."""

    num_blocks: int
    block_bytes: float = 0.0
    """Weights of one block, bytes, for peers that do not announce their own number; 0: unknown."""
    kv_bytes_per_token: float = 0.0
    """Attention cache of one token in one block, bytes, for the same peers; 0: unknown."""

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise ValueError(f"a model has at least one block, not {self.num_blocks}")
        for name in ("block_bytes", "kv_bytes_per_token"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of bytes, not {value}")


@dataclass(frozen=True, slots=True)
class ComputeCost:
    """Measured times of one peer, in seconds, per block and per visit.

    In one block a decode step of B rows whose contexts sum to C tokens takes
    `decode_fixed + decode_per_row * B + decode_per_context_token * C`;
    a prefill of n tokens takes `prefill_fixed + prefill_per_token * n`.
    Every step also takes `visit` once, however many blocks it uses.
    """

    decode_fixed: float
    decode_per_row: float = 0.0
    decode_per_context_token: float = 0.0
    prefill_fixed: float = 0.0
    prefill_per_token: float = 0.0
    visit: float = 0.0
    """Time from the arrival of a step to the departure of its output, without computing and without waiting for other
    sessions' steps: handing over between threads, waking up, packing and encrypting; 0: not measured."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite seconds >= 0, not {value}")

    def decode_seconds(self, rows: int = 1, context_tokens: float = 0.0) -> float:
        """Seconds that one block needs for one decode step; `context_tokens` is the sum over the rows."""
        return self.decode_fixed + self.decode_per_row * rows + self.decode_per_context_token * context_tokens

    def prefill_seconds(self, tokens: int) -> float:
        """Seconds that one block needs for a prompt of `tokens` tokens."""
        return self.prefill_fixed + self.prefill_per_token * tokens


class PeerState(enum.Enum):
    """A peer's stage of life; new sessions use SERVING peers, and DRAINING ones only for blocks that no other
    serves."""

    JOINING = "joining"
    SERVING = "serving"
    DRAINING = "draining"
    LEAVING = "leaving"


class KvRelease(NamedTuple):
    """At `at_seconds` (the snapshot's clock) another `tokens` KV tokens become free on a peer; ordered by time."""

    at_seconds: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A Vivaldi network coordinate; the RTT of two nodes is |a - b| + height_a + height_b, in seconds."""

    vector: tuple[float, ...]
    height: float = 0.0
    error: float = 1.0
    """Estimated relative error of this coordinate, 0 (exact) to 1 (unknown)."""

    def rtt_seconds(self, other: Coordinate) -> float:
        """Predicted round trip between the two nodes."""
        return math.dist(self.vector, other.vector) + self.height + other.height


@dataclass(frozen=True, slots=True)
class MoveClaim:
    """A peer's announced intention to host `blocks` instead of its present range; it stands until the peer has
    moved or withdraws it."""

    at_seconds: float
    """When the peer made the claim, on its own clock."""
    blocks: BlockRange


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """One peer as a snapshot sees it; KV tokens are counted per block (a token in k blocks counts k times)."""

    id: PeerId
    blocks: BlockRange | None
    cost: ComputeCost
    state: PeerState = PeerState.SERVING
    memory_bytes: float = 0.0
    """Memory offered for weights and attention caches together."""
    block_bytes: float = 0.0
    """Weights of one block in the peer's own format, bytes; 0: as the model says."""
    kv_bytes_per_token: float = 0.0
    """Attention cache of one token in one block in the peer's own format, bytes; 0: as the model says."""
    load_seconds: float = 0.0
    """Measured time to fetch and load one block; 0: not measured."""
    kv_tokens_total: int = 0
    """KV tokens x blocks that the peer can hold with its present blocks."""
    kv_tokens_free: int = 0
    releases: tuple[KvRelease, ...] = ()
    """When reserved KV tokens become free, ascending in time."""
    coordinate: Coordinate | None = None
    client_centroids: tuple[Coordinate, ...] = ()
    """Up to four centroids of the coordinates of clients served in the last ten minutes."""
    concurrency: float = 0.0
    """Concurrent sessions that the peer observed, averaged over the last ten minutes."""
    block_hashes: tuple[bytes, ...] = ()
    """First eight bytes of the digest of each hosted block's weights, in block order."""
    numeric_format: str = "float32"
    stream_format: str = "float32"
    """The dtype of the hidden states between its blocks: int8 weights may go with float32 or bfloat16 states."""
    max_blocks: int | None = None
    """An upper limit on hosted blocks that the operator or the hardware sets."""
    size_fixed: bool = False
    """The peer hosts `max_blocks` blocks, wherever it goes (the operator chose the number)."""
    blocks_fixed: bool = False
    """The placement rule leaves this peer where it is (the operator chose the blocks, or a move failed)."""
    claim: MoveClaim | None = None
    issued_seconds: float = 0.0
    """When the peer issued this announcement, on its own clock."""

    def __post_init__(self) -> None:
        if self.blocks is not None and self.block_hashes and len(self.block_hashes) != len(self.blocks):
            raise ValueError(f"{len(self.block_hashes)} block hashes for {len(self.blocks)} blocks")


@dataclass(frozen=True)
class Swarm:
    """A snapshot: the model and the peers that serve it, in ascending order of id.

    `rtt_seconds` holds measured round trips, keyed by (node, peer); coordinates predict the others.

    Raises ValueError if the peers are not distinct and in order, or announce blocks that the model does not have.
    """

    model: ModelSpec
    peers: tuple[PeerSpec, ...]
    now_seconds: float = 0.0
    rtt_seconds: Mapping[tuple[PeerId, PeerId], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [peer.id for peer in self.peers]
        if ids != sorted(set(ids)):
            raise ValueError("the peers of a snapshot must be distinct and in ascending order of id")
        for peer in self.peers:
            if peer.blocks is not None and peer.blocks.stop > self.model.num_blocks:
                raise ValueError(f"peer {peer.id} announces blocks {peer.blocks} of a model of {self.model.num_blocks}")

    @classmethod
    def of_announced(cls, model: ModelSpec, peers: Iterable[PeerSpec], now_seconds: float = 0.0) -> Swarm:
        """Build a snapshot from what peers announce, in any order.

        A peer that has not measured its visit yet gets the median of those that have: with 0, a newcomer would look
        faster than every known peer.
        """
        announced = sorted(peers, key=lambda peer: peer.id)
        measured = [peer.cost.visit for peer in announced if peer.cost.visit > 0]
        if measured:
            usual = statistics.median(measured)
            announced = [
                peer if peer.cost.visit > 0 else replace(peer, cost=replace(peer.cost, visit=usual))
                for peer in announced
            ]
        return cls(model, tuple(announced), now_seconds)

    def peer(self, peer_id: PeerId) -> PeerSpec:
        """The peer of that id. Raises KeyError if the snapshot has none. O(n)."""
        for peer in self.peers:
            if peer.id == peer_id:
                return peer
        raise KeyError(peer_id)


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """The demand of a request on a chain: prompt and answer lengths per row, and the room that it reserves."""

    prompt_tokens: int
    new_tokens: int
    rows: int = 1
    """Sequences computed together (batch x beams)."""
    kv_tokens: int | None = None
    """KV tokens to reserve in each block used; None: every row at its full length."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "rows", "kv_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    @property
    def kv_tokens_per_block(self) -> int:
        """KV tokens that every block of the chain reserves."""
        return self.kv_tokens if self.kv_tokens is not None else self.rows * (self.prompt_tokens + self.new_tokens)

    @property
    def mean_context_tokens(self) -> float:
        """Sum over the rows of the context length, averaged over the decode steps."""
        return self.rows * (self.prompt_tokens + self.new_tokens / 2)


@dataclass(frozen=True, slots=True)
class Hop:
    """One peer on a route and the blocks it computes there (all or a part of what it hosts)."""

    peer: PeerId
    blocks: BlockRange
    wait_seconds: float = 0.0
    """Predicted wait until the peer has room."""


@dataclass(frozen=True, slots=True)
class Route:
    """A chain of hops that computes every block once, in order."""

    hops: tuple[Hop, ...]
    cost_seconds: float
    """Predicted time of the request without waiting."""
    wait_seconds: float = 0.0
    """Predicted wait until every hop has room: the largest of the hops' waits."""
    unproven_seconds: float = 0.0
    """Bound on how much sooner any other chain may be done; 0: this one is proven to be the best."""

    @property
    def total_seconds(self) -> float:
        return self.cost_seconds + self.wait_seconds


@dataclass(frozen=True, slots=True)
class Placement:
    """Which blocks each peer should host; peers that get none are absent."""

    ranges: Mapping[PeerId, BlockRange]

    def missing_blocks(self, num_blocks: int) -> tuple[int, ...]:
        """The blocks that nobody hosts, ascending."""
        hosted = {block for blocks in self.ranges.values() for block in blocks}
        return tuple(block for block in range(num_blocks) if block not in hosted)
