"""The product's router: a snapshot of the swarm and a request in, the exact cheapest chain out.

The objective and the proof of exactness are in search.py; Lemma 1's hops, which WS-RR uses, in hops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..perf import FloatArray
from ..rtt import RttTable
from ..swarm import Hop, PeerId, PeerSpec, PeerState, RequestSpec, Route, Swarm
from .costs import HubCosts, PushCosts
from .lattice import Lattice, Spans
from .rooms import BoolArray, Releases, SnapshotRooms
from .search import ChainSearch

_INFINITY = float("inf")


class NoRouteError(ValueError):
    """No chain exists now.

    `missing_blocks` are those that no usable peer hosts, `full_blocks` those that usable peers host, but none with room
    for the request, announced releases included.  `retry_seconds`: when the hosts of the full blocks have made their
    last announced release and more may be known; infinite if waiting does not help, because nobody hosts some block or
    the request does not fit even into empty peers.
    """

    def __init__(
        self, missing_blocks: tuple[int, ...], full_blocks: tuple[int, ...] = (), retry_seconds: float = _INFINITY
    ) -> None:
        self.missing_blocks = missing_blocks
        self.full_blocks = full_blocks
        self.retry_seconds = retry_seconds
        todo = "shorten it" if retry_seconds == _INFINITY else "shorten it or try again later"
        parts = []
        if missing_blocks:
            parts.append(f"no usable peer hosts blocks {_listed(missing_blocks)}")
        if full_blocks:
            parts.append(f"no host of blocks {_listed(full_blocks)} has room for the request: {todo}")
        if not parts:
            parts.append(f"every block has a host, but no chain of distinct peers has room for the request: {todo}")
        super().__init__("; ".join(parts))


def _listed(blocks: tuple[int, ...]) -> str:
    return ", ".join(str(block) for block in blocks[:20]) + ("..." if len(blocks) > 20 else "")


class RouteFinder:
    """The router over one snapshot: build it once per snapshot, ask it for every request.

    Usable are SERVING peers that host something.  The snapshot has only peers whose weights are believed, so that no
    chain mixes different ones: see `trust.py`.
    """

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        serving = [peer for peer in swarm.peers if _serves(peer)]
        # In order of their ranges, so that the peers that can follow each other are neighbours in every array.
        self.peers = tuple(sorted(serving, key=_range_and_id))
        self._spans = Spans.of(swarm.model.num_blocks, [peer.blocks for peer in self.peers])
        costs = [peer.cost for peer in self.peers]
        self._cost = np.array(
            [
                (c.decode_fixed, c.decode_per_row, c.decode_per_context_token, c.prefill_fixed, c.prefill_per_token)
                for c in costs
            ],
            dtype=np.float64,
        ).reshape(len(costs), 5)
        self._free = np.array([peer.kv_tokens_free for peer in self.peers], dtype=np.int64)
        self._releases = Releases.of(swarm, self.peers)
        self._linked: tuple[Callable[[PeerId, PeerId], float], FloatArray, Lattice] | None = None

    def cheapest_route(
        self,
        *,
        request: RequestSpec,
        client_rtt_seconds: Mapping[PeerId, float],
        peer_rtt_seconds: Callable[[PeerId, PeerId], float],
        push: bool = True,
        excluded: frozenset[PeerId] = frozenset(),
    ) -> Route:
        """See `cheapest_route`."""
        rtt = np.array([client_rtt_seconds.get(peer.id, np.nan) for peer in self.peers], dtype=np.float64)
        usable = ~np.isnan(rtt)
        if excluded:
            usable &= np.array([peer.id not in excluded for peer in self.peers], dtype=bool)
        if (rtt[usable] < 0).any() or np.isinf(rtt[usable]).any():
            raise ValueError("client_rtt_seconds must be finite and >= 0")
        free = np.where(usable, self._free, 0)
        rooms = SnapshotRooms(request.kv_tokens_per_block, free, usable, self._releases)
        rtt = np.where(usable, rtt, 0.0)
        costs = self._push_costs(request, rtt, peer_rtt_seconds) if push else self._hub_costs(request, rtt)
        search = ChainSearch(self._spans, costs)
        found = search.cheapest(rooms)
        if found is None:
            raise self._no_route(search, rooms)
        hops = tuple(Hop(self.peers[j].id, blocks) for j, blocks in found.chain)
        return Route(hops, found.cost_seconds, found.wait_seconds)

    def _per_block_seconds(self, request: RequestSpec) -> FloatArray:
        """tau^I_j + (l_max - 1) tau_j, (n,)."""
        steps = request.new_tokens - 1
        decode = np.array([1.0, request.rows, request.mean_context_tokens]) * steps
        prefill = np.array([1.0, request.rows * request.prompt_tokens])
        return self._cost @ np.concatenate([decode, prefill])  # type: ignore[no-any-return]

    def _hub_costs(self, request: RequestSpec, rtt: FloatArray) -> HubCosts:
        return HubCosts(visit=rtt * request.new_tokens, per_block=self._per_block_seconds(request))

    def _push_costs(
        self, request: RequestSpec, rtt: FloatArray, peer_rtt_seconds: Callable[[PeerId, PeerId], float]
    ) -> PushCosts:
        trips = request.new_tokens / 2  # a one-way delay is half a round trip
        # Kept for the next request, so a callable must give the same answers for the same snapshot.
        if self._linked is None or self._linked[0] != peer_rtt_seconds:
            matrix = self._peer_rtts(peer_rtt_seconds)
            self._linked = peer_rtt_seconds, matrix, Lattice.of(self._spans, matrix)
        ends = rtt * trips
        return PushCosts(ends, self._per_block_seconds(request), ends, *self._linked[1:], trips)

    def _peer_rtts(self, peer_rtt_seconds: Callable[[PeerId, PeerId], float]) -> FloatArray:
        """(n, n) seconds; infinite on the diagonal, as no peer follows itself."""
        ids = [peer.id for peer in self.peers]
        if isinstance(peer_rtt_seconds, RttTable):
            matrix = peer_rtt_seconds.matrix(ids)
        else:
            matrix = self._called(peer_rtt_seconds, ids)
        if not np.isfinite(matrix).all() or (matrix < 0).any():
            raise ValueError("peer_rtt_seconds must give finite round trips >= 0")
        np.fill_diagonal(matrix, np.inf)
        return matrix

    def _called(self, peer_rtt_seconds: Callable[[PeerId, PeerId], float], ids: Sequence[PeerId]) -> FloatArray:
        """Only pairs that can follow each other are asked for: j begins by where i ends, and ends after i begins."""
        start, stop = self._spans.start, self._spans.stop
        matrix = np.zeros((len(ids), len(ids)))
        follows = (start[None, :] <= stop[:, None]) & (stop[None, :] > start[:, None] + 1)
        np.fill_diagonal(follows, False)
        for i, j in np.argwhere(follows).tolist():
            matrix[i, j] = peer_rtt_seconds(ids[i], ids[j])
        return matrix

    def _no_route(self, search: ChainSearch, rooms: SnapshotRooms) -> NoRouteError:
        missing = ~self._hosted(rooms.usable)
        full = ~missing & ~self._hosted(rooms.blocks_within(_INFINITY) > 0)
        retry_seconds = _INFINITY
        if not missing.any() and self._fits_when_empty(search, rooms):
            retry_seconds = self._last_release_seconds(full, rooms)
        blocks, unroomy = (tuple(int(block) for block in np.flatnonzero(which)) for which in (missing, full))
        return NoRouteError(blocks, unroomy, retry_seconds)

    def _hosted(self, peers: BoolArray) -> BoolArray:
        """Which blocks these peers host, (L,)."""
        hosted = np.zeros(self.swarm.model.num_blocks, dtype=bool)
        for j in np.flatnonzero(peers):
            hosted[self._spans.start[j] : self._spans.stop[j]] = True
        return hosted

    def _fits_when_empty(self, search: ChainSearch, rooms: SnapshotRooms) -> bool:
        total = np.array([peer.kv_tokens_total for peer in self.peers], dtype=np.int64)
        empty = replace(rooms, free=np.where(rooms.usable, total, 0))
        return search.cheapest(empty) is not None

    def _last_release_seconds(self, full: BoolArray, rooms: SnapshotRooms) -> float:
        """When every full block has a host whose announced releases are all due; 0 if none is announced."""
        last = np.zeros(len(self.peers))
        np.maximum.at(last, rooms.releases.owner, rooms.releases.delay)
        soonest = np.where(full, np.inf, 0.0)
        for j in np.flatnonzero(rooms.usable):
            hosted = slice(self._spans.start[j], self._spans.stop[j])
            soonest[hosted] = np.minimum(soonest[hosted], last[j])
        return float(soonest.max())


def _range_and_id(peer: PeerSpec) -> tuple[int, int, PeerId]:
    assert peer.blocks is not None
    return peer.blocks.start, peer.blocks.stop, peer.id


def _serves(peer: PeerSpec) -> bool:
    return peer.state is PeerState.SERVING and peer.blocks is not None


def cheapest_route(
    swarm: Swarm,
    *,
    request: RequestSpec,
    client_rtt_seconds: Mapping[PeerId, float],
    peer_rtt_seconds: Callable[[PeerId, PeerId], float],
    push: bool = True,
    excluded: frozenset[PeerId] = frozenset(),
) -> Route:
    """The chain that minimises sum of costs + largest wait among a snapshot's usable peers.

    Usable are SERVING peers, not in `excluded`, named in `client_rtt_seconds` (a peer that the client has no round
    trip to is not considered).  A peer has room for k blocks once
    `kv_tokens_free` plus its due releases reach k x the request's KV tokens per block; nothing is known beyond the
    last release, so a hop that needs more is not used.  Hub: every peer costs a full client round trip per token.
    Push: every token makes one trip client -> p1 -> ... -> client of one-way delays (half round trips).

    Raises NoRouteError if no chain exists, ValueError for round trips that are negative or not finite.  Several
    requests on one snapshot: build one RouteFinder.  Pass an RttTable as `peer_rtt_seconds` where speed matters.
    """
    return RouteFinder(swarm).cheapest_route(
        request=request,
        client_rtt_seconds=client_rtt_seconds,
        peer_rtt_seconds=peer_rtt_seconds,
        push=push,
        excluded=excluded,
    )
