"""Attention caches move one at a time: clients take turns, and nobody holds the turn for long; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import closing
from typing import Any

import pytest
from blockswarm.peer.session.transfer import Transfers
from blockswarm.proto.errors import DeadlineExceeded
from blockswarm.routing.swarm import PeerId
from support.virtual_time import VirtualTimeLoop

HOLD = 30.0


class Diary:
    """The clients that moved a cache, and when."""

    def __init__(self) -> None:
        self.transfers = Transfers(HOLD, 1.0)
        self.began: list[tuple[str, float]] = []

    async def move(self, client: str, seconds: float, timeout_seconds: float = 300.0) -> None:
        async with self.transfers.turn(PeerId(client), timeout_seconds):
            self.began.append((client, asyncio.get_running_loop().time()))
            await asyncio.sleep(seconds)


def run(work: Coroutine[Any, Any, None]) -> None:
    with closing(VirtualTimeLoop()) as loop:
        loop.run(work)


def test_clients_take_turns_however_many_sessions_each_has() -> None:
    async def scenario() -> None:
        diary = Diary()
        async with asyncio.TaskGroup() as group:
            for client in ("greedy", "greedy", "greedy", "greedy", "honest", "honest"):
                group.create_task(diary.move(client, 10.0))
                await asyncio.sleep(0)
        assert [client for client, _ in diary.began] == ["greedy", "greedy", "honest", "greedy", "honest", "greedy"]
        assert [at for _, at in diary.began] == [10.0 * turn for turn in range(6)]

    run(scenario())


def test_nobody_holds_the_turn_for_as_long_as_it_likes() -> None:
    async def scenario() -> None:
        diary = Diary()
        slow = asyncio.create_task(diary.move("slow", 1000.0))
        await asyncio.sleep(0)
        await diary.move("next", 1.0)
        assert diary.began == [("slow", 0.0), ("next", HOLD)]
        with pytest.raises(DeadlineExceeded):
            await slow

    run(scenario())


def test_the_deadline_holds_for_waiting_and_moving() -> None:
    async def scenario() -> None:
        diary = Diary()
        first = asyncio.create_task(diary.move("first", 20.0))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await diary.move("impatient", 1.0, timeout_seconds=5.0)
        assert asyncio.get_running_loop().time() == 5.0
        with pytest.raises(DeadlineExceeded):
            await diary.move("late", 100.0, timeout_seconds=25.0)
        assert asyncio.get_running_loop().time() == 30.0
        await first

    run(scenario())


@pytest.mark.parametrize("turn_has_come", [False, True])
def test_one_that_is_cancelled_passes_its_turn_on(turn_has_come: bool) -> None:
    async def scenario() -> None:
        diary = Diary()
        async with diary.transfers.turn(PeerId("first"), 100.0):
            cancelled = asyncio.create_task(diary.move("cancelled", 10.0))
            last = asyncio.create_task(diary.move("last", 10.0))
            await asyncio.sleep(1)
            if not turn_has_come:
                cancelled.cancel()
        cancelled.cancel()  # the turn may have been given to it, but it has not run yet
        await last
        assert [client for client, _ in diary.began] == ["last"]
        await diary.move("again", 1.0)

    run(scenario())


def test_a_part_that_waits_for_its_peer_costs_nobody_a_pause() -> None:
    """Parts move for half of the time; one that was held up by a step of 20 seconds moved for 3 seconds only."""

    async def scenario() -> None:
        diary = Diary()
        diary.transfers = Transfers(HOLD, 0.5)
        async with diary.transfers.turn(PeerId("first"), 100.0) as turn:
            await asyncio.sleep(20.0)
            turn.moves()
            await asyncio.sleep(3.0)
        await diary.move("next", 1.0)
        assert diary.began == [("next", 20.0 + 3.0 + 3.0)]

    run(scenario())
