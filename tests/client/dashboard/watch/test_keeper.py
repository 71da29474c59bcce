"""The snapshot is replaced as a whole, and those that wait for the next one hear of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from blockswarm.client.dashboard.watch.keeper import SnapshotKeeper
from blockswarm.client.dashboard.watch.sighting import ModelState
from support.sightings import FACTS


def test_a_model_is_replaced_and_the_others_stay() -> None:
    async def play() -> None:
        keeper = SnapshotKeeper()
        first, other = ModelState(FACTS), ModelState(replace(FACTS, name="b", digest="cd" * 32))
        await keeper.put(other)
        await keeper.put(first)
        before = keeper.snapshot
        newer = ModelState(FACTS)
        await keeper.put(newer)
        assert before.models == (first, other)
        assert keeper.snapshot.models == (newer, other)
        assert keeper.snapshot.version == before.version + 1
        assert keeper.snapshot.model(FACTS.id) is newer
        assert keeper.snapshot.model("zz") is None

    asyncio.run(play())


def test_waiting_ends_with_the_next_snapshot_and_at_once_for_an_old_one() -> None:
    async def play() -> None:
        keeper = SnapshotKeeper()
        waiting = asyncio.create_task(keeper.after(keeper.snapshot.version))
        await keeper.wait_for("a reason")
        assert (await waiting).waiting_for == "a reason"
        assert (await keeper.after(0)).version == 1

    asyncio.run(play())
