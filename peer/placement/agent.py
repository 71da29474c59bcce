"""The placement agent of a peer: the shell around `next_action`, which the simulator calls as well.

It reads the swarm, asks for the next action, and performs it: announces claims, loads blocks beside those that are
served, moves, withdraws.  The only decision made here is how to go on after a failure: the claim is withdrawn, and for
a while the peer is announced as one that keeps the blocks that its host still serves.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ...proto.errors import SwarmError
from ...routing.place.agent import (
    Action,
    AgentState,
    BeginLoading,
    Claim,
    Loading,
    MoveTo,
    Rest,
    Wait,
    Withdraw,
    next_action,
)
from ...routing.place.moves import ReplanPolicy
from ...routing.swarm import BlockRange, MoveClaim, PeerId, Swarm
from ..tasks import cancel_all
from ..timing import PeerTiming
from .forecast import Forecast, forecast_of, outcome

logger = logging.getLogger(__name__)

_Loaded = TypeVar("_Loaded")


class Host(Protocol[_Loaded]):
    """The blocks of a peer, which the agent moves."""

    @property
    def blocks(self) -> BlockRange | None:
        """The blocks that are served now."""
        ...

    async def load(self, blocks: BlockRange) -> _Loaded:
        """Load blocks beside those that are served; a cancelled load stops. Raises SwarmError.

        If there is no memory for both, it may first drop served blocks that are not among the new ones: the agent calls
        this only when other peers serve them. They may be gone after an error, too: `blocks` says what is left.
        """
        ...

    async def adopt(self, loaded: _Loaded) -> None:
        """Serve the loaded blocks in place of the present ones."""
        ...


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of an agent's actions so far."""

    moves: int = 0
    withdrawn: int = 0
    failed_loads: int = 0


class PlacementAgent(Generic[_Loaded]):
    """Places and moves one peer. `run` it, or `join` until it hosts blocks, and `stop` it before the peer drains."""

    def __init__(
        self,
        peer: PeerId,
        host: Host[_Loaded],
        look: Callable[[], Awaitable[Swarm]],
        announce: Callable[[], Awaitable[None]],
        timing: PeerTiming,
        clock: Callable[[], float],
        rng: random.Random,
        policy: ReplanPolicy | None = None,
    ) -> None:
        """`look` gives a snapshot that contains this peer as it is now, and raises SwarmError; `announce` renews the
        peer's record; `clock` is that of the snapshots."""
        self.claim: MoveClaim | None = None
        """To be announced until the move is made or given up."""
        self.counts = Counts()
        self._peer = peer
        self._host = host
        self._look = look
        self._announce = announce
        self._timing = timing
        self._clock = clock
        self._rng = rng
        self._policy = policy or ReplanPolicy(timing=timing.claims)
        self._loading: asyncio.Task[_Loaded] | None = None
        self._forecast: Forecast | None = None
        self._promised: list[Forecast] = []
        """Forecasts of moves that were made, until their outcome is due."""
        self._failures = 0
        self._rest_until = float("-inf")
        self._stopped = False

    @property
    def rests(self) -> bool:
        """Whether a load has failed recently: announced as `blocks_fixed`, so that nobody plans to move the peer."""
        return self._clock() < self._rest_until

    async def join(self) -> None:
        """Return when the peer hosts blocks. Raises SwarmError if a load fails: there are no blocks to fall back to."""
        try:
            while self._host.blocks is None:
                wait = await self._turn()
                if self._host.blocks is None:
                    await self._until(min(wait, self._timing.join_turn_seconds))
        finally:
            await self._drop_load()

    async def run(self) -> None:
        """Take a turn about every refresh, and when a load ends, until cancelled."""
        refresh, jitter = self._timing.record_refresh_seconds, self._timing.record_refresh_jitter
        try:
            while True:
                await self._until(refresh * self._rng.uniform(1 - jitter, 1 + jitter))
                while (wait := await self._turn()) < refresh:
                    await self._until(wait)
        finally:
            await self._drop_load()

    async def stop(self) -> None:
        """Give up what is claimed and loaded, and claim no more: the peer is about to leave."""
        self._stopped, self.claim = True, None
        await self._drop_load()

    # --- a turn ---

    async def _turn(self) -> float:
        """Look, decide, act; return the seconds until it is worth looking again."""
        refresh = self._timing.record_refresh_seconds
        if self._stopped:
            return refresh
        if self._loading is not None and (error := _failure_of(self._loading)) is not None:
            await self._fail(error)
            return refresh
        try:
            snapshot = await self._look()
        except SwarmError as error:
            logger.info("the swarm was not seen: %s", error)
            return refresh
        self._tell_outcomes(snapshot)
        state = AgentState(self._peer, self.claim, self._progress())
        action, forecast = await asyncio.to_thread(self._decide, state, snapshot)
        if self._stopped:
            return refresh
        return await self._act(action, forecast, snapshot)

    def _decide(self, state: AgentState, snapshot: Swarm) -> tuple[Action, Forecast | None]:
        """Called in a thread: a large swarm takes tens of milliseconds."""
        action = next_action(state, snapshot, self._policy, joins_at_once=True)
        return action, forecast_of(snapshot, self._peer, action.blocks, self._policy) if isinstance(
            action, Claim
        ) else None

    async def _act(self, action: Action, forecast: Forecast | None, snapshot: Swarm) -> float:
        refresh = self._timing.record_refresh_seconds
        match action:
            case Rest():
                return refresh
            case Wait(until_seconds):
                return min(max(until_seconds - self._clock(), 0.0), refresh)
            case Claim(blocks, begin_loading):
                self.claim, self._forecast = MoveClaim(snapshot.now_seconds, blocks), forecast
                logger.info("claim blocks %s in place of %s: %s", blocks, self._host.blocks, forecast)
                if begin_loading:
                    self._begin(blocks)
                await self._announce()
                return refresh
            case BeginLoading(blocks):
                logger.info("load blocks %s, the claim stands", blocks)
                self._begin(blocks)
                await self._announce()  # clients hear that the claim stands, and have time to hand over
                return refresh
            case MoveTo(blocks):
                await self._move(blocks)
                return refresh
            case Withdraw(verdict):
                logger.info("withdraw the claim to blocks %s: %s", self.claim and self.claim.blocks, verdict.value)
                self.counts = Counts(self.counts.moves, self.counts.withdrawn + 1, self.counts.failed_loads)
                await self._withdraw()
                return 0.0 if self._host.blocks is None else refresh

    def _begin(self, blocks: BlockRange) -> None:
        self._loading = asyncio.create_task(self._host.load(blocks), name="load blocks for a move")

    async def _move(self, blocks: BlockRange) -> None:
        assert self._loading is not None
        if (error := _failure_of(self._loading)) is not None:  # it failed while the agent looked and decided
            await self._fail(error)
            return
        loading, self._loading = self._loading, None
        before = self._host.blocks
        try:
            await self._host.adopt(loading.result())
        finally:
            self.claim = None
        logger.info("serve blocks %s in place of %s", blocks, before)
        self.counts = Counts(self.counts.moves + 1, self.counts.withdrawn, self.counts.failed_loads)
        self._failures = 0
        if self._forecast is not None:
            self._promised.append(self._forecast)
        if before is not None:  # a peer that joins is announced when it serves; until then its claim stands
            await self._announce()

    async def _fail(self, error: SwarmError) -> None:
        """Handle a failed load: stay with what is left, say so, and rest for a pause that doubles with each failure."""
        if self._host.blocks is None:
            raise error
        pause = min(self._timing.failed_move_seconds * 2**self._failures, self._timing.max_failed_move_seconds)
        self._failures += 1
        self._rest_until = self._clock() + pause
        logger.warning(
            "the move to blocks %s has failed (%s); this peer serves blocks %s, and stays at least for %.0f s",
            self.claim and self.claim.blocks, error, self._host.blocks, pause,
        )  # fmt: skip
        self.counts = Counts(self.counts.moves, self.counts.withdrawn, self.counts.failed_loads + 1)
        await self._withdraw()

    async def _withdraw(self) -> None:
        self.claim = self._forecast = None
        await self._drop_load()
        await self._announce()

    async def _drop_load(self) -> None:
        loading, self._loading = self._loading, None
        if loading is not None:
            await cancel_all([loading])

    def _progress(self) -> Loading:
        if self._loading is None:
            return Loading.NOT_BEGUN
        return Loading.DONE if self._loading.done() else Loading.UNDER_WAY

    async def _until(self, seconds: float) -> None:
        """Wait, but no longer than a load that is under way takes."""
        loading = self._loading
        if loading is not None and not loading.done():
            await asyncio.wait([loading], timeout=seconds)
        else:
            await asyncio.sleep(seconds)

    def _tell_outcomes(self, snapshot: Swarm) -> None:
        """Log the forecast of each move beside the present state, `outcome_seconds` after its claim."""
        due = [f for f in self._promised if snapshot.now_seconds >= f.at_seconds + self._timing.outcome_seconds]
        self._promised = [f for f in self._promised if f not in due]
        for forecast in due:
            logger.info("%s", outcome(forecast, snapshot, self._policy))


def _failure_of(loading: asyncio.Task[_Loaded]) -> SwarmError | None:
    """Return the SwarmError of a load that has failed, else None; raise any other error, which is a defect."""
    error = loading.exception() if loading.done() else None
    if error is None or isinstance(error, SwarmError):
        return error
    raise error
