"""The product's router: a snapshot of the swarm and a request in, the exact cheapest chain out.

A `RouteFinder` is prepared once per snapshot.  Requests differ in their lengths, in the blocks that they need, and in
the peers that are banned, excluded or full: all of these are masks over the prepared arrays.  The objective and the
proof of exactness are in search.py; Lemma 1's hops, which WS-RR uses, are in hops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..perf import BoolArray, FloatArray, IntArray
from ..rtt import RttTable
from ..swarm import BlockRange, Hop, PeerId, PeerSpec, PeerState, RequestSpec, Route, Swarm
from .budget import UNLIMITED, Meter, OverBudgetError
from .costs import HubCosts, PushCosts
from .lattice import Lattice, Spans
from .rooms import Releases, SnapshotRooms
from .search import ChainSearch, FoundChain

_INFINITY = float("inf")
MOST_HOSTS = 64
"""If there are too many peers for one search, the number of hosts per block that is tried first."""


class NoRouteError(ValueError):
    """No chain exists now, or none was found within the budget.

    `missing_blocks` are hosted by no usable peer.  `full_blocks` are hosted by usable peers, but none of them has room
    for the request, announced releases included.  `retry_seconds`: seconds until the hosts of the full blocks have made
    their last announced release, when more may be known; infinite if waiting cannot help, because nobody hosts some
    block or the request does not fit even into empty peers.  `proven` is False if the budget ended first: there may be
    a chain.
    """

    def __init__(
        self,
        missing_blocks: tuple[int, ...],
        full_blocks: tuple[int, ...] = (),
        retry_seconds: float = _INFINITY,
        *,
        proven: bool = True,
    ) -> None:
        self.missing_blocks = missing_blocks
        self.full_blocks = full_blocks
        self.retry_seconds = retry_seconds
        self.proven = proven
        todo = "shorten it" if retry_seconds == _INFINITY else "shorten it or try again later"
        parts = []
        if missing_blocks:
            parts.append(f"no usable peer hosts blocks {_listed(missing_blocks)}")
        if full_blocks:
            parts.append(f"no host of blocks {_listed(full_blocks)} has room for the request: {todo}")
        if not parts and proven:
            parts.append(f"every block has a host, but no chain of distinct peers has room for the request: {todo}")
        if not parts:
            parts.append("no chain of distinct peers with room for the request was found in time; there may be one")
        super().__init__("; ".join(parts))


def _listed(blocks: tuple[int, ...]) -> str:
    return ", ".join(str(block) for block in blocks[:20]) + ("..." if len(blocks) > 20 else "")


@dataclass(frozen=True)
class RouteQuery:
    """One request, and what the client knows about the peers beyond their announcements."""

    request: RequestSpec
    blocks: BlockRange
    usable: BoolArray
    """(n,), in the finder's order."""
    now_seconds: float
    """On the snapshot's clock."""
    full_until: Mapping[PeerId, float] = field(default_factory=dict)
    """Peers that have refused a session: they count as full until that moment, and as empty from then on."""
    doubt_seconds: Mapping[PeerId, float] = field(default_factory=dict)
    """Peers that have failed recently: each token costs that much more there, so that others are preferred."""
    kept: Mapping[PeerId, BlockRange] = field(default_factory=dict)
    """Peers of which only this part of their range may be used."""


class RouteFinder:
    """The router over one snapshot: build it once per snapshot and use it for every request, from any thread.

    It considers the SERVING peers that host something and to which the client has a round trip.  The snapshot must have
    only peers whose weights are believed, so that no chain mixes different weights: see `trust.py`.
    """

    def __init__(
        self,
        swarm: Swarm,
        client_rtt_seconds: Mapping[PeerId, float],
        peer_rtt_seconds: RttTable | Callable[[PeerId, PeerId], float] | None = None,
        *,
        most_bytes: float = _INFINITY,
    ) -> None:
        """With `peer_rtt_seconds` each peer pushes to the next one; without, hops go through the client (hub costs).

        If compiling all peers would take more memory than `most_bytes`, every query considers only some of the peers
        and its answer is not proven.  Raises ValueError for round trips that are negative or not finite.
        """
        self.swarm = swarm
        peers = (peer for peer in swarm.peers if _serves(peer) and peer.id in client_rtt_seconds)
        # In order of their ranges, so that peers that can follow each other are neighbours in every array.
        self.peers = tuple(sorted(peers, key=_range_and_id))
        self.index = {peer.id: j for j, peer in enumerate(self.peers)}
        self._client_rtt_seconds, self._peer_rtt_seconds = client_rtt_seconds, peer_rtt_seconds
        self._rtt = np.array([client_rtt_seconds[peer.id] for peer in self.peers], dtype=np.float64)
        if not np.isfinite(self._rtt).all() or (self._rtt < 0).any():
            raise ValueError("client_rtt_seconds must be finite and >= 0")
        self._spans = Spans.of(swarm.model.num_blocks, [peer.blocks for peer in self.peers])
        self._cost = _costs(self.peers)
        self._visit = np.array([peer.cost.visit for peer in self.peers], dtype=np.float64)
        self._free = np.array([peer.kv_tokens_free for peer in self.peers], dtype=np.int64)
        self._total = np.array([peer.kv_tokens_total for peer in self.peers], dtype=np.int64)
        self._releases = Releases.of(self.peers)
        self._most_bytes = most_bytes
        self._links: FloatArray | None = None
        """(n, n) round trips between peers that push, infinite on the diagonal."""
        self._lattice: Lattice | None = None
        """None if it would be too large."""
        if self._bytes(np.arange(len(self.peers))) <= most_bytes:
            self._links = self._peer_rtts() if peer_rtt_seconds is not None else None
            self._lattice = Lattice.of(self._spans, self._links)

    @property
    def work(self) -> float:
        """Approximate number of additions in the shortest search; infinite if one search cannot take all peers."""
        return self._lattice.work if self._lattice is not None else _INFINITY

    def cheapest_route(self, query: RouteQuery, meter: Meter = UNLIMITED, *, settle: bool = True) -> Route:
        """The chain of usable peers that minimises sum of costs + largest wait.

        A peer has room for k blocks once `kv_tokens_free` plus its due releases reach k x the request's KV tokens per
        block; nothing is known beyond the last release, so a hop that needs more is not used.  Hub: every peer costs a
        full client round trip per token.  Push: every token makes one trip client -> p1 -> ... -> client of one-way
        delays (half round trips).

        If the budget ends first, returns a good chain with `unproven_seconds`, or raises OverBudgetError if the caller
        does not `settle` for less than the best.  Raises NoRouteError if there is no chain, or none was found in time.
        """
        rooms = self._rooms(query)
        if self._lattice is None:
            if not settle:
                raise OverBudgetError("all peers are too many for one search")
            return self._route_among_few(query, rooms, meter)
        search = self._search(query)
        try:
            found = search.cheapest(rooms, meter, settle)
        except OverBudgetError:
            if not settle:
                raise
            raise self._no_route(query, rooms, proven=False) from None
        if found is None:
            fits = self._fits_when_empty(search, rooms, meter)
            raise self._no_route(query, rooms, fits_when_empty=fits)
        return self._route(found, rooms, query.blocks)

    def _rooms(self, query: RouteQuery) -> SnapshotRooms:
        full = {self.index[peer]: until for peer, until in query.full_until.items() if peer in self.index}
        free = np.where(query.usable, self._free, 0)
        free[list(full)] = 0
        releases = self._releases.replaced({j: (until, int(self._total[j])) for j, until in full.items()})
        return SnapshotRooms(query.request.kv_tokens_per_block, free, query.usable, releases, query.now_seconds)

    def _search(self, query: RouteQuery) -> ChainSearch:
        assert self._lattice is not None
        spans, lattice = self._spans_of(query), self._lattice
        if query.kept:
            lattice = lattice.inside(spans)
        if len(query.blocks) < spans.num_blocks:
            spans, lattice = spans.within(query.blocks), lattice.within(query.blocks)
        per_block, trips, visit = self._per_block_seconds(query.request), query.request.new_tokens, self._visits(query)
        if self._links is None:
            return ChainSearch(spans, HubCosts((self._rtt + visit) * trips, per_block), lattice)
        way = self._rtt * (trips / 2)  # a one-way delay is half a round trip
        return ChainSearch(spans, PushCosts(way, per_block, way, self._links, lattice, trips / 2, visit * trips))

    def _spans_of(self, query: RouteQuery) -> Spans:
        if not query.kept:
            return self._spans
        start, stop = self._spans.start.copy(), self._spans.stop.copy()
        for peer, blocks in query.kept.items():
            if (j := self.index.get(peer)) is not None:
                start[j], stop[j] = blocks.start, blocks.stop
        return Spans(self._spans.num_blocks, start, stop)

    def _visits(self, query: RouteQuery) -> FloatArray:
        """The time of a token at each peer beside computing, and the doubt in that peer; (n,) seconds."""
        visits = self._visit.copy()
        for peer, seconds in query.doubt_seconds.items():
            if peer in self.index:
                visits[self.index[peer]] += seconds
        return visits

    def _per_block_seconds(self, request: RequestSpec) -> FloatArray:
        """tau^I_j + (l_max - 1) tau_j, (n,)."""
        steps = request.new_tokens - 1
        decode = np.array([1.0, request.rows, request.mean_context_tokens]) * steps
        prefill = np.array([1.0, request.rows * request.prompt_tokens])
        return self._cost @ np.concatenate([decode, prefill])  # type: ignore[no-any-return]

    def _route(self, found: FoundChain, rooms: SnapshotRooms, part: BlockRange) -> Route:
        hops = (
            Hop(
                self.peers[j].id,
                BlockRange(blocks.start + part.start, blocks.stop + part.start),
                rooms.wait_seconds(j, len(blocks)),
            )
            for j, blocks in found.chain
        )
        return Route(tuple(hops), found.cost_seconds, found.wait_seconds, found.unproven_seconds)

    # --- if there are too many peers for one search ---

    def _bytes(self, members: IntArray) -> int:
        """Approximate memory that it takes to compile these peers."""
        linked = self._peer_rtt_seconds is not None
        return self._spans.lattice_bytes(members, linked=linked) + (32 * len(members) ** 2 if linked else 0)

    def _route_among_few(self, query: RouteQuery, rooms: SnapshotRooms, meter: Meter) -> Route:
        """The cheapest chain of the peers that are cheapest for some block; another chain may be better.

        The number of peers per block is the largest power of two that fits, up to `MOST_HOSTS`.  (Taking the cheapest
        few of each distinct range would not help: there can be as many ranges as peers.)
        """
        spans = self._spans_of(query)
        reach, later = (np.minimum(rooms.blocks_within(wait), spans.stop - spans.start) for wait in (0.0, _INFINITY))
        wait, reach = np.where(reach > 0, 0.0, rooms.waits(1)[:, 0]), np.where(reach > 0, reach, later)
        visit = (self._rtt + self._visits(query)) * query.request.new_tokens + wait
        with np.errstate(divide="ignore"):
            seconds = np.where(reach > 0, self._per_block_seconds(query.request) + visit / reach, _INFINITY)
        few = MOST_HOSTS
        members = self._spans.cheapest_hosts(seconds, few)
        while self._bytes(members) > self._most_bytes and few > 1:
            few //= 2
            members = self._spans.cheapest_hosts(seconds, few)
        if self._bytes(members) > self._most_bytes:
            raise self._no_route(query, rooms, proven=False)
        peers = tuple(sorted((self.peers[j] for j in members), key=lambda peer: peer.id))
        finder = RouteFinder(replace(self.swarm, peers=peers), self._client_rtt_seconds, self._peer_rtt_seconds)
        everybody = np.ones(len(peers), dtype=bool)
        try:
            route = finder.cheapest_route(replace(query, usable=everybody), meter)
        except NoRouteError:
            raise self._no_route(query, rooms, proven=False) from None
        return replace(route, unproven_seconds=_INFINITY)

    # --- if there is no route ---

    def _no_route(
        self, query: RouteQuery, rooms: SnapshotRooms, *, fits_when_empty: bool = True, proven: bool = True
    ) -> NoRouteError:
        hosted, roomy = (
            self._spans_of(query).hosts(np.flatnonzero(which))[query.blocks.start : query.blocks.stop] > 0
            for which in (rooms.usable, rooms.blocks_within(_INFINITY) > 0)
        )
        full = hosted & ~roomy
        retry_seconds = self._last_release_seconds(full, rooms, query) if fits_when_empty else _INFINITY
        missing, unroomy = (tuple((np.flatnonzero(which) + query.blocks.start).tolist()) for which in (~hosted, full))
        return NoRouteError(missing, unroomy, _INFINITY if missing else retry_seconds, proven=proven)

    def _fits_when_empty(self, search: ChainSearch, rooms: SnapshotRooms, meter: Meter) -> bool:
        """Whether empty peers would have room; assumed if the budget ends first."""
        empty = replace(rooms, free=np.where(rooms.usable, self._total, 0))
        try:
            return search.cheapest(empty, meter) is not None
        except OverBudgetError:
            return True

    def _last_release_seconds(self, full: BoolArray, rooms: SnapshotRooms, query: RouteQuery) -> float:
        """Seconds until every full block has a host whose announced releases are all due; 0 if none is announced."""
        last = np.zeros(len(self.peers))
        np.maximum.at(last, rooms.releases.owner, rooms.delay)
        soonest = np.where(full, np.inf, 0.0)
        spans = self._spans_of(query).within(query.blocks)
        for j in np.flatnonzero(rooms.usable):
            hosted = slice(spans.start[j], spans.stop[j])
            soonest[hosted] = np.minimum(soonest[hosted], last[j])
        return float(soonest.max())

    # --- round trips between peers ---

    def _peer_rtts(self) -> FloatArray:
        """(n, n) seconds; infinite on the diagonal, as no peer follows itself."""
        ids, given = [peer.id for peer in self.peers], self._peer_rtt_seconds
        matrix = given.matrix(ids) if isinstance(given, RttTable) else self._called(given, ids)
        if not np.isfinite(matrix).all() or (matrix < 0).any():
            raise ValueError("peer_rtt_seconds must give finite round trips >= 0")
        np.fill_diagonal(matrix, np.inf)
        return matrix

    def _called(self, peer_rtt_seconds: Callable[[PeerId, PeerId], float] | None, ids: Sequence[PeerId]) -> FloatArray:
        """Only pairs that can follow each other are asked for: j begins by where i ends, and ends after i begins."""
        assert peer_rtt_seconds is not None
        start, stop = self._spans.start, self._spans.stop
        matrix = np.zeros((len(ids), len(ids)))
        follows = (start[None, :] <= stop[:, None]) & (stop[None, :] > start[:, None] + 1)
        np.fill_diagonal(follows, False)
        for i, j in np.argwhere(follows).tolist():
            matrix[i, j] = peer_rtt_seconds(ids[i], ids[j])
        return matrix


def _costs(peers: Sequence[PeerSpec]) -> FloatArray:
    """(n, 5) seconds."""
    costs = [peer.cost for peer in peers]
    return np.array(
        [
            (c.decode_fixed, c.decode_per_row, c.decode_per_context_token, c.prefill_fixed, c.prefill_per_token)
            for c in costs
        ],
        dtype=np.float64,
    ).reshape(len(costs), 5)


def _range_and_id(peer: PeerSpec) -> tuple[int, int, PeerId]:
    assert peer.blocks is not None
    return peer.blocks.start, peer.blocks.stop, peer.id


def _serves(peer: PeerSpec) -> bool:
    return peer.state is PeerState.SERVING and peer.blocks is not None
