"""Chooses the peers of a chain: the routing package's exact router over what this client knows of the swarm."""

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
from ..chain.machine.events import HopChoice, Layout, gap_of
from ..chain.operation import STEP_TOKENS
from ..timing import ClientTiming
from .snapshot import MOST_BYTES, CurrentSwarm
from .view import SwarmView

logger = logging.getLogger(__name__)

MOST_CANDIDATES = 8
WORK_ON_LOOP = 250_000
"""A search over a larger lattice (`RouteFinder.work`) begins in a thread: it could hold up the network."""

MOST_PREDICTED = 1000
"""Times of steps that are kept until the next look."""


Chain = Sequence[tuple[PeerId, BlockRange]]


class _Decide(Protocol):
    def __call__(self, *, meter: Meter, settle: bool) -> tuple[HopChoice, ...]: ...


_NOBODY = PeerId("nobody")
"""Stands in a chain for the blocks that it leaves out."""


class ViewRouter:
    """Routes on a `SwarmView`."""

    def __init__(
        self,
        view: SwarmView,
        timing: ClientTiming | None = None,
        clock: Callable[[], float] = time.thread_time,
        only: BlockRange | None = None,
    ) -> None:
        """Chains are over the blocks in `only`; None: over all of the model.

        `clock` measures the time that a search takes in its thread; by default without what others take from it.
        """
        self._view = view
        self._timing = timing or ClientTiming()
        self._clock = clock
        self._only = only
        self._searching = asyncio.Lock()
        """Threads share the interpreter: two searches at once would take twice the memory, and as long."""
        self._predicted: tuple[object, dict[Any, float]] = (None, {})
        """Times of steps, by chain and tokens, and the look that they are from: every step asks for several."""

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
        """`kept`, and the blocks that nobody is to compute as if somebody did."""
        if self._only is None:
            return tuple(kept)
        bounds = (0, self._only.start), (self._only.stop, self._view.num_blocks)
        outside = [(_NOBODY, BlockRange(start, stop)) for start, stop in bounds if start < stop]
        return tuple(sorted([*kept, *outside], key=lambda hop: hop[1].start))

    async def _decided(self, decision: Callable[[CurrentSwarm], _Decide]) -> tuple[HopChoice, ...]:
        """Decide at once if that is quick, else in a thread; when cancelled the thread stops by itself."""
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

    async def quote(self, request: RequestSpec, min_precision: str | None = None) -> tuple[Chain, PredictedRequest]:
        """The chain that a request would get now, and its times. Raises as `choose`."""
        every = BlockRange(0, self._view.current().prepared.finder.swarm.model.num_blocks)
        choices = await self.choose(every, frozenset(), request, min_precision)
        chain = tuple((choice.peer, choice.blocks) for choice in choices)
        times = self.predict_request(chain, request)
        return chain, replace(times, wait_seconds=max(choice.wait_seconds for choice in choices))

    def predict_request(self, chain: Chain, request: RequestSpec) -> PredictedRequest:
        """The times of a request that has its room on a chain; peers that are not known any more count for nothing."""
        prepared = self._view.current().prepared
        hops = [(prepared.spec(peer), blocks) for peer, blocks in chain if peer in prepared.finder.index]
        rtts = {spec.id: prepared.known[spec.id].rtt_seconds for spec, _ in hops}
        between = prepared.rtts if prepared.push else None
        return replace(
            predict_request(hops, request, step_tokens=STEP_TOKENS, client_rtt_seconds=rtts, peer_rtt_seconds=between),
            wait_seconds=0.0,
        )

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        """Time of one step of `tokens` tokens through the chain, from announced costs and measured round trips.

        Every hop counts a round trip from the client, as if outputs were relayed; peers that are not known any more
        count for nothing.
        """
        prepared = self._view.prepared  # one look, and one value of it: other threads ask, too
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
        """The peer's clock minus ours; 0 if it is not known."""
        known = self._view.peers.get(peer)
        return known.clock_offset_seconds if known is not None else 0.0
