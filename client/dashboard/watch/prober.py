"""Probes a model periodically: a real request each minute, whose outcome is stored and shown, whatever it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from ....routing.swarm import PeerId
from ..history.entries import PROBING, Availability, EventEntry, ProbeEntry
from ..history.recorder import Recorder
from ..probe.messages import ProbeOutcome
from ..timing import DashboardTiming
from .keeper import SnapshotKeeper
from .sighting import LastProbe

logger = logging.getLogger(__name__)

DAY = 86400.0


class Probing(Protocol):
    """Makes probes; in the product a `ProbeProgram`."""

    async def probe(self) -> ProbeOutcome:
        """Make one probe. Never raises: the outcome has the error."""


class Prober:
    """The probes of one model."""

    def __init__(
        self,
        model: str,
        probing: Probing,
        keeper: SnapshotKeeper,
        recorder: Recorder | None,
        clock: Callable[[], float],
        timing: DashboardTiming,
    ) -> None:
        """`model` is the model's id; `clock` returns Unix seconds."""
        self._model = model
        self._probing = probing
        self._keeper = keeper
        self._recorder = recorder
        self._clock = clock
        self._timing = timing
        self._measured: dict[PeerId, tuple[float, float]] = {}
        """Measured seconds per block, and when they were measured."""
        self._worked: bool | None = None

    async def run(self) -> None:
        """Probe until cancelled."""
        loop = asyncio.get_running_loop()
        await self._recall()
        while True:
            next_at = loop.time() + self._timing.probe_pause
            await self._probe()
            await asyncio.sleep(max(0.0, next_at - loop.time()))

    async def _recall(self) -> None:
        """Learn from the history whether the last probe has worked, in an earlier run."""
        if self._recorder is not None:
            newest = await self._recorder.write(lambda store: store.last_event(self._model, PROBING))
            self._worked = None if newest is None else newest.kind == "probe-works"

    async def _probe(self) -> None:
        outcome, now = await self._probing.probe(), self._clock()
        for event in self._events(outcome, now):
            logger.info("%s: %s %s", self._model, event.kind, event.detail)
            if self._recorder is not None:
                await self._recorder.write(lambda store, event=event: store.add_events([event]))  # type: ignore[misc]
        availability = await self._kept(outcome, now)
        await self._keeper.change(
            self._model,
            probe=LastProbe(now, outcome, availability),
            measured_block_seconds=self._measured_at(outcome, now),
        )

    async def _kept(self, outcome: ProbeOutcome, now: float) -> Availability | None:
        """Store the outcome, and return the availability over the last day."""
        if self._recorder is None:
            return None
        entry = ProbeEntry(
            self._model, now, outcome.code, outcome.seconds, outcome.first_token_seconds, outcome.tokens_per_second,
            outcome.repairs,
        )  # fmt: skip
        await self._recorder.write(lambda store: store.add_probe(entry))
        return await self._recorder.write(lambda store: store.availability(self._model, now - DAY))

    def _events(self, outcome: ProbeOutcome, now: float) -> list[EventEntry]:
        """Return the events of an outcome; only changes count, so a swarm that fails all night is a single event.

        That holds also where the dashboard is started again meanwhile.
        """
        worked, self._worked = self._worked, outcome.works
        found = []
        if not outcome.works and worked is not False:
            found.append(EventEntry(self._model, now, "probe-failed", "", "", outcome.code))
        elif outcome.works and worked is False:
            found.append(EventEntry(self._model, now, "probe-works", "", "", ""))
        if outcome.repairs:
            found.append(EventEntry(self._model, now, "failover", "", "", f"{outcome.repairs} in one probe"))
        return found

    def _measured_at(self, outcome: ProbeOutcome, now: float) -> Mapping[PeerId, float]:
        for hop in outcome.hops:
            self._measured[hop.peer] = ((hop.compute_seconds + hop.queue_seconds) / (hop.stop - hop.start), now)
        self._measured = {
            peer: (seconds, at) for peer, (seconds, at) in self._measured.items() if now - at <= self._timing.measured
        }
        return {peer: seconds for peer, (seconds, _) in self._measured.items()}
