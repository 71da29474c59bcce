"""A snapshot in figures: what the swarm promises and serves now, and what it would after a move.

For people (`swarm-client status`, `swarm-peer plan`) and for the log of a peer's agent; the rule itself uses
`PlanningView.cost_seconds`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .perf import FloatArray, IntArray, PerfModel
from .place.cgbp import InfeasiblePlacementError, bound_of_placement
from .place.loaded import cheapest_chains
from .place.moves import ReplanPolicy
from .place.view import PlanningView
from .place.windows import hosts_per_block, range_rows
from .swarm import BlockRange, PeerId, PeerSpec, PeerState, Swarm


@dataclass(frozen=True, slots=True)
class Outlook:
    """Figures of a snapshot, with the peers where they serve now. Times are infinite where no chain is complete."""

    concurrency: int
    """R: the number of concurrent sessions that the placement is made for."""
    bound_seconds: float
    """Theorem 2 for the present placement: with at most R concurrent sessions none waits, and a token takes at most
    this time, also for the farthest client; infinite if the peers with room for R sessions do not host all blocks."""
    scratch_bound_seconds: float
    """Theorem 2's bound for CG-BP's placement from scratch of the same peers; infinite if there is none."""
    token_seconds: float
    """Mean predicted time of a token when there is only one session."""
    request_seconds: float
    """Mean predicted time of the planned request among at most R others."""
    weakest_block: int
    """The first of the blocks with the fewest servers."""
    weakest_servers: int
    uncovered: tuple[int, ...]
    """The blocks that nobody serves."""
    moves: tuple[tuple[PeerId, BlockRange | None, BlockRange], ...]
    """Claimed moves: the peer, the blocks that it serves, and those that it claims."""


def outlook_of(
    swarm: Swarm, policy: ReplanPolicy | None = None, *, rtts: Mapping[PeerId, float] | None = None
) -> Outlook | None:
    """The outlook of a snapshot; None if no peer stays.

    `rtts`: round trips to peers that a client has measured, seconds. The bounds then hold for this client as well, for
    which coordinates may be wrong (a busy machine answers later than its coordinate predicts).
    """
    view = PlanningView.of(swarm, policy or ReplanPolicy())
    return outlook_of_view(view, rtts) if view is not None else None


def outlook_of_view(view: PlanningView, rtts: Mapping[PeerId, float] | None = None) -> Outlook:
    """The outlook of a snapshot's planning view, which the caller may also use for its moves."""
    serving = [peer.blocks if peer.state is PeerState.SERVING else None for peer in view.peers]
    ranges = range_rows(serving)
    servers = hosts_per_block(ranges, view.model.num_blocks)
    weakest = int(servers.argmin())
    times = view.request_times(ranges)
    promising = _with_rtts(view, rtts or {})
    return Outlook(
        concurrency=view.concurrency,
        bound_seconds=_bound(promising, view.concurrency, ranges),
        scratch_bound_seconds=_scratch_bound(promising, view.concurrency),
        token_seconds=_mean_token_seconds(view, ranges),
        request_seconds=times.among_others,
        weakest_block=weakest,
        weakest_servers=int(servers[weakest]),
        uncovered=tuple(np.flatnonzero(servers == 0).tolist()),
        moves=tuple((peer.id, peer.blocks, peer.claim.blocks) for peer in view.peers if peer.claim is not None),
    )


def with_peer_at(swarm: Swarm, peer_id: PeerId, blocks: BlockRange) -> Swarm:
    """The snapshot in which the peer serves these blocks and claims none."""
    return replace(swarm, peers=tuple(peer_at(p, blocks) if p.id == peer_id else p for p in swarm.peers))


def view_with_peers_at(view: PlanningView, places: Iterable[tuple[PeerId, BlockRange]]) -> PlanningView:
    """The view in which these peers serve these blocks and claim none; of two entries for a peer the last one
    counts."""
    return view.with_peers({peer: peer_at(view.peers[view.index[peer]], blocks) for peer, blocks in places})


def peer_at(peer: PeerSpec, blocks: BlockRange) -> PeerSpec:
    """The peer once it serves these blocks and claims none."""
    return replace(peer, blocks=blocks, block_hashes=(), state=PeerState.SERVING, claim=None)


def _with_rtts(view: PlanningView, rtts: Mapping[PeerId, float]) -> PerfModel:
    """The model in which no client is nearer to a peer than a measurement says."""
    measured = np.array([rtts.get(peer.id, 0.0) for peer in view.peers])
    return replace(view.model, rtt_seconds=np.maximum(view.model.rtt_seconds, measured))


def _bound(model: PerfModel, concurrency: int, ranges: IntArray) -> float:
    """The cheapest walk of the farthest client over the peers with room for R sessions at all their blocks, where
    memory limits no session.  It takes no longer than the walk that Theorem 2 adds up for CG-BP's placement."""
    roomy = model.full_sessions(ranges[:, 1] - ranges[:, 0]) >= concurrency
    farthest = model.rtt_seconds.max(axis=0, keepdims=True)
    return float(_token_seconds(model, farthest, np.where(roomy[:, None], ranges, 0))[0])


def _scratch_bound(model: PerfModel, concurrency: int) -> float:
    try:
        return bound_of_placement(model, concurrency)
    except InfeasiblePlacementError:
        return math.inf


def _mean_token_seconds(view: PlanningView, ranges: IntArray) -> float:
    seconds = _token_seconds(view.model, view.model.rtt_seconds, ranges)
    return float(np.average(seconds, weights=view.client_weights))


def _token_seconds(model: PerfModel, rtt_seconds: FloatArray, ranges: IntArray) -> FloatArray:
    """Time of one decoded token on each client's cheapest chain, (C,)."""
    one_token = replace(
        model,
        new_tokens=2,
        rtt_seconds=rtt_seconds,
        prefill_rtt_seconds=np.zeros_like(rtt_seconds),
        prefill_seconds=np.zeros_like(model.prefill_seconds),
    )
    return cheapest_chains(one_token, ranges).seconds
