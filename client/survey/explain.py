"""Why a chain was chosen: its times hop by hop, the best other chain, and for each peer that is not used, why not.

Pure functions of what a client knows, behind one look; the choice is the client's own (`CurrentSwarm.choose`).
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
"""Peers of the chain without which another one is looked for."""
MOST_PLACES = 8
"""Hops in whose place a peer is tried: of those that have blocks of it, the ones that take longest."""
MOST_LISTED = 50
"""Peers that are listed with their reason; all are counted."""


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
    """The time that the network of a step takes more with the peer in its best place in the chain, or less..."""
    compute_seconds: float | None = None
    """...and that at the peers. None: it does not fit into this chain without others that are not in it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A chain, and why it is not another one."""

    chain: PredictedChain
    wait_seconds: tuple[float, ...]
    """Until each hop has room."""
    runner_up: PredictedChain | None
    """The best of the chains without one of the chain's first MOST_SEARCHES peers; None: there is none."""
    unused: tuple[UnusedPeer, ...]
    """At most MOST_LISTED: those that come nearest first."""
    counts: Mapping[WhyUnused, int]
    """Numbers of all peers that are not used."""


@dataclass(frozen=True)
class Unmet:
    """A peer that the client has not met: its record, and whether it was asked."""

    record: PeerRecord
    was_asked: bool


async def explained_chain(model: ModelName, options: SwarmOptions, request: RequestSpec) -> Explanation:
    """The chain that the request would get now, and why. Raises NoChainError and other SwarmErrors."""
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
    """`chosen`: the chain that `current` gives the request; `meter` makes the budget of one search more.

    MOST_SEARCHES searches, and a few predictions for each peer.
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
    """All peers that are not among the `chosen`, those that come nearest first; `chosen` is empty if there is no chain.

    A few predictions for each peer.
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
    """Why the router cannot use a peer that has been met."""
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
    """The places in a chain, and what a step takes more with another peer there.

    A peer changes the hops in its place and the ways to their neighbours: only these are predicted, not the chain.
    """

    def __init__(self, hops: Chain, prepared: PreparedSwarm, push: bool) -> None:
        self._hops = hops
        self._prepared = prepared
        self._push = push
        self._starts = [blocks.start for _, blocks in hops]
        taken = _step(hops, prepared, push).hops if hops else ()
        self._taken = [hop.way_seconds + hop.visit_seconds + hop.compute_seconds for hop in taken]
        self._present: dict[tuple[int, int], tuple[float, float]] = {}
        """By the hops that are looked at: what they take now."""

    def best_for(self, spec: PeerSpec) -> tuple[float, float] | None:
        """Seconds of the network, and at the peers, that a step takes more with the peer in its best place.

        In the place of one hop's blocks, or of all that it has; None if in each of these a peer would come twice.
        """
        assert spec.blocks is not None
        slowest = heapq.nlargest(MOST_PLACES, range(*self._within(spec.blocks)), key=self._taken.__getitem__)
        spans = [spec.blocks, *(_overlap(spec.blocks, self._hops[hop][1]) for hop in slowest)]
        changes = [self._change(spec, span) for span in dict.fromkeys(spans) if span is not None]
        return min((change for change in changes if change is not None), key=sum, default=None)

    def _within(self, span: BlockRange) -> tuple[int, int]:
        """The first hop with blocks of the span, and the one behind the last."""
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
    """Seconds of the network, and at the peers."""
    network = sum(hop.way_seconds for hop in times.hops) + times.return_seconds
    return network, times.step_seconds - network


def _seconds_more(peer: UnusedPeer) -> float:
    return (peer.network_seconds or 0.0) + (peer.compute_seconds or 0.0)
