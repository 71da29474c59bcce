"""Chooses the peers of a chain: the routing package's exact router over what this client knows of the swarm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...proto.errors import DeadlineExceeded, NoChainError, PeerBusy, SwarmError, describe_blocks
from ...proto.wire.precision import at_least
from ...routing.place.windows import leaves
from ...routing.releases import wait_for_room
from ...routing.route.predict import predict_step
from ...routing.route.repair import Repair
from ...routing.route.router import NoRouteError, cheapest_route
from ...routing.swarm import BlockRange, Hop, ModelSpec, PeerId, PeerSpec, RequestSpec, Swarm
from ..chain.machine.events import HopChoice, Layout
from ..timing import ClientTiming
from .view import KnownPeer, SwarmView

MOST_CANDIDATES = 8


class ViewRouter:
    """Routes on a `SwarmView`."""

    def __init__(self, view: SwarmView, num_blocks: int, push: bool = True, timing: ClientTiming | None = None) -> None:
        self._view = view
        self._num_blocks = num_blocks
        self._push = push
        self._timing = timing or ClientTiming()

    async def choose(
        self,
        blocks: BlockRange,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
    ) -> tuple[HopChoice, ...]:
        """The chain over `blocks` without the excluded peers that is soonest done, with the wait for room counted.

        With `min_precision` only of peers that compute at least as precisely.

        Raises NoChainError; PeerBusy if every block has a host and only room is wanting, and nobody announces when
        there will be some.
        """
        part = part_of(self._view.snapshot(self._num_blocks), blocks)
        precise = part if min_precision is None else precise_part(part, min_precision)
        try:
            if not precise.peers:
                raise NoRouteError(tuple(range(len(blocks))))
            route = cheapest_route(
                precise,
                request=request,
                client_rtt_seconds={peer: self._distance_seconds(known) for peer, known in self._view.peers.items()},
                peer_rtt_seconds=self.peer_rtt_seconds,
                push=self._push,
                excluded=excluded,
            )
        except NoRouteError as error:
            usable = [peer for peer in part.peers if peer.id not in excluded]
            doubted = [self._view.peers[peer].record.spec for peer in self._view.trust.doubted]
            raise _unroutable(
                error, blocks.start, usable, doubted, min_precision, self._timing.min_retry_seconds
            ) from None
        return tuple(self._choice(part, hop, blocks.start, request) for hop in route.hops)

    async def fill(
        self,
        kept: Layout,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
        *,
        check: bool = False,
    ) -> tuple[HopChoice, ...]:
        """The peers that fill what `kept` leaves of the model, without those in `excluded` and `kept`, in order.

        With `check` the peers are pinged before they are chosen, candidates side by side; the silent ones are banned.
        Where nobody is left, peers that were banned for silence and answer over a new connection may be used again.

        Raises as `choose`.
        """
        choices = await self._fill_or_excuse(kept, excluded, request, min_precision)
        if not check:
            return choices
        chosen = {choice.peer for choice in choices}
        gaps = [choice.blocks for choice in choices]
        asked = [*chosen, *self._hosts(gaps, excluded | chosen | {peer for peer, _ in kept})]
        silent = await self._view.silent_among(asked, chosen)
        if not silent & chosen:
            return choices
        if silent.issuperset(asked) and not await self._view.excuse_silent():
            return choices  # nobody answers: that may be this machine's network
        for peer in silent:
            self.ban(peer, DeadlineExceeded("the peer does not answer a ping"))
        return await self._fill_or_excuse(kept, excluded, request, min_precision)

    async def _fill_or_excuse(
        self, kept: Layout, excluded: frozenset[PeerId], request: RequestSpec, min_precision: str | None
    ) -> tuple[HopChoice, ...]:
        try:
            return await self._fill(kept, excluded, request, min_precision)
        except NoChainError:
            if not await self._view.excuse_silent():
                raise
        return await self._fill(kept, excluded, request, min_precision)

    async def _fill(
        self, kept: Layout, excluded: frozenset[PeerId], request: RequestSpec, min_precision: str | None
    ) -> tuple[HopChoice, ...]:
        choices: list[HopChoice] = []
        repair = Repair(BlockRange(0, self._num_blocks), kept)
        while repair.gap is not None:
            found = await self.choose(repair.gap, repair.peers | excluded, request, min_precision)
            repair = repair.filled((choice.peer, choice.blocks) for choice in found)
            choices += found
        return tuple(choices)

    def _hosts(self, ranges: Sequence[BlockRange], excluded: frozenset[PeerId]) -> list[PeerId]:
        """The nearest usable peers that host blocks of these ranges, at most `MOST_CANDIDATES`."""
        wanted = {block for blocks in ranges for block in blocks}
        hosts = [
            known
            for known in self._view.usable()
            if known.record.spec.id not in excluded and wanted.intersection(known.record.spec.blocks or ())
        ]
        hosts.sort(key=lambda known: known.rtt_seconds)
        return [known.record.spec.id for known in hosts[:MOST_CANDIDATES]]

    def record(self, peer: PeerId) -> bytes | None:
        """The newest signed record of a peer, if it is still known."""
        known = self._view.peers.get(peer)
        return known.encoded if known is not None else None

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        """That peer failed: do not choose it for a while; after PeerBusy: it has no room until the time given."""
        self._view.ban(peer, error)

    def pardon(self, peers: frozenset[PeerId]) -> None:
        """Those peers were banned for what was this machine's network: lift the bans."""
        self._view.pardon(peers)

    async def reaches_anybody(self, seconds: float) -> bool:
        """Whether any known node answers within `seconds` over a new connection."""
        return await self._view.reaches_anybody(seconds)

    def leaving(self, peer: PeerId, blocks: BlockRange) -> bool:
        """Whether the peer says that it is about to leave, or to drop some of the blocks."""
        known = self._view.peers.get(peer)
        return known is not None and leaves(known.record.spec, blocks, self._view.timing.claim_stands_seconds)

    async def refresh(self) -> None:
        """Look at the swarm again. Raises SwarmError if nobody answers."""
        await self._view.refresh()

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        """Time of one step of `tokens` tokens through the chain, from announced costs and measured round trips.

        Every hop counts a round trip from the client, as if outputs were relayed; peers that are not known any more
        count for nothing.
        """
        known = self._view.peers
        hops = [(known[peer].record.spec, blocks) for peer, blocks in chain if peer in known]
        rtts = {spec.id: known[spec.id].rtt_seconds for spec, _ in hops}
        return predict_step(hops, tokens=tokens, client_rtt_seconds=rtts, peer_rtt_seconds=None).step_seconds

    def clock_offset_seconds(self, peer: PeerId) -> float:
        """The peer's clock minus ours; 0 if it is not known."""
        known = self._view.peers.get(peer)
        return known.clock_offset_seconds if known is not None else 0.0

    def _choice(self, part: Swarm, hop: Hop, first_block: int, request: RequestSpec) -> HopChoice:
        known, spec = self._view.peers[hop.peer], part.peer(hop.peer)
        wait = wait_seconds(spec, len(hop.blocks) * request.kv_tokens_per_block, part.now_seconds)
        blocks = shifted(hop.blocks, first_block)
        weights = self._view.trust.believed[hop.peer]
        return HopChoice(known.address, blocks, known.encoded, wait, spec.numeric_format, weights)

    def _distance_seconds(self, known: KnownPeer) -> float:
        """The round trip, and more for a peer that has failed lately: others are preferred."""
        return known.rtt_seconds + self._timing.doubt_seconds * self._view.bans.failures(known.run)

    def peer_rtt_seconds(self, first: PeerId, second: PeerId) -> float:
        """Predicted from coordinates; without them, no shorter than the difference and no longer than the sum."""
        a, b = self._view.peers[first], self._view.peers[second]
        if a.record.spec.coordinate is not None and b.record.spec.coordinate is not None:
            return a.record.spec.coordinate.rtt_seconds(b.record.spec.coordinate)
        return max(a.rtt_seconds, b.rtt_seconds)


def wait_seconds(peer: PeerSpec, kv_tokens: int, now_seconds: float) -> float:
    """Seconds until the peer is expected to have room for `kv_tokens` tokens x blocks; infinite if it never says."""
    return wait_for_room(kv_tokens, peer.kv_tokens_free, peer.releases, now_seconds)


def precise_part(swarm: Swarm, min_precision: str) -> Swarm:
    """The peers that compute at least as precisely."""
    return replace(swarm, peers=tuple(peer for peer in swarm.peers if at_least(peer.numeric_format, min_precision)))


def _unroutable(
    error: NoRouteError,
    first_block: int,
    usable: Sequence[PeerSpec],
    doubted: Sequence[PeerSpec],
    min_precision: str | None,
    min_retry_seconds: float,
) -> SwarmError:
    missing, full = (
        tuple(block + first_block for block in blocks) for blocks in (error.missing_blocks, error.full_blocks)
    )
    if missing:
        hosted = {block for peer in usable for block in peer.blocks or ()}
        if min_precision is not None and hosted.issuperset(error.missing_blocks):
            return NoChainError(
                missing,
                f"no peer serves {describe_blocks(missing)} in {min_precision} or more precisely",
                hint="Ask for less precision, or have a peer serve these blocks in that format.",
            )
        others = sum(any(block in missing for block in peer.blocks or ()) for peer in doubted)
        if others:
            return NoChainError(
                missing,
                f"no peer serves {describe_blocks(missing)} with weights that are believed; {others} announce others",
                hint="`swarm-client peers` shows who is doubted; the whole files in a local folder prove who is right.",
            )
        return NoChainError(missing)
    where = f"every host of {describe_blocks(full)}" if full else "every chain of peers"
    if math.isinf(error.retry_seconds):
        return NoChainError((), f"{where} is too small for the request: shorten it")
    retry_after_seconds = max(error.retry_seconds, min_retry_seconds)
    return PeerBusy(retry_after_seconds, f"{where} is full, come back in {retry_after_seconds:.1f} s")


def shifted(blocks: BlockRange, by: int) -> BlockRange:
    """The range moved by `by` blocks."""
    return BlockRange(blocks.start + by, blocks.stop + by)


def part_of(swarm: Swarm, blocks: BlockRange) -> Swarm:
    """The snapshot as if `blocks` were the whole model, counted from 0."""
    if blocks == BlockRange(0, swarm.model.num_blocks):
        return swarm
    peers = tuple(part for peer in swarm.peers if (part := _part_of_peer(peer, blocks)) is not None)
    model = ModelSpec(len(blocks), swarm.model.block_bytes, swarm.model.kv_bytes_per_token)
    return replace(swarm, model=model, peers=peers)


def _part_of_peer(peer: PeerSpec, blocks: BlockRange) -> PeerSpec | None:
    if peer.blocks is None:
        return None
    start, stop = max(peer.blocks.start, blocks.start), min(peer.blocks.stop, blocks.stop)
    if start >= stop:
        return None
    hashes = peer.block_hashes[start - peer.blocks.start : stop - peer.blocks.start] if peer.block_hashes else ()
    return replace(peer, blocks=BlockRange(start - blocks.start, stop - blocks.start), block_hashes=hashes)
