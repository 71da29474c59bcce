"""Chooses the peers of a chain: runs the exact router of `routing` on the client's view of the swarm."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from ...proto.errors import DeadlineExceeded, NoChainError, SwarmError
from ...routing.place.windows import leaves
from ...routing.route.budget import Meter, OverBudgetError, SearchBudget
from ...routing.route.predict import PredictedRequest, predict_request, predict_step
from ...routing.swarm import BlockRange, PeerId, RequestSpec
from ..chain.machine.events import HopChoice, Layout
from ..chain.machine.facts import unproven_of
from ..chain.operation import STEP_TOKENS
from ..timing import ClientTiming
from .snapshot import MOST_BYTES, CurrentSwarm
from .view import SwarmView

logger = logging.getLogger(__name__)

MOST_CANDIDATES = 8
WORK_ON_LOOP = 250_000
"""A search over a larger lattice (`RouteFinder.work`) starts in a thread: it could hold up the network loop."""

MOST_PREDICTED = 1000
"""The most predicted step times that are cached until the next look."""


Chain = Sequence[tuple[PeerId, BlockRange]]


class _Decide(Protocol):
    def __call__(self, *, meter: Meter, settle: bool) -> tuple[HopChoice, ...]: ...


_NOBODY = PeerId("nobody")
"""Stands for the host of blocks that a chain leaves out."""


class ViewRouter:
    """Routes on a `SwarmView`."""

    def __init__(
        self,
        view: SwarmView,
        timing: ClientTiming | None = None,
        clock: Callable[[], float] = time.thread_time,
        only: BlockRange | None = None,
    ) -> None:
        """Chains cover the blocks in `only`; None: the whole model.

        `clock` measures a search's time in its thread; the default is CPU time, which other threads do not lengthen.
        """
        self._view = view
        self._timing = timing or ClientTiming()
        self._clock = clock
        self._only = only
        self._searching = asyncio.Lock()
        """One search at a time: threads share the interpreter, so two would take twice the memory and be no faster."""
        self._predicted: tuple[object, dict[Any, float]] = (None, {})
        """A look, and the step times predicted from it by chain and tokens: every step asks for several."""

    async def choose(
        self,
        blocks: BlockRange,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
    ) -> tuple[HopChoice, ...]:
        """Choose the chain over `blocks` with which the request is done soonest, including the wait for room.

        Uses no peer in `excluded`, and with `min_precision` only peers that compute at least as precisely. A search
        that exceeds its budget returns a good chain instead; `unproven_seconds` of its choices bounds how much is lost.

        Raises NoChainError; PeerBusy if every block has a host but room is missing and no peer announces when there
        will be some, or if no chain was found within the budget.
        """
        return await self._decided(lambda current: partial(current.choose, blocks, excluded, request, min_precision))

    async def fill(
        self,
        kept: Layout,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
        *,
        check: bool = False,
    ) -> tuple[HopChoice, ...]:
        """Return the peers, in order, for the blocks that `kept` does not cover; none from `excluded` or `kept`.

        With `check` the chosen peers and other candidates are pinged concurrently; silent ones are banned and the
        choice is repeated. If no chain is left, peers that were banned for silence and answer over a new connection may
        be used again.

        Raises as `choose` does.
        """
        choices = await self._fill_or_excuse(kept, excluded, request, min_precision)
        if not check:
            return choices
        chosen = {choice.peer for choice in choices}
        gaps = [choice.blocks for choice in choices]
        asked = [*chosen, *self._hosts(gaps, excluded | chosen | {peer for peer, _ in kept})]
        answers = await self._view.roll_call(asked, chosen)
        if not answers.silent & chosen:
            return choices
        if answers.nobody and not await self._view.excuse_silent():
            return choices  # that may be this machine's network
        for peer in answers.silent:
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
        return await self._decided(
            lambda current: partial(current.fill, self._with_others(kept), excluded, request, min_precision)
        )

    def _with_others(self, kept: Layout) -> Layout:
        """Return `kept` with placeholders for the blocks outside `only`, which need no peer."""
        if self._only is None:
            return tuple(kept)
        bounds = (0, self._only.start), (self._only.stop, self._view.num_blocks)
        outside = [(_NOBODY, BlockRange(start, stop)) for start, stop in bounds if start < stop]
        return tuple(sorted([*kept, *outside], key=lambda hop: hop[1].start))

    async def _decided(self, decision: Callable[[CurrentSwarm], _Decide]) -> tuple[HopChoice, ...]:
        """Decide on the loop if that is quick, else in a thread, whose search stops when this is cancelled."""
        timing, current = self._timing, self._view.current()
        choices = None
        if current.prepared.finder.work <= WORK_ON_LOOP:
            quick = Meter(SearchBudget(timing.route_on_loop_seconds, MOST_BYTES), self._clock)
            try:
                choices = decision(current)(meter=quick, settle=False)
            except OverBudgetError:
                logger.debug("routing goes on beside the network")
        if choices is None:
            async with self._searching:
                decide = decision(self._view.current())  # peers may have failed while it waited for its turn
                meter = Meter(SearchBudget(timing.route_seconds, MOST_BYTES), self._clock)
                try:
                    choices = await asyncio.to_thread(decide, meter=meter, settle=True)
                finally:
                    meter.stop()
        unproven_seconds = unproven_of(choices)
        if unproven_seconds > 0:
            logger.info(
                "the chain is not proven to be the best: another one may be done %.2f s sooner", unproven_seconds
            )
        return choices

    def _hosts(self, ranges: Sequence[BlockRange], excluded: frozenset[PeerId]) -> list[PeerId]:
        """Return the nearest usable peers that host blocks of these ranges, at most `MOST_CANDIDATES`."""
        wanted = {block for blocks in ranges for block in blocks}
        hosts = [
            known
            for known in self._view.usable()
            if known.record.spec.id not in excluded and wanted.intersection(known.record.spec.blocks or ())
        ]
        hosts.sort(key=lambda known: known.rtt_seconds)
        return [known.record.spec.id for known in hosts[:MOST_CANDIDATES]]

    def record(self, peer: PeerId) -> bytes | None:
        """Return the newest signed record of a peer, or None if the peer is no longer known."""
        known = self._view.peers.get(peer)
        return known.encoded if known is not None else None

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        """Do not choose a peer that failed for a while; after PeerBusy, not before the time that the peer gave."""
        self._view.ban(peer, error)

    def pardon(self, peers: frozenset[PeerId]) -> None:
        """Lift the bans of those peers: they were not at fault."""
        self._view.pardon(peers)

    async def reaches_anybody(self, seconds: float) -> bool:
        """Return whether any known node answers within `seconds` over a new connection."""
        return await self._view.reaches_anybody(seconds)

    def leaving(self, peer: PeerId, blocks: BlockRange) -> bool:
        """Return whether the peer announces that it is about to leave, or to drop some of the blocks."""
        known = self._view.peers.get(peer)
        return known is not None and leaves(known.record.spec, blocks, self._view.timing.claim_stands_seconds)

    def seen_whole(self, min_precision: str | None = None) -> bool:
        """Return whether all blocks were once seen served together, at least as precisely as `min_precision`."""
        blocks = self._only if self._only is not None else BlockRange(0, self._view.num_blocks)
        return self._view.seen.covers(blocks, min_precision)

    async def refresh(self) -> None:
        """Look at the swarm again. Raises SwarmError if no peer answers."""
        await self._view.refresh()

    async def quote(self, request: RequestSpec, min_precision: str | None = None) -> tuple[Chain, PredictedRequest]:
        """Return the chain that a request would get now, and its predicted times. Raises as `choose` does."""
        every = BlockRange(0, self._view.current().prepared.finder.swarm.model.num_blocks)
        choices = await self.choose(every, frozenset(), request, min_precision)
        chain = tuple((choice.peer, choice.blocks) for choice in choices)
        times = self.predict_request(chain, request)
        return chain, replace(times, wait_seconds=max(choice.wait_seconds for choice in choices))

    def predict_request(self, chain: Chain, request: RequestSpec) -> PredictedRequest:
        """Predict the times of a request that has room on a chain; peers that are no longer known are left out."""
        prepared = self._view.current().prepared
        hops = [(prepared.spec(peer), blocks) for peer, blocks in chain if peer in prepared.finder.index]
        rtts = {spec.id: prepared.known[spec.id].rtt_seconds for spec, _ in hops}
        between = prepared.rtts if prepared.push else None
        return replace(
            predict_request(hops, request, step_tokens=STEP_TOKENS, client_rtt_seconds=rtts, peer_rtt_seconds=between),
            wait_seconds=0.0,
        )

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        """Predict a step of `tokens` tokens through the chain, from announced costs and measured round trips.

        Counts a round trip from the client for every hop, as if outputs were relayed; peers that are no longer known
        are left out.
        """
        prepared = self._view.prepared  # read once: other threads call this, too
        look, predicted = self._predicted
        if look is not prepared or len(predicted) >= MOST_PREDICTED:
            predicted = {}
            self._predicted = (prepared, predicted)
        key = (tuple(chain), tokens)
        if key not in predicted:
            hops = [(prepared.spec(peer), blocks) for peer, blocks in chain if peer in prepared.known]
            rtts = {spec.id: prepared.known[spec.id].rtt_seconds for spec, _ in hops}
            times = predict_step(hops, tokens=tokens, client_rtt_seconds=rtts, peer_rtt_seconds=None)
            predicted[key] = times.step_seconds
        return predicted[key]

    def clock_offset_seconds(self, peer: PeerId) -> float:
        """Return the peer's clock minus ours; 0 if the peer is not known."""
        known = self._view.peers.get(peer)
        return known.clock_offset_seconds if known is not None else 0.0
