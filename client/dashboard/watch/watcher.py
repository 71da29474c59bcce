"""Looks at the swarms of all models periodically, and puts the sighting, or why the look failed, into the snapshot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from ....proto.directory.records import PeerRecord
from ....proto.errors import RetryElsewhere, SwarmError
from ....routing.swarm import PeerId
from ...api.config import usual_name
from ...survey.survey import Caller
from ...swarm.snapshot import PreparedSwarm
from ...swarm.view import SwarmView
from ...timing import ClientTiming
from ..config import DashboardConfig
from ..history.recorder import Recorder
from ..probe.child import ProbeProgram
from .keeper import SnapshotKeeper
from .models import announced_blocks, as_model, discover, facts_of
from .prober import Prober
from .sighting import Failure, ModelFacts, ModelState, Sighting, Since

logger = logging.getLogger(__name__)


class SwarmWatcher:
    """Watches all models of one dashboard, on one loop."""

    def __init__(
        self,
        config: DashboardConfig,
        caller: Caller,
        keeper: SnapshotKeeper,
        recorder: Recorder | None,
        clock: Callable[[], float],
        timing: ClientTiming,
    ) -> None:
        """`clock` returns Unix seconds; `timing` is for the looks; without a `recorder` no history is kept."""
        self._recorder = recorder
        self._config = config
        self._caller = caller
        self._keeper = keeper
        self._clock = clock
        self._timing = timing

    async def run(self) -> None:
        """Watch until cancelled. Raises UsageError or GiveUp, in a group, for a model whose files cannot be used."""
        async with asyncio.TaskGroup() as group:
            if self._config.models:
                for model in self._config.models:
                    group.create_task(self._watch_named(model), name=f"watch {model}")
            else:
                for facts in await self._discovered():
                    await self._keeper.put(ModelState(facts))
                    group.create_task(self._watch(facts, {}), name=f"watch {facts.id}")

    async def _discovered(self) -> tuple[ModelFacts, ...]:
        while True:
            try:
                return await discover(self._caller, self._timing)
            except SwarmError as error:
                pause = self._config.timing.retry_pause
                logger.warning("no model was found (%s), asking again in %.0f s", error, pause)
                await self._keeper.wait_for("an initial peer to say which model it serves: none has answered")
            await asyncio.sleep(pause)

    async def _watch_named(self, model: str) -> None:
        await self._keeper.wait_for(f"the files of {usual_name(model)} to be read")
        timing = self._config.timing
        program = ProbeProgram(self._config.probe_of(model), open_seconds=timing.open_model, probe_seconds=timing.probe)
        async with program:
            while True:
                try:
                    opened = await program.open()
                    break
                except RetryElsewhere as error:
                    logger.warning("the model cannot be opened (%s), trying again in %.0f s", error, timing.retry_pause)
                await asyncio.sleep(timing.retry_pause)
            facts = facts_of(usual_name(model), opened)
            await self._keeper.put(ModelState(facts))
            prober = Prober(facts.id, program, self._keeper, self._recorder, self._clock, timing)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(facts, opened.proven), name=f"watch {facts.id}")
                group.create_task(prober.run(), name=f"probe {facts.id}")

    async def _watch(self, facts: ModelFacts, proven: Mapping[int, bytes]) -> None:
        """Look at the swarm of a known model; start over whenever peers announce more blocks than were known."""
        while True:
            view = self._caller.view(as_model(facts, proven), self._timing)
            try:
                facts = await self._look_until_wider(view, facts)
            finally:
                await view.close()

    async def _look_until_wider(self, view: SwarmView, facts: ModelFacts) -> ModelFacts:
        """Look periodically; return facts with more blocks as soon as an answering peer announces more."""
        look, timing, before = view.first_look, self._config.timing, None
        while True:
            try:
                await look()
            except SwarmError as error:
                logger.warning("%s was not seen (%s), looking again in %.0f s", facts.id, error, timing.retry_pause)
                await self._keeper.change(facts.id, failure=Failure.of(error, self._clock()))
                await asyncio.sleep(timing.retry_pause)
                continue
            look = view.refresh
            blocks = announced_blocks(known.record for known in view.peers.values())
            if not facts.counted and blocks > facts.num_blocks:
                return replace(facts, num_blocks=blocks)
            before = sighting_of(view.current().prepared, dict(view.silent), before, self._clock())
            await self._keeper.change(facts.id, facts=facts, sighting=before, failure=None)
            await asyncio.sleep(timing.look_pause)


def sighting_of(
    prepared: PreparedSwarm, silent: Mapping[PeerId, PeerRecord], before: Sighting | None, now: float
) -> Sighting:
    """Return the sighting at `now` (Unix seconds) that follows the sighting `before`."""
    states = {peer: _state(known.record, True) for peer, known in prepared.known.items()}
    states |= {peer: _state(record, False) for peer, record in silent.items()}
    since = {}
    for peer, state in states.items():
        old = before.since.get(peer) if before is not None else None
        since[peer] = old if old is not None and old.state == state else Since(state, now, before is None)
    return Sighting(now, prepared, silent, since)


def _state(record: PeerRecord, answers: bool) -> str:
    return f"{record.spec.state.value if answers else 'silent'} {record.spec.blocks}"
