"""Explains why a chain was chosen: its times hop by hop, the runner-up, and why each other peer is not used.

Pure functions of what a client knows after one look; the choice is the client's own (`CurrentSwarm.choose`).
"""

from __future__ import annotations

import asyncio
import heapq
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ...proto.directory.records import PeerRecord
from ...proto.errors import SwarmError
from ...routing.route.budget import Meter, SearchBudget
from ...routing.route.predict import ChainTimes, predict_step
from ...routing.swarm import BlockRange, PeerId, PeerSpec, PeerState, RequestSpec
from ..chain.machine.events import HopChoice
from ..program.options import SwarmOptions
from ..swarm.place import PINGS_A_LOOK
from ..swarm.router import ViewRouter
from ..swarm.snapshot import MOST_BYTES, CurrentSwarm, PreparedSwarm
from .survey import ModelName, PredictedChain, predict, survey_view

MOST_SEARCHES = 8
"""How many peers of the chain are excluded, one at a time, to find the runner-up."""
MOST_PLACES = 8
"""How many hops a peer is tried in place of: the slowest ones of those that share blocks with it."""
MOST_LISTED = 50
"""How many peers are listed with their reason; all are counted."""


class WhyUnused(Enum):
    """Why a peer is not on a chain."""

    SLOWER = "chains with it are slower"
    NO_GAIN = "a step is as fast in its place, but the request is not done sooner"
    NO_CHAIN = "no chain is complete, with it or without"
    NO_ROOM = "it has no room for the request now"
    FAILED = "it has failed lately"
    DOUBTED = "its weights are not believed"
    LEAVES = "it leaves"
    JOINS = "it serves no blocks yet"
    FOREIGN = "it has blocks that the model does not have"
    NOT_ALLOWED = "this client may not use it"
    SILENT = "it does not answer"
    NOT_ASKED = "it was not pinged: others promise more"


@dataclass(frozen=True, slots=True)
class UnusedPeer:
    """A peer that is not on the chain."""

    peer: PeerId
    name: str
    blocks: BlockRange | None
    reason: WhyUnused
    network_seconds: float | None = None
    """How much longer a step's network time is with the peer in its best place in the chain (< 0: shorter)..."""
    compute_seconds: float | None = None
    """...and its time at the peers. None: the peer cannot be used, or fits into no place of this chain."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A chain, and why it was chosen."""

    chain: PredictedChain
    wait_seconds: tuple[float, ...]
    """Until each hop has room."""
    runner_up: PredictedChain | None
    """The best chain without one of the chain's first MOST_SEARCHES peers; None: there is none."""
    unused: tuple[UnusedPeer, ...]
    """At most MOST_LISTED, those closest to being used first."""
    counts: Mapping[WhyUnused, int]
    """The number of all unused peers, by reason."""


@dataclass(frozen=True)
class Unmet:
    """A peer that did not answer: its record, and whether it was pinged."""

    record: PeerRecord
    was_asked: bool


async def explained_chain(model: ModelName, options: SwarmOptions, request: RequestSpec) -> Explanation:
    """Return the chain that the request would get now, and why. Raises NoChainError and other SwarmErrors."""
    async with survey_view(model, options, PINGS_A_LOOK) as view:
        chosen = await ViewRouter(view).choose(BlockRange(0, model.num_blocks), frozenset(), request)
        unmet = {peer: Unmet(record, view.was_silent(peer)) for peer, record in view.silent.items()}
        budget = SearchBudget(view.timing.route_seconds, MOST_BYTES)
        return await asyncio.to_thread(
            explain, view.current(), unmet, chosen, request, options.push, lambda: Meter(budget, time.thread_time)
        )


def explain(
    current: CurrentSwarm,
    unmet: Mapping[PeerId, Unmet],
    chosen: Sequence[HopChoice],
    request: RequestSpec,
    push: bool,
    meter: Callable[[], Meter],
) -> Explanation:
    """Explain `chosen`, the chain that `current` gives the request; `meter` makes the budget of one further search.

    Takes at most MOST_SEARCHES searches, and a few predictions for each peer.
    """
    prepared = current.prepared
    chain = predict(chosen, prepared, push)
    others = unused_peers(current, unmet, chosen, request, push)
    return Explanation(
        chain,
        tuple(hop.wait_seconds for hop in chosen),
        _runner_up(current, chosen, request, push, meter),
        tuple(others[:MOST_LISTED]),
        Counter(peer.reason for peer in others),
    )


def unused_peers(
    current: CurrentSwarm,
    unmet: Mapping[PeerId, Unmet],
    chosen: Sequence[HopChoice],
    request: RequestSpec,
    push: bool,
) -> list[UnusedPeer]:
    """Return all peers that are not `chosen`, those closest to being used first; takes a few predictions per peer.

    `chosen` is empty if there is no chain.
    """
    others = [*_met_peers(current, chosen, request, push), *_unmet_peers(current.prepared, unmet)]
    reasons = list(WhyUnused)
    others.sort(key=lambda peer: (reasons.index(peer.reason), _seconds_more(peer), peer.peer))
    return others


def _runner_up(
    current: CurrentSwarm,
    chosen: Sequence[HopChoice],
    request: RequestSpec,
    push: bool,
    meter: Callable[[], Meter],
) -> PredictedChain | None:
    every = BlockRange(0, current.prepared.finder.swarm.model.num_blocks)
    found: list[tuple[float, PredictedChain]] = []
    for hop in chosen[:MOST_SEARCHES]:
        try:
            other = current.choose(every, frozenset({hop.peer}), request, None, meter(), settle=True)
        except SwarmError:
            continue  # there is no chain without this peer
        chain = predict(other, current.prepared, push)
        wait = max(choice.wait_seconds for choice in other)
        found.append((wait + chain.step_seconds * request.new_tokens, chain))
    return min(found, key=lambda each: each[0])[1] if found else None


def _met_peers(
    current: CurrentSwarm, chosen: Sequence[HopChoice], request: RequestSpec, push: bool
) -> list[UnusedPeer]:
    prepared, on_chain = current.prepared, {hop.peer for hop in chosen}
    hops = [(prepared.spec(hop.peer), hop.blocks) for hop in chosen]
    places = _Places(hops, prepared, push)
    unused = []
    for peer, known in prepared.known.items():
        if peer in on_chain:
            continue
        spec, name = known.record.spec, known.record.public_name
        reason = _unusable(current, spec, request)
        if reason is None and not hops:
            reason = WhyUnused.NO_CHAIN
        if reason is not None:
            unused.append(UnusedPeer(peer, name, spec.blocks, reason))
            continue
        more = places.best_for(prepared.spec(peer))
        if more is None:
            unused.append(UnusedPeer(peer, name, spec.blocks, WhyUnused.SLOWER))
            continue
        network, compute = more
        reason = WhyUnused.SLOWER if network + compute > 0 else WhyUnused.NO_GAIN
        unused.append(UnusedPeer(peer, name, spec.blocks, reason, network, compute))
    return unused


def _unusable(current: CurrentSwarm, spec: PeerSpec, request: RequestSpec) -> WhyUnused | None:
    """Return why the router cannot use a peer that answered; None if it can."""
    prepared, peer = current.prepared, spec.id
    if prepared.allowed is not None and peer not in prepared.allowed:
        return WhyUnused.NOT_ALLOWED
    if peer in prepared.trust.doubted:
        return WhyUnused.DOUBTED
    if spec.state in (PeerState.DRAINING, PeerState.LEAVING):
        return WhyUnused.LEAVES
    if spec.state is PeerState.JOINING or spec.blocks is None:
        return WhyUnused.JOINS
    if peer not in prepared.finder.index:
        return WhyUnused.FOREIGN
    if peer in current.banned:
        return WhyUnused.FAILED
    if peer in current.full_until or spec.kv_tokens_free < request.kv_tokens_per_block:
        return WhyUnused.NO_ROOM
    return None


def _unmet_peers(prepared: PreparedSwarm, unmet: Mapping[PeerId, Unmet]) -> list[UnusedPeer]:
    return [
        UnusedPeer(peer, each.record.public_name, each.record.spec.blocks, _why_unmet(each))
        for peer, each in unmet.items()
        if peer not in prepared.known
    ]


def _why_unmet(peer: Unmet) -> WhyUnused:
    if peer.record.spec.state is PeerState.JOINING:
        return WhyUnused.JOINS
    return WhyUnused.SILENT if peer.was_asked else WhyUnused.NOT_ASKED


# --- in its place ----------------------------------------------------------------------------------------------------

Chain = list[tuple[PeerSpec, BlockRange]]


class _Places:
    """The places in a chain, and how much longer a step takes with another peer there.

    A peer changes only the hops that it replaces and the links to their neighbours, so only these are predicted anew.
    """

    def __init__(self, hops: Chain, prepared: PreparedSwarm, push: bool) -> None:
        self._hops = hops
        self._prepared = prepared
        self._push = push
        self._starts = [blocks.start for _, blocks in hops]
        taken = _step(hops, prepared, push).hops if hops else ()
        self._taken = [hop.way_seconds + hop.visit_seconds + hop.compute_seconds for hop in taken]
        self._present: dict[tuple[int, int], tuple[float, float]] = {}
        """The present times of a window of hops, (network, peers) in seconds."""

    def best_for(self, spec: PeerSpec) -> tuple[float, float] | None:
        """Return the additional seconds, (network, at the peers), of a step with the peer in its best place.

        The places tried are all blocks of the peer, and those that it shares with one hop; None if in each of them some
        peer would occur twice in the chain.
        """
        assert spec.blocks is not None
        slowest = heapq.nlargest(MOST_PLACES, range(*self._within(spec.blocks)), key=self._taken.__getitem__)
        spans = [spec.blocks, *(_overlap(spec.blocks, self._hops[hop][1]) for hop in slowest)]
        changes = [self._change(spec, span) for span in dict.fromkeys(spans) if span is not None]
        return min((change for change in changes if change is not None), key=sum, default=None)

    def _within(self, span: BlockRange) -> tuple[int, int]:
        """Return the half-open range of hops that have blocks of the span."""
        return bisect_right(self._starts, span.start) - 1, bisect_left(self._starts, span.stop)

    def _change(self, spec: PeerSpec, span: BlockRange) -> tuple[float, float] | None:
        first, stop = self._within(span)
        window = max(0, first - 1), stop + 1
        near = self._hops[slice(*window)]
        changed = _replaced(near, spec, span)
        if len({peer.id for peer, _ in changed}) < len(changed):
            return None
        if window not in self._present:
            self._present[window] = _parts(_step(near, self._prepared, self._push))
        before, after = self._present[window], _parts(_step(changed, self._prepared, self._push))
        return after[0] - before[0], after[1] - before[1]


def _replaced(hops: Chain, spec: PeerSpec, span: BlockRange) -> Chain:
    before = [(peer, part) for peer, blocks in hops if (part := _overlap(blocks, _until(span.start))) is not None]
    after = [(peer, part) for peer, blocks in hops if (part := _overlap(blocks, _from(span.stop))) is not None]
    return [*before, (spec, span), *after]


def _overlap(a: BlockRange, b: BlockRange | None) -> BlockRange | None:
    if b is None or max(a.start, b.start) >= min(a.stop, b.stop):
        return None
    return BlockRange(max(a.start, b.start), min(a.stop, b.stop))


def _until(block: int) -> BlockRange | None:
    return BlockRange(0, block) if block > 0 else None


def _from(block: int) -> BlockRange:
    return BlockRange(block, block + 1_000_000)


def _step(hops: Chain, prepared: PreparedSwarm, push: bool) -> ChainTimes:
    rtts = {spec.id: prepared.known[spec.id].rtt_seconds for spec, _ in hops}
    return predict_step(hops, tokens=1, client_rtt_seconds=rtts, peer_rtt_seconds=prepared.rtts if push else None)


def _parts(times: ChainTimes) -> tuple[float, float]:
    """Split a step's time into (network, at the peers), in seconds."""
    network = sum(hop.way_seconds for hop in times.hops) + times.return_seconds
    return network, times.step_seconds - network


def _seconds_more(peer: UnusedPeer) -> float:
    return (peer.network_seconds or 0.0) + (peer.compute_seconds or 0.0)
