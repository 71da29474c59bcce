"""Records snapshots in the history: events when something has changed, and counts each minute; prunes old entries.

After a restart it goes on where the history ends: what is told there and still holds is not told again, and what ended
meanwhile is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from ..board.model import ModelBoard, model_board
from ..timing import DashboardTiming
from ..watch.changes import changes, gap_change
from ..watch.keeper import SnapshotKeeper
from ..watch.sighting import DashboardSnapshot, ModelState
from .entries import GAP, OUTAGE, CountEntry, EventEntry
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
        self._unseen: dict[str, bool] = {}
        """Whether the last look at a model has failed, by its id; absent: the history was not asked yet."""

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
            await self._recall(state.facts.id)
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
            else:
                events = events_since(await self._newest(state.facts.id, GAP), board)
            if events:
                await self._recorder.write(lambda store, events=events: store.add_events(events))  # type: ignore[misc]
            await self._count(board)

    async def _newest(self, model: str, kinds: Collection[str]) -> EventEntry | None:
        return await self._recorder.write(lambda store: store.last_event(model, kinds))

    async def _recall(self, model: str) -> None:
        """Learn from the history whether the last look at a model has failed, in an earlier run."""
        if model not in self._unseen:
            newest = await self._newest(model, OUTAGE)
            self._unseen[model] = newest is not None and newest.kind == "unseen"

    def _outage(self, state: ModelState) -> EventEntry | None:
        """The event that looks begin to fail, or to succeed again: a swarm that does not answer all night is one."""
        model, failure, sighting = state.facts.id, state.failure, state.sighting
        if failure is not None and not self._unseen[model]:
            self._unseen[model] = True
            return EventEntry(model, failure.at_seconds, "unseen", "", "", failure.code)
        if failure is None and sighting is not None and self._unseen[model]:
            self._unseen[model] = False
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


def events_since(newest: EventEntry | None, board: ModelBoard) -> list[EventEntry]:
    """Return the events between the history's newest event on missing blocks and the first look, which `board` has.

    A history without such an event says nothing about missing blocks: what is there at first is no event.
    """
    sighting, change = board.state.sighting, gap_change(board.missing_blocks)
    assert sighting is not None
    if newest is None or (newest.kind, newest.detail) == (change.kind, change.detail):
        return []
    return [EventEntry(board.state.facts.id, sighting.at_seconds, change.kind, "", "", change.detail)]


def count_entry(board: ModelBoard) -> CountEntry:
    """Return the counts of a board that has a sighting."""
    sighting, coverage, tally = board.state.sighting, board.coverage, board.tally
    assert sighting is not None
    assert coverage is not None
    return CountEntry(
        board.state.facts.id, sighting.at_seconds, tally.serving, tally.others, tally.silent, len(coverage.missing),
        coverage.weakest.servers, coverage.free_sessions,
    )  # fmt: skip
