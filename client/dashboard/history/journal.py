"""Records snapshots in the history: events when something has changed, and counts each minute; prunes old entries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..board.model import ModelBoard, model_board
from ..timing import DashboardTiming
from ..watch.changes import changes
from ..watch.keeper import SnapshotKeeper
from ..watch.sighting import DashboardSnapshot, ModelState
from .entries import CountEntry, EventEntry
from .recorder import Recorder


class Journal:
    """The journal of one dashboard, on its loop."""

    def __init__(
        self, keeper: SnapshotKeeper, recorder: Recorder, clock: Callable[[], float], timing: DashboardTiming
    ) -> None:
        """`clock` returns Unix seconds."""
        self._keeper = keeper
        self._recorder = recorder
        self._clock = clock
        self._timing = timing
        self._last: dict[str, ModelState] = {}
        """The last recorded state, by the model's id."""
        self._counted: dict[str, float] = {}
        """When the next counts are due, on the loop's clock."""
        self._unseen: set[str] = set()
        """Models of which the last look has failed, by their ids."""

    async def run(self) -> None:
        """Record until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="write the journal")
            group.create_task(self._prune(), name="prune the history")

    async def _follow(self) -> None:
        snapshot = self._keeper.snapshot
        while True:
            await self._note(snapshot)
            snapshot = await self._keeper.after(snapshot.version)

    async def _prune(self) -> None:
        while True:
            await self._recorder.write(lambda store: store.prune(self._clock() - self._timing.keep_history))
            await asyncio.sleep(self._timing.prune_pause)

    async def _note(self, snapshot: DashboardSnapshot) -> None:
        for state in snapshot.models:
            if (outage := self._outage(state)) is not None:
                await self._recorder.write(lambda store, outage=outage: store.add_events([outage]))  # type: ignore[misc]
            if state.sighting is None:
                continue
            before = self._last.get(state.facts.id)
            if before is not None and before.sighting is state.sighting:
                continue
            self._last[state.facts.id] = state
            board = await asyncio.to_thread(model_board, state)
            if before is not None:
                events = events_between(await asyncio.to_thread(model_board, before), board)
                if events:
                    await self._recorder.write(lambda store, events=events: store.add_events(events))  # type: ignore[misc]
            await self._count(board)

    def _outage(self, state: ModelState) -> EventEntry | None:
        """The event that looks begin to fail, or to succeed again: a swarm that does not answer all night is one."""
        model, failure, sighting = state.facts.id, state.failure, state.sighting
        if failure is not None and model not in self._unseen:
            self._unseen.add(model)
            return EventEntry(model, failure.at_seconds, "unseen", "", "", failure.code)
        if failure is None and sighting is not None and model in self._unseen:
            self._unseen.remove(model)
            return EventEntry(model, sighting.at_seconds, "seen", "", "", "")
        return None

    async def _count(self, board: ModelBoard) -> None:
        now, model = asyncio.get_running_loop().time(), board.state.facts.id
        if now < self._counted.get(model, 0.0):
            return
        self._counted[model] = now + self._timing.count_pause
        entry = count_entry(board)
        await self._recorder.write(lambda store: store.add_count(entry))


def events_between(before: ModelBoard, after: ModelBoard) -> list[EventEntry]:
    """Return the events between two looks at one model; both boards have a sighting."""
    old, new = before.state.sighting, after.state.sighting
    assert old is not None
    assert new is not None
    return [
        EventEntry(after.state.facts.id, new.at_seconds, change.kind, change.peer, change.name, change.detail)
        for change in changes(old, new, before.missing_blocks, after.missing_blocks)
    ]


def count_entry(board: ModelBoard) -> CountEntry:
    """Return the counts of a board that has a sighting."""
    sighting, coverage, tally = board.state.sighting, board.coverage, board.tally
    assert sighting is not None
    assert coverage is not None
    return CountEntry(
        board.state.facts.id, sighting.at_seconds, tally.serving, tally.others, tally.silent, len(coverage.missing),
        coverage.weakest.servers, coverage.free_sessions,
    )  # fmt: skip
