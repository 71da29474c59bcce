"""The snapshot as the online rule sees it: the peers that stay, in arrays, and everything derived from the snapshot.

Symbols as in cgbp.py: R concurrency, m_j sizes, t~_j amortised, f_j sessions, C_b capacities.  Ranges are rows
(start, stop) of an (n, 2) array; 0, 0 for a peer that hosts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..perf import FloatArray, IntArray, PerfModel
from ..swarm import BlockRange, PeerId, PeerSpec, PeerState, Swarm
from .cgbp import conservative_sizes, greedy_order
from .demand import client_rtt_seconds, clients_of, concurrency_of
from .loaded import RequestTimes, request_times
from .moves import Move, Reason, ReplanPolicy
from .windows import added_blocks, hosts_per_block, is_safe_to_leave, lasting_servers, range_rows


@dataclass(frozen=True)
class PlanningView:
    """The peers that stay, in the snapshot's order, with everything that the rule derives from the snapshot.

    Ranges are rows (start, stop) of an (n, 2) array; 0, 0 for a peer that hosts nothing.
    """

    policy: ReplanPolicy
    peers: tuple[PeerSpec, ...]
    model: PerfModel
    client_weights: FloatArray
    concurrency: int
    """R."""
    sizes: IntArray
    """m_j for R; a peer that has no room for R sessions at one block hosts one block all the same, and a peer of fixed
    size as many as its operator chose."""
    amortised: FloatArray
    order: tuple[int, ...]
    ranges: IntArray
    """The range of each peer once all claimed moves are made."""
    holders: IntArray
    """How many peers serve each block and have not claimed to drop it, (L,)."""

    @classmethod
    def of(cls, swarm: Swarm, policy: ReplanPolicy) -> PlanningView | None:
        """The view of a snapshot; None if no peer stays."""
        staying = tuple(peer for peer in swarm.peers if peer.state in (PeerState.JOINING, PeerState.SERVING))
        if not staying:
            return None
        clients = clients_of(swarm)
        model = PerfModel.of_swarm(
            replace(swarm, peers=staying),
            request=policy.request,
            client_rtt_seconds=client_rtt_seconds(clients, staying),
        )
        concurrency = concurrency_of(model, np.array([peer.concurrency for peer in staying]))
        return cls.over(policy, staying, model, np.array(clients.weights or (1.0,)), concurrency)

    @classmethod
    def over(
        cls,
        policy: ReplanPolicy,
        peers: tuple[PeerSpec, ...],
        model: PerfModel,
        client_weights: FloatArray,
        concurrency: int,
    ) -> PlanningView:
        """The view of peers whose times, clients and R are known; `model` has them in the same order."""
        sizes = np.maximum(conservative_sizes(model, concurrency), np.minimum(conservative_sizes(model, 1), 1))
        chosen = np.array([peer.size_fixed for peer in peers]) & (
            model.block_limit * model.block_bytes <= model.memory_bytes
        )
        sizes = np.where(chosen, model.block_limit, sizes)
        farthest = model.rtt_seconds.max(axis=0)
        amortised = np.where(sizes > 0, farthest / np.maximum(sizes, 1) + model.decode_seconds, np.inf)
        return cls(
            policy=policy,
            peers=peers,
            model=model,
            client_weights=client_weights,
            concurrency=concurrency,
            sizes=sizes,
            amortised=amortised,
            order=greedy_order(amortised),
            ranges=range_rows(map(_hosted_then, peers)),
            holders=lasting_servers(peers, model.num_blocks),
        )

    def with_peers(self, changed: Mapping[PeerId, PeerSpec]) -> PlanningView:
        """The view of the snapshot in which these of its peers have other blocks, claims, or states that stay.

        Clients, times, R and sizes do not depend on these, so this costs little. Raises KeyError for another peer.
        """
        peers = list(self.peers)
        ranges = self.ranges.copy()
        for peer_id, peer in changed.items():
            j = self.index[peer_id]
            peers[j] = peer
            ranges[j] = range_rows([_hosted_then(peer)])
        return replace(self, peers=tuple(peers), ranges=ranges, holders=lasting_servers(peers, self.model.num_blocks))

    def is_placed(self, j: int) -> bool:
        """Whether peer j hosts blocks."""
        return bool(self.ranges[j, 1] > 0)

    def movable(self, j: int) -> bool:
        """Whether peer j hosts blocks and may be told to leave them."""
        peer = self.peers[j]
        serves = peer.state is PeerState.SERVING and peer.claim is None
        return serves and not peer.blocks_fixed and self.is_placed(j)

    def unplaced(self, j: int) -> bool:
        """Whether peer j waits for blocks, and has room for some."""
        return not self.is_placed(j) and self.sizes[j] > 0 and not self.peers[j].blocks_fixed

    def is_safe(self, j: int, start: int, stop: int) -> bool:
        """Whether every block keeps a server that peer j would drop by hosting start:stop instead."""
        return is_safe_to_leave(self.holders - 1, self.hosted(j), BlockRange(start, stop))

    def hosted(self, j: int) -> BlockRange | None:
        """The range of peer j once all claimed moves are made."""
        return BlockRange(*map(int, self.ranges[j])) if self.is_placed(j) else None

    def uncovered(self) -> NDArray[np.bool_]:
        """(L,): which blocks no peer hosts."""
        return np.asarray(hosts_per_block(self.ranges, self.model.num_blocks) == 0)

    def move(self, j: int, start: int, reason: Reason, stop: int | None = None) -> Move:
        """The move of peer j to the window that begins at `start`, of the planned size unless `stop` is given."""
        after = BlockRange(int(start), int(start + self.sizes[j] if stop is None else stop))
        return Move(self.peers[j].id, self.hosted(j), after, reason)

    def load_seconds(self, ranges: IntArray) -> float:
        """Seconds to load the blocks that `ranges` add to the present ones, one peer after the other."""
        return int(added_blocks(self.ranges, ranges) @ self._load_milliseconds) / 1000.0

    def capacities(self, ranges: IntArray) -> IntArray:
        """C_b: sessions that fit at each block, (L,)."""
        sessions = self.model.full_sessions(ranges[:, 1] - ranges[:, 0])
        change = np.bincount(ranges[:, 0], sessions, self.model.num_blocks + 1)
        change -= np.bincount(ranges[:, 1], sessions, self.model.num_blocks + 1)
        return np.cumsum(change)[:-1].round().astype(np.int64)

    def request_times(self, ranges: IntArray) -> RequestTimes:
        """Times among as many requests as R is planned for; the last client is as far from every peer as the farthest,
        and sends none: the setting of Theorem 2."""
        load = _expected_sessions(self.concurrency)
        return request_times(self._model_and_farthest, ranges, np.append(self.client_weights, 0.0), load)

    def cost_seconds(self, ranges: IntArray) -> float:
        """The quantity that the rule minimises: half the time of requests under load, half the time promised to the
        farthest client.  The first alone would trade the guarantee for gains under load, the second sees no load."""
        times = self.request_times(ranges)
        return (times.among_others + float(times.alone[-1])) / 2.0

    @cached_property
    def index(self) -> dict[PeerId, int]:
        """Where each peer stands in `peers`."""
        return {peer.id: j for j, peer in enumerate(self.peers)}

    @cached_property
    def _load_milliseconds(self) -> IntArray:
        """Time to load one block, as measured or from the assumed rate, (n,); whole numbers, whose sums are exact:
        plans that load the same must compare as equal."""
        assumed = np.broadcast_to(self.model.block_bytes / self.policy.load_bytes_per_second, len(self.peers))
        measured = np.array([peer.load_seconds for peer in self.peers])
        return np.maximum(np.rint(1000.0 * np.where(measured > 0, measured, assumed)), 1).astype(np.int64)

    @cached_property
    def _model_and_farthest(self) -> PerfModel:
        both = (self.model.rtt_seconds, self.model.prefill_rtt_seconds)
        rtt, prefill_rtt = (np.vstack([rtt, rtt.max(axis=0)]) for rtt in both)
        return replace(self.model, rtt_seconds=rtt, prefill_rtt_seconds=prefill_rtt)


def _hosted_then(peer: PeerSpec) -> BlockRange | None:
    """The blocks of a peer once the move that it has claimed is made."""
    return peer.claim.blocks if peer.claim is not None else peer.blocks


def _expected_sessions(concurrency: int) -> float:
    """The mean x of a Poisson number of sessions for which R is planned: R = x + sqrt(x), as the rule for R has it."""
    return ((math.sqrt(4.0 * concurrency + 1.0) - 1.0) / 2.0) ** 2
