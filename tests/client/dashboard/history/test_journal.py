"""Events of a swarm are written down once, and its peers counted each minute."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from blockswarm.client.dashboard.history.entries import NumberedEvent
from blockswarm.client.dashboard.history.journal import Journal
from blockswarm.client.dashboard.history.recorder import Recorder
from blockswarm.client.dashboard.timing import DashboardTiming
from blockswarm.client.dashboard.watch.keeper import SnapshotKeeper
from blockswarm.client.dashboard.watch.sighting import Failure, ModelState
from support.sightings import FACTS, NOW, known, sighting

ANN, BOB = known("0:4", "ann"), known("4:8", "bob")


def journalled(tmp_path: Path, scenario: Callable[[SnapshotKeeper, Recorder], Awaitable[None]]) -> None:
    async def play() -> None:
        keeper, recorder = SnapshotKeeper(), Recorder(tmp_path / "h.sqlite", lambda: NOW)
        running = asyncio.create_task(Journal(keeper, recorder, lambda: NOW, DashboardTiming()).run())
        try:
            async with asyncio.timeout(60):
                await scenario(keeper, recorder)
        finally:
            running.cancel()
            await asyncio.wait({running})
            recorder.close()

    asyncio.run(play())


async def events(recorder: Recorder, count: int) -> list[NumberedEvent]:
    while len(found := await recorder.write(lambda store: store.events(None, 100)) or []) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return found


async def counted(recorder: Recorder) -> float:
    while (peers := await recorder.write(lambda store: store.buckets(FACTS.id, NOW, 1, 900.0)[0].peers)) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return peers


def test_events_are_written_once_and_not_for_what_was_there_at_first(tmp_path: Path) -> None:
    async def scenario(keeper: SnapshotKeeper, recorder: Recorder) -> None:
        first = sighting([ANN, BOB])
        await keeper.put(ModelState(FACTS, first))
        assert await counted(recorder) == 2
        second = sighting([ANN], [BOB], at=NOW + 15, before=first)
        await keeper.put(ModelState(FACTS, second))
        found = [numbered.event for numbered in await events(recorder, 2)]
        assert [(each.kind, each.name, each.at_seconds) for each in reversed(found)] == [
            ("incomplete", "", NOW + 15),
            ("silent", "bob", NOW + 15),
        ]
        assert found[1].detail == "no peer serves blocks 4:8"
        await keeper.change(FACTS.id, failure=None)  # another snapshot of the same look
        await keeper.put(ModelState(replace(FACTS, digest="cd" * 32), second))
        await keeper.put(ModelState(FACTS, sighting([ANN, BOB], at=NOW + 30, before=second)))
        found = [numbered.event for numbered in await events(recorder, 4)]
        assert [each.kind for each in reversed(found)] == ["incomplete", "silent", "complete", "answers"]
        assert await counted(recorder) == 2, "the second and the third look are within the same minute"

    journalled(tmp_path, scenario)


def test_a_swarm_that_does_not_answer_is_an_event_and_so_is_its_return(tmp_path: Path) -> None:
    """Where nothing is probed a whole swarm could die, and its events said that nothing had happened."""

    async def scenario(keeper: SnapshotKeeper, recorder: Recorder) -> None:
        first = sighting([ANN, BOB])
        await keeper.put(ModelState(FACTS, first))
        await counted(recorder)
        for later in (15, 20):
            await keeper.change(FACTS.id, failure=Failure("peer-unavailable", NOW + later))
            await events(recorder, 1)
        await keeper.put(ModelState(FACTS, sighting([ANN, BOB], at=NOW + 30, before=first)))
        found = [numbered.event for numbered in await events(recorder, 2)]
        assert [(each.kind, each.at_seconds, each.detail) for each in reversed(found)] == [
            ("unseen", NOW + 15, "peer-unavailable"),
            ("seen", NOW + 30, ""),
        ]

    journalled(tmp_path, scenario)


_digests = (f"{number:04x}".ljust(64, "0") for number in itertools.count())


async def noted(keeper: SnapshotKeeper, recorder: Recorder) -> None:
    """Wait until the journal has seen the present snapshot: a model that comes last in it is counted."""
    last = replace(FACTS, name=f"~{FACTS.name}", digest=next(_digests))
    await keeper.put(ModelState(last, sighting([ANN, BOB])))
    while not await recorder.write(lambda store: store.buckets(last.id, NOW, 1, 900.0)[0].peers):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def kinds(found: list[NumberedEvent]) -> list[str]:
    return [numbered.event.kind for numbered in reversed(found)]


def test_what_a_history_tells_already_is_not_told_again_after_a_restart(tmp_path: Path) -> None:
    """Each start wrote once more that the swarm is not seen, and none that it was seen again meanwhile."""

    async def lost(keeper: SnapshotKeeper, recorder: Recorder) -> None:
        await keeper.put(ModelState(FACTS, failure=Failure("peer-unavailable", NOW)))
        await events(recorder, 1)

    async def still_lost_then_back(keeper: SnapshotKeeper, recorder: Recorder) -> None:
        await keeper.put(ModelState(FACTS, failure=Failure("peer-unavailable", NOW + 15)))
        await noted(keeper, recorder)
        await keeper.put(ModelState(FACTS, sighting([ANN, BOB], at=NOW + 30)))
        assert kinds(await events(recorder, 2)) == ["unseen", "seen"]

    async def still_there(keeper: SnapshotKeeper, recorder: Recorder) -> None:
        await keeper.put(ModelState(FACTS, sighting([ANN, BOB], at=NOW + 45)))
        await noted(keeper, recorder)
        await keeper.change(FACTS.id, failure=Failure("peer-unavailable", NOW + 60))
        assert kinds(await events(recorder, 3)) == ["unseen", "seen", "unseen"]

    for scenario in (lost, still_lost_then_back, still_there):
        journalled(tmp_path, scenario)


def test_blocks_that_were_lost_or_found_between_two_runs_are_events(tmp_path: Path) -> None:
    async def begins(keeper: SnapshotKeeper, recorder: Recorder) -> None:
        first = sighting([ANN, BOB])
        await keeper.put(ModelState(FACTS, first))
        await counted(recorder)
        await keeper.put(ModelState(FACTS, sighting([ANN], [BOB], at=NOW + 15, before=first)))
        assert kinds(await events(recorder, 2)) == ["incomplete", "silent"]

    async def the_same(keeper: SnapshotKeeper, recorder: Recorder) -> None:
        first = sighting([ANN], at=NOW + 30)
        await keeper.put(ModelState(FACTS, first))
        await noted(keeper, recorder)
        await keeper.put(ModelState(FACTS, sighting([ANN], [BOB], at=NOW + 45, before=first)))
        assert kinds(await events(recorder, 3)) == ["incomplete", "silent", "silent"]

    async def found(keeper: SnapshotKeeper, recorder: Recorder) -> None:
        await keeper.put(ModelState(FACTS, sighting([ANN, BOB], at=NOW + 60)))
        assert kinds(await events(recorder, 4))[3:] == ["complete"]

    async def lost(keeper: SnapshotKeeper, recorder: Recorder) -> None:
        await keeper.put(ModelState(FACTS, sighting([BOB], at=NOW + 75)))
        assert kinds(await events(recorder, 5))[4:] == ["incomplete"]

    for scenario in (begins, the_same, found, lost):
        journalled(tmp_path, scenario)
