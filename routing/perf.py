"""The performance and memory model: how long a request takes on a chain and what it occupies.

Source: BPRR paper (arXiv 2512.21884), section on the system model; `docs/simulator.md` has the tables.  Symbols:

    L    num_blocks             M_j   memory_bytes           tau_j    decode_seconds   (one block, one token)
    s_m  block_bytes            s_c   session_bytes          tau^I_j  prefill_seconds  (one block, whole prompt)
    l_max new_tokens            t_cj  rtt_seconds            t^I_cj   prefill_rtt_seconds

Peers and clients are rows and columns of arrays here, numbered from 0; blocks count from 0, ranges are half-open.
A floor is taken of x + 1e-9: the quantities are decimals, and 6.999999999 blocks of memory hold seven blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .swarm import BlockRange, RequestSpec, Swarm

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
PeerBytes = float | FloatArray
"""One number for all peers, or (n,) if peers hold blocks and caches in different formats."""
BoolArray = NDArray[np.bool_]

Segment = tuple[int, BlockRange]
"""One hop of a chain in array terms: the peer's index and the blocks computed there."""


def decimal_floor(value: float) -> int:
    """Floor of a quotient of decimals: a value less than 1e-9 below an integer counts as that integer."""
    return int(np.floor(value + 1e-9))


MOST_SLOTS = 2**40
"""The most slots that are counted for a peer: no request needs more, and sums over peers stay exact."""


def whole_slots(room: FloatArray) -> IntArray:
    """`decimal_floor` of rooms in sessions, from 0 to `MOST_SLOTS`, infinite rooms included."""
    return np.clip(np.floor(room + 1e-9), 0, MOST_SLOTS).astype(np.int64)


@dataclass(frozen=True)
class PerfModel:
    """Everything that placement and routing know about n peers, C clients and one kind of request.

    Arrays: (n,) per peer, (C, n) per client and peer; seconds and bytes.  Raises ValueError, naming the field, if a
    field is not finite, is negative or has the wrong shape.
    """

    num_blocks: int
    block_bytes: PeerBytes
    session_bytes: PeerBytes
    """Attention cache of one block for one session at its full length, bytes."""
    new_tokens: int
    memory_bytes: FloatArray
    block_limit: IntArray
    """The most blocks a peer may host (num_blocks if nothing limits it)."""
    decode_seconds: FloatArray
    prefill_seconds: FloatArray
    rtt_seconds: FloatArray
    """Client-peer round trip of one decoded token, including the peer's visit time; (C, n)."""
    prefill_rtt_seconds: FloatArray
    """The same for the whole prompt; (C, n)."""

    def __post_init__(self) -> None:
        if self.num_blocks < 1 or self.new_tokens < 1:
            raise ValueError("num_blocks and new_tokens must be at least 1")
        n, clients = len(self.memory_bytes), len(self.rtt_seconds)
        for name in ("block_bytes", "session_bytes"):
            value = getattr(self, name)
            if np.shape(value) not in ((), (n,)):
                raise ValueError(f"{name} has shape {np.shape(value)}, expected one number or ({n},)")
            if not (np.isfinite(value).all() and (np.asarray(value) > 0).all()):
                raise ValueError(f"{name} must be positive and finite, not {value}")
        shapes: dict[str, tuple[int, ...]] = {
            "block_limit": (n,),
            "decode_seconds": (n,),
            "prefill_seconds": (n,),
            "memory_bytes": (n,),
        }
        shapes |= {"rtt_seconds": (clients, n), "prefill_rtt_seconds": (clients, n)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
            if not (np.isfinite(array).all() and (array >= 0).all()):
                raise ValueError(f"{name} must be finite and >= 0")
        if clients < 1:
            raise ValueError("rtt_seconds needs at least one client")

    @property
    def num_peers(self) -> int:
        return len(self.memory_bytes)

    @property
    def num_clients(self) -> int:
        return len(self.rtt_seconds)

    @classmethod
    def of_swarm(cls, swarm: Swarm, *, request: RequestSpec, client_rtt_seconds: FloatArray) -> PerfModel:
        """The model of a snapshot's peers, in the snapshot's order, for requests like `request`.

        `client_rtt_seconds`: (C, n), round trip of every client to every peer; visit times are added to it.  Byte sizes
        that a peer does not announce are the model's; if the model does not know them either, the peer counts as having
        no memory, so that nothing is planned on it.
        """
        blocks = np.array([peer.block_bytes or swarm.model.block_bytes for peer in swarm.peers])
        kv = np.array([peer.kv_bytes_per_token or swarm.model.kv_bytes_per_token for peer in swarm.peers])
        known = (blocks > 0) & (kv > 0)
        rtt = np.atleast_2d(np.asarray(client_rtt_seconds, dtype=np.float64))
        visited = rtt + np.array([peer.cost.visit for peer in swarm.peers])
        limit = swarm.model.num_blocks
        return cls(
            num_blocks=limit,
            block_bytes=np.where(known, blocks, 1.0),
            session_bytes=np.where(known, kv, 1.0) * request.kv_tokens_per_block,
            new_tokens=request.new_tokens,
            memory_bytes=np.where(known, [peer.memory_bytes for peer in swarm.peers], 0.0),
            block_limit=np.array(
                [limit if peer.max_blocks is None else min(peer.max_blocks, limit) for peer in swarm.peers],
                dtype=np.int64,
            ),
            decode_seconds=np.array(
                [peer.cost.decode_seconds(request.rows, request.mean_context_tokens) for peer in swarm.peers]
            ),
            prefill_seconds=np.array(
                [peer.cost.prefill_seconds(request.rows * request.prompt_tokens) for peer in swarm.peers]
            ),
            rtt_seconds=visited,
            prefill_rtt_seconds=visited,
        )

    def without_block_limits(self) -> PerfModel:
        """The same peers, limited only by their memory."""
        return replace(self, block_limit=np.full(self.num_peers, self.num_blocks, dtype=np.int64))

    def with_another(self, like: int) -> PerfModel:
        """One more peer, equal to peer `like`, at the end."""
        block_bytes, session_bytes = (
            value if np.ndim(value) == 0 else np.append(value, np.asarray(value)[like])
            for value in (self.block_bytes, self.session_bytes)
        )
        return replace(
            self,
            block_bytes=block_bytes,
            session_bytes=session_bytes,
            memory_bytes=np.append(self.memory_bytes, self.memory_bytes[like]),
            block_limit=np.append(self.block_limit, self.block_limit[like]),
            decode_seconds=np.append(self.decode_seconds, self.decode_seconds[like]),
            prefill_seconds=np.append(self.prefill_seconds, self.prefill_seconds[like]),
            rtt_seconds=np.append(self.rtt_seconds, self.rtt_seconds[:, [like]], axis=1),
            prefill_rtt_seconds=np.append(self.prefill_rtt_seconds, self.prefill_rtt_seconds[:, [like]], axis=1),
        )

    # --- time -------------------------------------------------------------------------------------------------

    def token_hop_seconds(self, client: int) -> tuple[FloatArray, FloatArray]:
        """Per decoded token, a hop with k blocks on peer j costs `visit[j] + per_block[j] * k` (t^c_ij)."""
        return self.rtt_seconds[client], self.decode_seconds

    def request_hop_seconds(self, client: int) -> tuple[FloatArray, FloatArray]:
        """For a whole request a hop costs `visit[j] + per_block[j] * k`:
        t^I_cj + (l_max - 1) t_cj  and  tau^I_j + (l_max - 1) tau_j."""
        steps = self.new_tokens - 1
        visit = self.prefill_rtt_seconds[client] + steps * self.rtt_seconds[client]
        return visit, self.prefill_seconds + steps * self.decode_seconds

    def mean_request_hop_seconds(self) -> tuple[FloatArray, FloatArray]:
        """`request_hop_seconds` averaged over the clients."""
        steps = self.new_tokens - 1
        visit = self.prefill_rtt_seconds.mean(axis=0) + steps * self.rtt_seconds.mean(axis=0)
        return visit, self.prefill_seconds + steps * self.decode_seconds

    def first_token_seconds(self, client: int, chain: Sequence[Segment]) -> float:
        """Time to first token on a hub-and-spoke chain, without waiting and fixed delays."""
        return float(sum(self.prefill_rtt_seconds[client, j] + len(b) * self.prefill_seconds[j] for j, b in chain))

    def token_seconds(self, client: int, chain: Sequence[Segment]) -> float:
        """Time of every further token on a hub-and-spoke chain."""
        return float(sum(self.rtt_seconds[client, j] + len(blocks) * self.decode_seconds[j] for j, blocks in chain))

    def request_seconds(self, client: int, chain: Sequence[Segment]) -> float:
        """T(c, p): the whole request on a hub-and-spoke chain."""
        return self.first_token_seconds(client, chain) + (self.new_tokens - 1) * self.token_seconds(client, chain)

    def push_request_seconds(self, client: int, chain: Sequence[Segment], peer_rtt_seconds: FloatArray) -> float:
        """The whole request when each peer pushes to the next: one-way delays client -> p1 -> ... -> client.

        `peer_rtt_seconds`: (n, n); a one-way delay is half a round trip. Every token makes the trip once.
        """
        peers = [j for j, _ in chain]
        between = sum(peer_rtt_seconds[i, j] for i, j in itertools.pairwise(peers)) / 2
        ends = (self.rtt_seconds[client, peers[0]] + self.rtt_seconds[client, peers[-1]]) / 2
        prefill_ends = (self.prefill_rtt_seconds[client, peers[0]] + self.prefill_rtt_seconds[client, peers[-1]]) / 2
        prefill = prefill_ends + between + sum(len(blocks) * self.prefill_seconds[j] for j, blocks in chain)
        decode = ends + between + sum(len(blocks) * self.decode_seconds[j] for j, blocks in chain)
        return float(prefill + (self.new_tokens - 1) * decode)

    # --- memory -----------------------------------------------------------------------------------------------

    def cache_slots(self, sizes: IntArray) -> IntArray:
        """S_j: sessions x blocks that fit beside `sizes` (n,) hosted blocks; 0 where nothing is hosted."""
        room = (self.memory_bytes - self.block_bytes * sizes) / self.session_bytes
        return np.where(sizes > 0, whole_slots(room), 0)

    def full_sessions(self, sizes: IntArray) -> IntArray:
        """f_j: sessions that fit when each uses every block of the peer; 0 where nothing is hosted."""
        room = self.memory_bytes - self.block_bytes * sizes
        per_session = self.session_bytes * np.maximum(sizes, 1)
        return np.where(sizes > 0, whole_slots(room / per_session), 0)

    def used_bytes(self, sizes: IntArray, chains: Sequence[Sequence[Segment]]) -> FloatArray:
        """Memory in use on every peer with `sizes` hosted blocks and these chains running; (n,)."""
        used = self.block_bytes * sizes.astype(np.float64)
        session_bytes = np.broadcast_to(self.session_bytes, used.shape)
        for chain in chains:
            for j, blocks in chain:
                used[j] += session_bytes[j] * len(blocks)
        return used
