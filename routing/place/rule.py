"""Online re-planning: a snapshot of the swarm in, the one move worth making now out, or none.

CG-BP (`cgbp.py`) places from scratch; peers that come and go must not reload everything each time.  `decide` keeps
CG-BP's greedy order and windows but lets every peer stay that contributes about as much where it is:

1. Join: a peer without blocks gets the window with most uncovered blocks, else the one of CG-BP's greedy step.
2. Repair: while some block has no server, the move that covers most of the uncovered blocks and loads least.
3. Improve: the plan is CG-BP's greedy pass in which a peer keeps its window unless another contributes more.  It is
   begun if the time that it saves over the horizon exceeds the time that loading takes; its moves are made one by one.

Plans are compared by what the horizon costs under them, loading included: the mean of what requests take among as many
others as R is planned for (`loaded.py`) and of what the farthest client is promised (Theorem 2's setting).  The
cheapest chain alone would not show that fast peers host too many blocks to have room for a second session.

Rest: a plan is a fixed point.  In the sticky one a peer's window depends on the windows planned for peers before it and
on its own present one; the one from scratch does not depend on the present at all; the packed one depends on the order
of the present ranges, which its steps keep where they can.  So carrying out part of a plan does not change the rest, it
takes at most n moves, and a step lowers its cost by what it loaded, which is more than any other plan gains unless the
step changed that plan.  That no other one takes over half-way, again and again, is not proven: over the tests' random
histories n moves were enough once every peer was placed and every block served, and 2 n with uncovered blocks, whose
repairs are not asked to be final.

Every peer computes the same decision from the same snapshot: clients, load and R are functions of the snapshot, and
ties are broken by position.  A move never takes a block from one server to none; between peers with different, old
snapshots `judge_claim` sees to that.

Symbols: R concurrency, m_j sizes, t~_j amortised, f_j sessions, C_b capacity, V_c clients (`algorithms.md` section 4).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..coordinates import DIMENSIONS
from ..perf import FloatArray, IntArray, PerfModel
from ..swarm import BlockRange, Coordinate, MoveClaim, PeerId, PeerSpec, PeerState, RequestSpec, Swarm
from .cgbp import conservative_sizes, greedy_order, is_feasible
from .loaded import RequestTimes, request_times

UNKNOWN_RTT_SECONDS = 0.1
"""Round trip to a peer that has no coordinate yet."""
CLIENT_CELL_SECONDS = 0.01
"""Clients closer together than this are planned for as one: small changes of coordinates change no decision."""
MAX_CLIENTS = 16
CONCURRENCY_STEPS: tuple[int, ...] = tuple(sorted({round(2**k * f) for k in range(13) for f in (1, 1.5)}))
"""The values that R may take: 1, 2, 3, 4, 6, 8, 12, ... so that a small change of load changes no decision."""

REFRESH_SECONDS = 20.0
"""How often a peer renews its record, and how long a claim waits before it is judged."""
CLOCK_SKEW_SECONDS = 5.0
"""The most by which the clocks of two peers differ; records from the future are refused at the edge."""
RECORD_LIFETIME_SECONDS = 60.0
"""For how long after its issue a record says that a peer serves."""
MEMORY_SECONDS = 120.0
"""For how long after its last record a peer is planned with.  Where records get lost, some peer has none that is valid
at almost any moment: whoever takes it for gone plans for a swarm that does not exist, and never rests."""
CLAIM_LIFETIME_SECONDS = 180.0
"""A claim that could not be confirmed for so long is withdrawn."""


@dataclass(frozen=True, slots=True)
class ReplanPolicy:
    """What the rule assumes; the same on all peers of a swarm."""

    request: RequestSpec = field(default_factory=lambda: RequestSpec(prompt_tokens=512, new_tokens=256))
    """The request that the swarm is planned for."""
    horizon_seconds: float = 4 * 3600.0
    """How long an improvement is expected to last.  Time saved is counted for as many requests, one after the other, as
    the swarm would serve in this time if it were placed from scratch."""
    load_bytes_per_second: float = 25e6
    """How fast a peer fetches and loads weights."""
    min_gain: float = 0.03
    """Improvements below this fraction of the request time are not begun."""

    def __post_init__(self) -> None:
        for name in ("horizon_seconds", "load_bytes_per_second"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        if not 0 < self.min_gain < 1:
            raise ValueError(f"min_gain must be between 0 and 1, not {self.min_gain}")


class Reason(enum.Enum):
    """Why a move is worth making."""

    JOIN = "join"
    REPAIR = "repair"
    IMPROVE = "improve"


@dataclass(frozen=True, slots=True)
class Move:
    """`peer` should host `after` instead of `before` (None: it hosts nothing yet)."""

    peer: PeerId
    before: BlockRange | None
    after: BlockRange
    reason: Reason

    @property
    def loaded_blocks(self) -> int:
        """How many blocks the peer has to load."""
        return len(set(self.after) - set(self.before or ()))


def decide(swarm: Swarm, policy: ReplanPolicy | None = None) -> Move | None:
    """The one move worth making now, or None if the swarm rests.

    Draining and leaving peers are planned without; claimed moves count as made.  Only peers that serve, are not
    fixed and have no claim are moved.  O(n L) with n peers and L blocks.
    """
    view = PlanningView.of(swarm, policy or ReplanPolicy())
    if view is None:
        return None
    return joining_move(view) or _repair(view) or _improve(view)


def after_move(swarm: Swarm, move: Move) -> Swarm:
    """The snapshot in which the move has been made and its peer serves."""
    peers = tuple(
        replace(peer, blocks=move.after, block_hashes=(), state=PeerState.SERVING, claim=None)
        if peer.id == move.peer
        else peer
        for peer in swarm.peers
    )
    return replace(swarm, peers=peers)


def upcoming(swarm: Swarm, policy: ReplanPolicy | None = None, limit: int = 8) -> tuple[Move, ...]:
    """The move worth making now and those that follow it while it is under way, at most one per peer, `limit` in all.

    All peers compute the same list, so each may claim its own entry at once: a crowd that joins need not queue.
    """
    moves: list[Move] = []
    while len(moves) < limit and (move := decide(swarm, policy)) is not None:
        moves.append(move)
        claim = MoveClaim(swarm.now_seconds, move.after)
        swarm = replace(swarm, peers=tuple(replace(p, claim=claim) if p.id == move.peer else p for p in swarm.peers))
    return tuple(moves)


# --- what the snapshot says of clients and load ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clients:
    """V_c: where requests come from and how many sessions each place has, in a fixed order."""

    places: tuple[Coordinate, ...]
    weights: tuple[float, ...]


def clients_of(swarm: Swarm) -> Clients:
    """The centroids that the peers announce, weighted by their sessions; without any, the peers' own coordinates.

    Quantised to cells of CLIENT_CELL_SECONDS; the MAX_CLIENTS heaviest cells count.  May be empty.
    """
    weighted = [
        (centroid, max(peer.concurrency, 0.01) / len(peer.client_centroids))
        for peer in swarm.peers
        for centroid in peer.client_centroids
        if _is_usable(centroid)
    ]
    if not weighted:
        weighted = [(peer.coordinate, 1.0) for peer in swarm.peers if _is_usable(peer.coordinate)]
    if not weighted:
        return Clients((), ())
    points = np.array([(*coordinate.vector, coordinate.height) for coordinate, _ in weighted])
    cells, members = np.unique(np.rint(points / CLIENT_CELL_SECONDS), axis=0, return_inverse=True)
    weights = np.bincount(members.ravel(), weights=[weight for _, weight in weighted])
    heaviest = np.argsort(-weights.round(6), kind="stable")[:MAX_CLIENTS]
    places = cells[heaviest] * CLIENT_CELL_SECONDS
    return Clients(
        tuple(Coordinate(tuple(map(float, place[:-1])), height=float(place[-1])) for place in places),
        tuple(map(float, weights[heaviest])),
    )


def _is_usable(coordinate: Coordinate | None) -> TypeGuard[Coordinate]:
    """Whether there is a coordinate, and of our dimensions: one peer's oddity must not stop everybody's planning."""
    return coordinate is not None and len(coordinate.vector) == DIMENSIONS


def client_rtt_seconds(clients: Clients, peers: Sequence[PeerSpec]) -> FloatArray:
    """Round trips of every place to every peer, (C, n); one unknown place if there are no clients."""
    rtt = np.full((max(1, len(clients.places)), len(peers)), UNKNOWN_RTT_SECONDS)
    known = [(j, peer.coordinate) for j, peer in enumerate(peers) if _is_usable(peer.coordinate)]
    if known and clients.places:
        columns = [j for j, _ in known]
        vectors = np.array([coordinate.vector for _, coordinate in known])
        heights = np.array([coordinate.height for _, coordinate in known])
        for row, place in enumerate(clients.places):
            rtt[row, columns] = np.linalg.norm(vectors - np.array(place.vector), axis=1) + heights + place.height
    return rtt


def concurrency_of(model: PerfModel, peer_sessions: FloatArray) -> int:
    """R: the largest that does not lengthen the shortest chain, or more if the peers observe more sessions than that.

    `peer_sessions`: (n,), sessions that each peer observed in parallel.  A session occupies L blocks in all, so there
    are about sum(sessions_j * m_j) / L of them, over-estimated where chains leave a peer before its last block; m_j is
    taken for R and not from the present ranges, so that a move does not change R.  An over-large R costs almost nothing
    until a chain needs one more peer, an under-sized one is a disaster, hence one standard deviation is added and R
    rounded up to the next of CONCURRENCY_STEPS.  At least 1, even where 1 is infeasible.
    """
    feasible = [steps for steps in CONCURRENCY_STEPS if is_feasible(model, steps)]  # A prefix: monotone in R.
    if not feasible:
        return 1
    shortest = _fewest_peers(model, 1)
    free = max(steps for steps in feasible if _fewest_peers(model, steps) == shortest)
    for steps in feasible:
        sessions = float(peer_sessions @ conservative_sizes(model, steps)) / model.num_blocks
        if steps >= max(free, sessions + math.sqrt(sessions)):
            return steps
    return feasible[-1]


def _fewest_peers(model: PerfModel, concurrency: int) -> int:
    """How many of the largest peers it takes to host all blocks."""
    sizes = np.sort(conservative_sizes(model, concurrency))[::-1]
    hosted = np.cumsum(sizes)
    return 1 + int((hosted < model.num_blocks).sum())


# --- the snapshot in arrays ------------------------------------------------------------------------------------


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
    """m_j for R; a peer that has no room for R sessions at one block hosts one block all the same."""
    amortised: FloatArray
    order: tuple[int, ...]
    ranges: IntArray
    """What each peer hosts once all claimed moves are made."""
    holders: IntArray
    """Peers that serve each block and have not claimed to drop it, (L,)."""

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
        farthest = model.rtt_seconds.max(axis=0)
        amortised = np.where(sizes > 0, farthest / np.maximum(sizes, 1) + model.decode_seconds, np.inf)
        hosted = [peer.claim.blocks if peer.claim is not None else peer.blocks for peer in peers]
        return cls(
            policy=policy,
            peers=peers,
            model=model,
            client_weights=client_weights,
            concurrency=concurrency,
            sizes=sizes,
            amortised=amortised,
            order=greedy_order(amortised),
            ranges=np.array([(0, 0) if r is None else (r.start, r.stop) for r in hosted], dtype=np.int64),
            holders=_holders(peers, model.num_blocks),
        )

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
        dropped = [b for b in range(*self.ranges[j]) if not start <= b < stop]
        return bool((self.holders[dropped] > 1).all())

    def move(self, j: int, start: int, reason: Reason, stop: int | None = None) -> Move:
        """The move of peer j to the window that begins at `start`, of the planned size unless `stop` is given."""
        before = BlockRange(*map(int, self.ranges[j])) if self.is_placed(j) else None
        after = BlockRange(int(start), int(start + self.sizes[j] if stop is None else stop))
        return Move(self.peers[j].id, before, after, reason)

    def load_seconds(self, ranges: IntArray) -> float:
        """Time that loading takes what `ranges` add to the present ones, one peer after the other."""
        blocks = int(_new_blocks(self.ranges, ranges).sum())
        return blocks * self.model.block_bytes / self.policy.load_bytes_per_second

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
        """What the rule minimises, half and half: what requests take under load, and what the farthest client is
        promised.  The first alone would trade the guarantee for gains under load, the second sees no load."""
        times = self.request_times(ranges)
        return (times.among_others + float(times.alone[-1])) / 2.0

    @cached_property
    def index(self) -> dict[PeerId, int]:
        """Where each peer stands in `peers`."""
        return {peer.id: j for j, peer in enumerate(self.peers)}

    @cached_property
    def _model_and_farthest(self) -> PerfModel:
        both = (self.model.rtt_seconds, self.model.prefill_rtt_seconds)
        rtt, prefill_rtt = (np.vstack([rtt, rtt.max(axis=0)]) for rtt in both)
        return replace(self.model, rtt_seconds=rtt, prefill_rtt_seconds=prefill_rtt)


def _expected_sessions(concurrency: int) -> float:
    """The mean x of a Poisson number of sessions for which R is planned: R = x + sqrt(x), as the rule for R has it."""
    return ((math.sqrt(4.0 * concurrency + 1.0) - 1.0) / 2.0) ** 2


def _holders(peers: Sequence[PeerSpec], num_blocks: int) -> IntArray:
    """How many peers serve each block and will go on doing so."""
    holders = np.zeros(num_blocks, dtype=np.int64)
    for peer in peers:
        if peer.state is PeerState.SERVING and peer.blocks is not None:
            kept = peer.blocks
            start, stop = (kept.start, kept.stop)
            if peer.claim is not None:
                start, stop = max(start, peer.claim.blocks.start), min(stop, peer.claim.blocks.stop)
            holders[start : max(start, stop)] += 1
    return holders


def _new_blocks(before: IntArray, after: IntArray) -> IntArray:
    """Blocks of `after` that are not in `before`, row by row of (n, 2) ranges."""
    low, high = np.maximum(before[..., 0], after[..., 0]), np.minimum(before[..., 1], after[..., 1])
    return np.asarray(after[..., 1] - after[..., 0] - np.maximum(high - low, 0))


def _window_sums(values: NDArray[np.generic], size: int) -> FloatArray:
    sums = np.concatenate(([0.0], np.cumsum(values)))
    return np.asarray(sums[size:] - sums[:-size])


# --- 1. join ---------------------------------------------------------------------------------------------------


def joining_move(view: PlanningView) -> Move | None:
    """The first peer in greedy order that hosts nothing gets the window with most uncovered blocks, its planned one if
    that is as good; where all blocks are covered its planned one, or if it is spare the least provisioned."""
    first = next((j for j in view.order if view.unplaced(j)), None)
    if first is None:
        return None
    start, stop = _planned_ranges(view, sticky=True)[first].tolist()
    uncovered = _uncovered(view)
    if uncovered.any():
        covers = _window_sums(uncovered, int(view.sizes[first]))
        if stop == 0 or covers[start] < covers.max():
            start = int(np.argmax(covers))
    elif stop == 0:
        start = _least_provisioned(view, first)
    return view.move(first, start, Reason.JOIN)


def _uncovered(view: PlanningView) -> NDArray[np.bool_]:
    """Which blocks nobody hosts, (L,)."""
    length = view.model.num_blocks + 1
    hosts = np.bincount(view.ranges[:, 0], minlength=length) - np.bincount(view.ranges[:, 1], minlength=length)
    return np.asarray(np.cumsum(hosts)[:-1] == 0)


def _least_provisioned(view: PlanningView, j: int) -> int:
    """CG-BP's second phase on the present ranges: the window whose ascending C_b are lexicographically smallest."""
    windows = np.lib.stride_tricks.sliding_window_view(view.capacities(view.ranges), int(view.sizes[j]))
    vectors = np.sort(windows, axis=1).tolist()
    return min(range(len(vectors)), key=lambda start: (vectors[start], start))


# --- 2. repair -------------------------------------------------------------------------------------------------


def _repair(view: PlanningView) -> Move | None:
    """The safe move that covers most uncovered blocks; then the least load, the slowest peer, the first window."""
    missing = _uncovered(view)
    if not missing.any():
        return None
    uncovered = np.concatenate(([0], np.cumsum(missing)))
    critical = np.concatenate(([0], np.cumsum(view.holders <= 1)))
    best: tuple[int, int] | None = None
    move: Move | None = None
    for j in reversed(view.order):
        if not view.movable(j):
            continue
        size = int(view.sizes[j])
        first, last = view.ranges[j].tolist()
        starts = np.arange(view.model.num_blocks - size + 1)
        low = np.maximum(starts, first)
        high = np.maximum(low, np.minimum(starts + size, last))
        safe = critical[high] - critical[low] == critical[last] - critical[first]
        covers = np.where(safe, uncovered[starts + size] - uncovered[starts], 0)
        covered = int(covers.max())
        loads = np.where(covers == covered, size - (high - low), size + 1)
        start = int(np.argmin(loads))
        key = (-covered, int(loads[start]))
        if covered > 0 and (best is None or key < best):
            best, move = key, view.move(j, start, Reason.REPAIR)
    return move


# --- 3. improve ------------------------------------------------------------------------------------------------

STICKY_TOLERANCE = 0.25
"""In a sticky plan a peer stays that contributes at least 1 - STICKY_TOLERANCE of what its best window would."""


def _improve(view: PlanningView) -> Move | None:
    """The first move that can be made of the plan that costs least over the horizon, loading included, if one pays."""
    anew = _planned_ranges(view, sticky=False)
    scratch, packed = _over(view.ranges, anew), _over(view.ranges, _packed_ranges(view, anew))
    if _uncovered(view).any():
        return _cover_by_plan(view, scratch, packed)
    # What the horizon costs, in seconds, under every plan: one currency for all, so that a step of the best plan makes
    # it better by what it loaded, and no later choice leads back.
    reference, now = view.cost_seconds(scratch), view.cost_seconds(view.ranges)
    unit = view.policy.horizon_seconds / reference if math.isfinite(reference) else 1.0
    best_cost, best = unit * now, view.ranges
    for plan in (_over(view.ranges, _planned_ranges(view, sticky=True)), packed, scratch):
        load_seconds = view.load_seconds(plan)
        if (plan == view.ranges).all() or load_seconds >= best_cost:
            continue
        seconds = reference if plan is scratch else view.cost_seconds(plan)
        if seconds <= (1.0 - view.policy.min_gain) * now and unit * seconds + load_seconds < best_cost:
            best_cost, best = unit * seconds + load_seconds, plan
    return _packing_step(view, best) if best is packed else _first_step(view, best)


def _cover_by_plan(view: PlanningView, scratch: IntArray, packed: IntArray) -> Move | None:
    """Where blocks are uncovered that no single move can cover: a step towards a placement that covers all, whatever it
    loads.  The one from scratch does not depend on the present ranges, and who is in place there stays: every step
    leads on."""
    out_of_place = (view.ranges != scratch).any(axis=1)
    if math.isfinite(view.cost_seconds(scratch)) and (move := _first_step(view, scratch)) is not None:
        return move
    return _packing_step(view, packed, out_of_place) if math.isfinite(view.cost_seconds(packed)) else None


def _first_step(view: PlanningView, plan: IntArray) -> Move | None:
    """The first of the plan's moves, in greedy order, that can be made safely now."""
    return next(_steps(view, plan), None)


def _packing_step(view: PlanningView, packed: IntArray, allowed: NDArray[np.bool_] | None = None) -> Move | None:
    """The same of a packed plan: a move that leaves the order of the peers, and with it the plan, as it is; else the
    first after which the peers can still be packed as well and with as little loading."""
    order = _by_position(view.ranges)
    fallback = None
    for move in _steps(view, packed):
        j = view.index[move.peer]
        if allowed is None or allowed[j]:
            after = view.ranges.copy()
            after[j] = packed[j]
            if (_by_position(after) == order).all():
                return move
            fallback = fallback or (move, replace(view, ranges=after))
    if fallback is None:
        return None
    move, then = fallback
    repacked = _over(then.ranges, _packed_ranges(then, _planned_ranges(then, sticky=False)))
    as_well = then.cost_seconds(repacked) <= view.cost_seconds(packed)
    return move if as_well and then.load_seconds(repacked) <= view.load_seconds(packed) else None


def _steps(view: PlanningView, plan: IntArray) -> Iterator[Move]:
    """The plan's moves that can be made safely now, in greedy order."""
    changed = (plan != view.ranges).any(axis=1)
    for j in view.order:
        start, stop = plan[j].tolist()
        if changed[j] and view.movable(j) and view.is_safe(j, start, stop):
            yield view.move(j, start, Reason.IMPROVE, stop)


def _by_position(ranges: IntArray) -> IntArray:
    """The peers by first block, then by last."""
    return np.lexsort((ranges[:, 1], ranges[:, 0]))


def _over(present: IntArray, planned: IntArray) -> IntArray:
    """The planned ranges, and the present ones where nothing is planned."""
    return np.where(planned[:, 1:] > 0, planned, present)


def _planned_ranges(view: PlanningView, *, sticky: bool) -> IntArray:
    """CG-BP's first phase, if `sticky` with peers that stay where they contribute about as much as elsewhere; (n, 2).

    Peers after the one with which every block has room for R sessions get 0, 0: they are spare and stay.
    """
    num_blocks, concurrency = view.model.num_blocks, view.concurrency
    dummy = float(view.amortised[np.isfinite(view.amortised)].max(initial=0.0)) + 0.001
    tie = 1e-9 * dummy * num_blocks
    capacities = np.zeros(num_blocks, dtype=np.int64)
    backlog = np.full(num_blocks, dummy)  # T_b / R
    sessions = view.model.full_sessions(view.sizes).tolist()
    present_sessions = view.model.full_sessions(view.ranges[:, 1] - view.ranges[:, 0]).tolist()
    planned = np.zeros_like(view.ranges)

    def book(j: int, start: int, stop: int, f: int) -> None:
        newly = np.clip(concurrency - capacities[start:stop], 0, f)
        backlog[start:stop] -= (dummy - min(view.amortised[j], dummy)) * newly / concurrency
        capacities[start:stop] += f
        planned[j] = start, stop

    for j, peer in enumerate(view.peers):
        if peer.blocks_fixed and view.is_placed(j):
            first, last = view.ranges[j].tolist()
            book(j, first, last, present_sessions[j])
    for j in view.order:
        short = np.maximum(concurrency - capacities, 0)
        if not short.any():
            break
        if view.peers[j].blocks_fixed:
            continue
        size, f = int(view.sizes[j]), sessions[j]
        contribution = _window_sums(np.minimum(short, f), size)
        first, last = view.ranges[j].tolist()
        if sticky and last > 0:
            here = int(np.minimum(short[first:last], present_sessions[j]).sum())
            if here > 0 and here >= (1.0 - STICKY_TOLERANCE) * contribution.max():
                book(j, first, last, present_sessions[j])
                continue
        sums = np.where(contribution > 0, _window_sums(backlog, size), -np.inf)
        starts = np.flatnonzero(sums >= sums.max() - tie)
        if last == 0:  # A joining peer relieves the slowest of the equally good windows.
            relief = _window_sums(_block_seconds(view, dummy), size)[starts]
            starts = starts[relief >= relief.max() - tie]
        elif sticky:  # Others spare themselves some loading.
            loads = _new_blocks(view.ranges[j], np.stack([starts, starts + size], axis=1))
            starts = starts[loads == loads.min()]
        book(j, int(starts[0]), int(starts[0]) + size, f)
    return planned


def _packed_ranges(view: PlanningView, planned: IntArray) -> IntArray:
    """The same peers side by side in the order of their present ranges, each as near to it as the others allow.

    As good as the plan from scratch wherever that lays out a partition, and much cheaper to reach.
    """
    packed = planned.copy()
    moving = [
        j
        for j in _by_position(view.ranges).tolist()
        if planned[j, 1] > 0 and view.is_placed(j) and not view.peers[j].blocks_fixed
    ]
    remaining = int(view.sizes[moving].sum())
    end = 0
    for j in moving:
        size = int(view.sizes[j])
        lowest, highest = max(0, view.model.num_blocks - remaining), min(end, view.model.num_blocks - size)
        start = min(max(int(view.ranges[j, 0]), lowest), highest)
        packed[j] = start, start + size
        end = max(end, start + size)
        remaining -= size
    return packed


def _block_seconds(view: PlanningView, dummy: float) -> FloatArray:
    """Amortised time of each block on the fastest peer that hosts it now; `dummy` where nobody does. (L,)"""
    seconds = np.full(view.model.num_blocks, dummy)
    for (start, stop), amortised in zip(view.ranges.tolist(), view.amortised.tolist(), strict=True):
        window = seconds[start:stop]
        np.minimum(window, amortised, out=window)
    return seconds


# --- claims: one decision out of many old snapshots ------------------------------------------------------------


class Verdict(enum.Enum):
    """What a peer does with its claim after it has read the records again."""

    WAIT = "wait"
    MOVE = "move"
    WITHDRAW = "withdraw"


def judge_claim(swarm: Swarm, peer_id: PeerId, policy: ReplanPolicy | None = None, *, loaded: bool = False) -> Verdict:
    """Whether the peer may make the move that it has claimed, on its own snapshot at `swarm.now_seconds`.

    The snapshot contains the peer's own record with the claim, which it announces from the claim on until it has moved
    or withdraws.  It asks whenever it has read the records: WAIT, WITHDRAW, or MOVE to begin loading; then with
    `loaded` before it drops its old blocks.

    * Of claims that add or drop a common block the smallest (time, id) wins; the others are withdrawn.
    * Until loading begins the move must still be among the upcoming ones, or it is withdrawn: one bad snapshot, in
      which a peer is missing, moves nobody.
    * Every dropped block needs a witness: a peer whose record, not expired and issued after the claim was made (by more
      than the clocks may differ), says that it serves the block and claims nothing that drops it.  Peers that are only
      remembered, up to MEMORY_SECONDS, are planned with but are no witnesses.

    The last rule makes it safe with snapshots of any age and any loss of records, by this argument: if all servers
    of a block dropped it, take the one that claimed last.  Its witness had claimed before, so the witness's record,
    issued later still, carried that claim or no longer the block.  A lost record only delays a move.
    What no rule over records can prevent is a witness that crashes after its last record.
    Raises ValueError if the peer has no claim, KeyError if it is not in the snapshot.
    """
    me = swarm.peer(peer_id)
    if me.claim is None:
        raise ValueError(f"peer {peer_id} has claimed no move")
    claim, before = me.claim, me.blocks
    others = [peer for peer in swarm.peers if peer.id != peer_id]
    for peer in others:
        rival = peer.claim
        if (
            rival is not None
            and (rival.at_seconds, peer.id) < (claim.at_seconds, peer_id)
            and _conflict((before, claim.blocks), (peer.blocks, rival.blocks))
        ):
            return Verdict.WITHDRAW
    age = swarm.now_seconds - claim.at_seconds
    if age < REFRESH_SECONDS:
        return Verdict.WAIT
    oldest = max(claim.at_seconds + CLOCK_SKEW_SECONDS, swarm.now_seconds - RECORD_LIFETIME_SECONDS)
    fresh = [peer for peer in others if peer.issued_seconds > oldest]
    witnesses = _holders(fresh, swarm.model.num_blocks)
    if before is not None and any(witnesses[block] == 0 for block in before if block not in claim.blocks):
        return Verdict.WAIT if loaded or age < CLAIM_LIFETIME_SECONDS else Verdict.WITHDRAW
    return Verdict.MOVE if loaded or _is_wanted(swarm, me, policy) else Verdict.WITHDRAW


def _is_wanted(swarm: Swarm, me: PeerSpec, policy: ReplanPolicy | None) -> bool:
    """Whether the peer would still be sent where it has claimed to go, had it not claimed."""
    unclaimed = tuple(replace(peer, claim=None) if peer is me else peer for peer in swarm.peers)
    moves = upcoming(replace(swarm, peers=unclaimed), policy)
    return any(me.claim is not None and (move.peer, move.after) == (me.id, me.claim.blocks) for move in moves)


def _conflict(a: tuple[BlockRange | None, BlockRange], b: tuple[BlockRange | None, BlockRange]) -> bool:
    """Whether two changes (before, after) add or drop a common block."""
    (before_a, after_a), (before_b, after_b) = ((set(before or ()), set(after)) for before, after in (a, b))
    return bool((after_a - before_a) & (after_b - before_b) or (before_a - after_a) & (before_b - after_b))
