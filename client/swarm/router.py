"""Chooses the peers of a chain: the routing package's exact router over what this client knows of the swarm."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ...proto.errors import DeadlineExceeded, NoChainError, SwarmError
from ...routing.place.windows import leaves
from ...routing.route.budget import Meter, OverBudgetError, SearchBudget
from ...routing.route.predict import predict_step
from ...routing.swarm import BlockRange, PeerId, RequestSpec
from ..chain.machine.events import HopChoice, Layout, gap_of
from ..timing import ClientTiming
from .snapshot import MOST_BYTES, CurrentSwarm
from .view import SwarmView

logger = logging.getLogger(__name__)

MOST_CANDIDATES = 8
WORK_ON_LOOP = 250_000
"""A search over a larger lattice (`RouteFinder.work`) begins in a thread: it could hold up the network."""


class _Decide(Protocol):
    def __call__(self, *, meter: Meter, settle: bool) -> tuple[HopChoice, ...]: ...


class ViewRouter:
    """Routes on a `SwarmView`."""

    def __init__(
        self,
        view: SwarmView,
        timing: ClientTiming | None = None,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`clock` measures the time that a search takes in its thread; by default without what others take from it."""
        self._view = view
        self._timing = timing or ClientTiming()
        self._clock = clock
        self._searching = asyncio.Lock()
        """Threads share the interpreter: two searches at once would take twice the memory, and as long."""

    async def choose(
        self,
        blocks: BlockRange,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
    ) -> tuple[HopChoice, ...]:
        """The chain over `blocks` without the excluded peers that is soonest done, with the wait for room counted.

        With `min_precision` only of peers that compute at least as precisely. A search that takes longer than its
        budget gives a good chain instead, whose choices say by how much another one may be better.

        Raises NoChainError; PeerBusy if every block has a host and only room is wanting, and nobody announces when
        there will be some, or if no chain was found within the budget.
        """
        current = self._view.current()
        return await self._decided(current, partial(current.choose, blocks, excluded, request, min_precision))

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
        current = self._view.current()
        return await self._decided(current, partial(current.fill, kept, excluded, request, min_precision))

    async def _decided(self, current: CurrentSwarm, decide: _Decide) -> tuple[HopChoice, ...]:
        """Decide at once if that is quick, else in a thread; when cancelled the thread stops by itself."""
        timing = self._timing
        choices = None
        if current.prepared.finder.work <= WORK_ON_LOOP:
            quick = Meter(SearchBudget(timing.route_on_loop_seconds, MOST_BYTES), self._clock)
            try:
                choices = decide(meter=quick, settle=False)
            except OverBudgetError:
                logger.debug("routing goes on beside the network")
        if choices is None:
            meter = Meter(SearchBudget(timing.route_seconds, MOST_BYTES), self._clock)
            async with self._searching:
                try:
                    choices = await asyncio.to_thread(decide, meter=meter, settle=True)
                finally:
                    meter.stop()
        gap_seconds = gap_of(choices)
        if gap_seconds > 0:
            logger.info("the chain is not proven to be the best: another one may be done %.2f s sooner", gap_seconds)
        return choices

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
