"""The swarm as the client last saw it, prepared for routing once per look; each request then only adds masks.

Everything here is immutable and does no I/O, so a request may be routed in a thread while the view looks again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...proto.errors import NoChainError, PeerBusy, SwarmError, describe_blocks
from ...proto.wire.precision import at_least
from ...routing.perf import BoolArray
from ...routing.place.windows import without_leaving_blocks
from ...routing.route.budget import Meter
from ...routing.route.repair import Repair
from ...routing.route.router import NoRouteError, RouteFinder, RouteQuery
from ...routing.rtt import RttTable
from ...routing.swarm import (
    BlockRange,
    Coordinate,
    Hop,
    KvRelease,
    ModelSpec,
    PeerId,
    PeerSpec,
    PeerState,
    RequestSpec,
    Swarm,
)
from ...routing.trust import Trust
from ..chain.machine.events import HopChoice, Layout

if TYPE_CHECKING:
    from .known import KnownPeer
    from .weights import WeightTrust

MOST_BYTES = 256 << 20
"""The most memory of a prepared snapshot, and of one search on top of it."""
PREPARED_ON_LOOP = 40
"""Snapshots of more peers are prepared in a thread: they would hold up the network loop."""


@dataclass(frozen=True)
class PreparedSwarm:
    """The peers that answered the last look, and the router over them."""

    known: Mapping[PeerId, KnownPeer]
    finder: RouteFinder
    rtts: RttTable
    """Round trips between peers: from coordinates if both have them and measurements do not contradict, else the larger
    of the two round trips to this client."""
    trust: Trust
    """Which peers' weights are believed; the router has no others."""
    draining: frozenset[PeerId] = frozenset()
    """Peers that are leaving: the router has them, but masks those whose blocks others serve."""
    allowed: frozenset[PeerId] | None = None
    """The peers that this client may use; the router has no others. None: all."""
    push: bool = True
    """Whether peers push their outputs to the next peer."""

    @classmethod
    def of(
        cls,
        known: Mapping[PeerId, KnownPeer],
        num_blocks: int,
        push: bool,
        weights: WeightTrust,
        allowed: frozenset[PeerId] | None = None,
        place: Coordinate | None = None,
    ) -> PreparedSwarm:
        """Prepare the known peers, without those that announce blocks beyond the model. O(peers ** 2).

        `place`: the client's coordinate.
        """
        trust = weights.among(known)
        may_be_used = known.items() if allowed is None else ((key, known[key]) for key in allowed & known.keys())
        fitting = [peer for _, peer in sorted(may_be_used) if _fits(peer.record.spec, num_blocks, trust)]
        specs = tuple(on_our_clock(peer.record.spec, peer.clock_offset_seconds) for peer in fitting)
        draining = frozenset(spec.id for spec in specs if spec.state is PeerState.DRAINING)
        specs = tuple(replace(spec, state=PeerState.SERVING) if spec.id in draining else spec for spec in specs)
        swarm = Swarm.of_announced(ModelSpec(num_blocks), specs)
        client_rtts = {peer.record.spec.id: peer.rtt_seconds for peer in fitting}
        rtts = RttTable(swarm, client_rtt_seconds=client_rtts, client=place)
        finder = RouteFinder(swarm, client_rtts, rtts if push else None, most_bytes=MOST_BYTES)
        return cls(known, finder, rtts, trust, draining, allowed, push)

    def spec(self, peer: PeerId) -> PeerSpec:
        """Return a peer as the router has it, with the costs that it was chosen for. Raises KeyError if unknown."""
        index = self.finder.index.get(peer)
        return self.known[peer].record.spec if index is None else self.finder.peers[index]

    @property
    def client_rtts(self) -> dict[PeerId, float]:
        """The measured round trips to all known peers, in seconds."""
        return {peer: known.rtt_seconds for peer, known in self.known.items()}

    @property
    def announced(self) -> tuple[PeerSpec, ...]:
        """The router's peers in the states that they announce (the router takes draining ones as serving)."""
        peers = self.finder.swarm.peers
        return tuple(replace(peer, state=PeerState.DRAINING) if peer.id in self.draining else peer for peer in peers)


async def prepare(
    known: Mapping[PeerId, KnownPeer],
    num_blocks: int,
    push: bool,
    weights: WeightTrust,
    allowed: frozenset[PeerId] | None = None,
    place: Coordinate | None = None,
) -> PreparedSwarm:
    """Return `PreparedSwarm.of(...)`, computed in a thread if it takes long."""
    if len(known) <= PREPARED_ON_LOOP:
        return PreparedSwarm.of(known, num_blocks, push, weights, allowed, place)
    return await asyncio.to_thread(PreparedSwarm.of, known, num_blocks, push, weights, allowed, place)


def _fits(spec: PeerSpec, num_blocks: int, trust: Trust) -> bool:
    return spec.id in trust.believed and (spec.blocks is None or spec.blocks.stop <= num_blocks)


def on_our_clock(spec: PeerSpec, clock_offset_seconds: float) -> PeerSpec:
    """Return a peer's announcement with the times of its releases converted to this client's clock."""
    releases = (KvRelease(release.at_seconds - clock_offset_seconds, release.tokens) for release in spec.releases)
    return replace(spec, releases=tuple(releases)) if spec.releases else spec


@dataclass(frozen=True)
class CurrentSwarm:
    """A prepared swarm with what has happened since; answers a session's questions about its chain."""

    prepared: PreparedSwarm
    now_seconds: float
    banned: Collection[PeerId]
    full_until: Mapping[PeerId, float]
    """When peers that refused a session will have room (Unix seconds), by what they said then; this overrides older
    records."""
    doubt_seconds: Mapping[PeerId, float]
    """Penalties, added to the cost of peers that have failed recently, so that others are preferred."""
    min_retry_seconds: float
    """Shortest pause before full peers are asked again, whatever they announce."""
    claim_stands_seconds: float
    """Once a peer's claim to other blocks has stood for this time, the peer counts as leaving its present blocks."""

    def choose(
        self,
        blocks: BlockRange,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None,
        meter: Meter,
        *,
        settle: bool,
    ) -> tuple[HopChoice, ...]:
        """Choose the chain over `blocks` with which the request is done soonest, including the wait for room.

        Uses no peer in `excluded`, and with `min_precision` only peers that compute at least as precisely. When the
        budget of `meter` ends, `settle` accepts a good chain instead of the best.

        Raises NoChainError; PeerBusy if every block has a host but room is missing and no peer announces when there
        will be some, or if no chain was found within the budget; OverBudgetError if `settle` is false.
        """
        query = self._query(request, blocks, excluded, min_precision)
        meter.extend(1.0)
        try:
            route = self.prepared.finder.cheapest_route(query, meter, settle=settle)
        except NoRouteError as error:
            raise self._unroutable(error, request, excluded, min_precision) from None
        return tuple(self._choice(hop, route.unproven_seconds) for hop in route.hops)

    def _choice(self, hop: Hop, unproven_seconds: float) -> HopChoice:
        known = self.prepared.known[hop.peer]
        return HopChoice(
            known.address,
            hop.blocks,
            known.encoded,
            hop.wait_seconds,
            known.record.spec.numeric_format,
            self.prepared.trust.believed[hop.peer],
            unproven_seconds,
            known.record.spec.stream_format,
        )

    def fill(
        self,
        kept: Layout,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None,
        meter: Meter,
        *,
        settle: bool,
    ) -> tuple[HopChoice, ...]:
        """Return the peers, in order, for the blocks that `kept` does not cover; none from `excluded` or `kept`.

        Every gap has the whole budget. Raises as `choose` does.
        """
        choices: list[HopChoice] = []
        repair = Repair(BlockRange(0, self.prepared.finder.swarm.model.num_blocks), kept)
        while repair.gap is not None:
            found = self.choose(repair.gap, repair.peers | excluded, request, min_precision, meter, settle=settle)
            repair = repair.filled((choice.peer, choice.blocks) for choice in found)
            choices += found
        return tuple(choices)

    def _query(
        self, request: RequestSpec, blocks: BlockRange, excluded: frozenset[PeerId], min_precision: str | None
    ) -> RouteQuery:
        finder = self.prepared.finder
        usable = np.ones(len(finder.peers), dtype=bool)
        usable[[finder.index[peer] for peer in (*self.banned, *excluded) if peer in finder.index]] = False
        if min_precision is not None:
            usable &= np.array([at_least(peer.numeric_format, min_precision) for peer in finder.peers], dtype=bool)
        kept = self._kept_blocks(usable)  # of usable peers only: the others cannot take over blocks that one drops
        usable[[finder.index[peer] for peer, rest in kept.items() if rest is None]] = False
        staying = {peer: rest for peer, rest in kept.items() if rest is not None}
        return RouteQuery(request, blocks, usable, self.now_seconds, self.full_until, self.doubt_seconds, staying)

    def _kept_blocks(self, usable: BoolArray) -> dict[PeerId, BlockRange | None]:
        """Return for each peer that is leaving, or about to drop blocks that other usable ones serve, what it keeps."""
        finder, draining = self.prepared.finder, self.prepared.draining
        if not draining and all(peer.claim is None for peer in finder.peers):
            return {}
        peers = [
            replace(peer, state=PeerState.DRAINING) if peer.id in draining else peer
            for peer, is_usable in zip(finder.peers, usable, strict=True)
            if is_usable
        ]
        staying = without_leaving_blocks(peers, finder.swarm.model.num_blocks, self.claim_stands_seconds)
        kept = {peer.id: peer.blocks for peer in staying}
        return {peer.id: kept.get(peer.id) for peer in peers if kept.get(peer.id) != peer.blocks}

    def _unroutable(
        self, error: NoRouteError, request: RequestSpec, excluded: frozenset[PeerId], min_precision: str | None
    ) -> SwarmError:
        missing, full = error.missing_blocks, error.full_blocks
        if missing:
            return self._nobody_serves(missing, excluded, min_precision)
        where = f"every host of {describe_blocks(full)}" if full else "every chain of peers"
        retry_seconds = max(error.retry_seconds, self.min_retry_seconds)
        if not error.proven and not full:
            return PeerBusy(retry_seconds, "no chain with room for the request was found in the time for it")
        if math.isinf(retry_seconds):
            return NoChainError(
                (),
                f"{where} is too small for the request of {request.kv_tokens_per_block} tokens;"
                f" about {self._largest_request(full, excluded)} would fit",
                hint="Ask for a shorter text (--max-new-tokens, --max-length), or start a peer with more --kv-tokens.",
            )
        return PeerBusy(retry_seconds, f"{where} is full, come back in {retry_seconds:.1f} s")

    def _largest_request(self, full: Sequence[int], excluded: frozenset[PeerId]) -> int:
        """Return the most tokens, over all rows, for which every block has a host that is large enough when empty."""
        finder = self.prepared.finder
        unusable = {*excluded, *self.banned}
        usable = [peer for peer in finder.peers if peer.id not in unusable]
        blocks = full or range(finder.swarm.model.num_blocks)
        hosts = ([peer for peer in usable if peer.blocks and block in peer.blocks] for block in blocks)
        return min(
            max((peer.kv_tokens_total // len(peer.blocks or ()) for peer in those), default=0) for those in hosts
        )

    def _nobody_serves(
        self, missing: tuple[int, ...], excluded: frozenset[PeerId], min_precision: str | None
    ) -> NoChainError:
        unusable = {*excluded, *self.banned}
        usable = (peer for peer in self.prepared.finder.peers if peer.id not in unusable)
        hosted = {block for peer in usable for block in peer.blocks or ()}
        if min_precision is not None and hosted.issuperset(missing):
            return NoChainError(
                missing,
                f"no peer serves {describe_blocks(missing)} in {min_precision} or more precisely",
                hint="Ask for less precision, or have a peer serve these blocks in that format.",
            )
        allowed = self.prepared.allowed
        if allowed is not None:
            others = sum(peer not in allowed for peer in self.prepared.known)
            return NoChainError(
                missing,
                f"no peer that this client may use serves {describe_blocks(missing)}; {others} others are known",
                hint="Allow more peers (--allow-peer, allow_peers=), or have an allowed one serve these blocks.",
            )
        doubted = (self.prepared.known[peer].record.spec for peer in self.prepared.trust.doubted)
        others = sum(any(block in missing for block in peer.blocks or ()) for peer in doubted)
        if others:
            return NoChainError(
                missing,
                f"no peer serves {describe_blocks(missing)} with weights that are believed; {others} announce others",
                hint="`swarm-client peers` shows who is doubted; the whole files in a local folder prove who is right.",
            )
        return NoChainError(missing)
