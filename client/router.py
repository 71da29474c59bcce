"""Chooses the peers of a chain: the routing package's exact router over what this client knows of the swarm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..proto.errors import NoChainError, PeerBusy, SwarmError, describe_blocks
from ..routing.graph import NoRouteError, cheapest_route
from ..routing.swarm import BlockRange, ModelSpec, PeerId, PeerSpec, PeerState, RequestSpec, Swarm
from .hop import HopChoice
from .view import SwarmView

MIN_RETRY_SECONDS = 1.0
"""Full peers are not asked again sooner, whatever they announce."""


class ViewRouter:
    """Routes on a `SwarmView`."""

    def __init__(self, view: SwarmView, num_blocks: int, push: bool = True) -> None:
        self._view = view
        self._num_blocks = num_blocks
        self._push = push

    async def choose(
        self, blocks: BlockRange, excluded: frozenset[PeerId], request: RequestSpec
    ) -> tuple[HopChoice, ...]:
        """The cheapest chain over `blocks` without the excluded peers.

        Raises NoChainError; PeerBusy if every block has a host and only room is wanting, that may yet become free.
        """
        part = part_of(self._view.snapshot(self._num_blocks), blocks)
        if not part.peers:
            raise NoChainError(tuple(blocks))
        try:
            route = cheapest_route(
                part,
                request=request,
                client_rtt_seconds={peer: known.rtt_seconds for peer, known in self._view.peers.items()},
                peer_rtt_seconds=self.peer_rtt_seconds,
                push=self._push,
                excluded=excluded,
            )
        except NoRouteError as error:
            raise _unroutable(error, blocks.start) from None
        return tuple(self._choice(hop.peer, shifted(hop.blocks, blocks.start)) for hop in route.hops)

    def record(self, peer: PeerId) -> bytes | None:
        """The newest signed record of a peer, if it is still known."""
        known = self._view.peers.get(peer)
        return known.encoded if known is not None else None

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        """Do not choose that peer for a while."""
        self._view.ban(peer, error)

    def leaving(self, peer: PeerId) -> bool:
        """Whether the peer says that it is about to leave."""
        known = self._view.peers.get(peer)
        return known is not None and known.record.spec.state in (PeerState.DRAINING, PeerState.LEAVING)

    async def refresh(self) -> None:
        """Look at the swarm again. Raises SwarmError if nobody answers."""
        await self._view.refresh()

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        """Time of one step of `tokens` tokens through the chain, from announced costs and measured round trips."""
        seconds = 0.0
        for peer, blocks in chain:
            known = self._view.peers.get(peer)
            if known is not None:
                cost = known.record.spec.cost
                per_block = cost.decode_seconds() if tokens == 1 else cost.prefill_seconds(tokens)
                seconds += per_block * len(blocks) + known.rtt_seconds
        return seconds

    def clock_offset_seconds(self, peer: PeerId) -> float:
        """The peer's clock minus ours; 0 if it is not known."""
        known = self._view.peers.get(peer)
        return known.clock_offset_seconds if known is not None else 0.0

    def _choice(self, peer: PeerId, blocks: BlockRange) -> HopChoice:
        known = self._view.peers[peer]
        return HopChoice(known.address, blocks, known.encoded)

    def peer_rtt_seconds(self, one: PeerId, other: PeerId) -> float:
        """Predicted from coordinates; without them, no shorter than the difference and no longer than the sum."""
        a, b = self._view.peers[one], self._view.peers[other]
        if a.record.spec.coordinate is not None and b.record.spec.coordinate is not None:
            return a.record.spec.coordinate.rtt_seconds(b.record.spec.coordinate)
        return max(a.rtt_seconds, b.rtt_seconds)


def _unroutable(error: NoRouteError, first_block: int) -> SwarmError:
    missing, full = (
        tuple(block + first_block for block in blocks) for blocks in (error.missing_blocks, error.full_blocks)
    )
    if missing:
        return NoChainError(missing)
    where = f"every host of {describe_blocks(full)}" if full else "every chain of peers"
    if math.isinf(error.retry_seconds):
        return NoChainError((), f"{where} is too small for the request: shorten it")
    retry_after_seconds = max(error.retry_seconds, MIN_RETRY_SECONDS)
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
