"""Attention caches move one at a time: networks and clients take turns, which are kept by moving; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from blockswarm.peer.engine.cache.part import CachePart
from blockswarm.peer.session.reader import SessionReader
from blockswarm.peer.session.transfer import Transfers, TurnLimits, TurnTaker
from blockswarm.proto.errors import DeadlineExceeded
from blockswarm.proto.wire.frames import SMALLEST_PART_BYTES
from blockswarm.proto.wire.messages.session import KvExportFrame, KvStateFrame
from blockswarm.routing.swarm import PeerId
from support.virtual_time import VirtualTimeLoop
from support.workers import FakeLink, make_worker

SILENCE, HOLD = 5.0, 30.0
LIMITS = TurnLimits(SILENCE, HOLD)
PIECES = (SMALLEST_PART_BYTES,)


def taker(name: str) -> TurnTaker:
    """One in a text "client@network"; others are all in one network."""
    client, _, network = name.partition("@")
    return TurnTaker(network, PeerId(client))


class Diary:
    """The clients that moved a cache, and when."""

    def __init__(self, link_share: float = 1.0) -> None:
        self.transfers = Transfers(LIMITS, link_share)
        self.began: list[tuple[str, float]] = []

    async def move(
        self, client: str, seconds: float, timeout_seconds: float = 300.0, pieces: Sequence[int] = PIECES
    ) -> None:
        """Move a part, with `pieces` of these sizes each second."""
        async with self.transfers.turn(taker(client), timeout_seconds) as turn:
            self.began.append((client, asyncio.get_running_loop().time()))
            turn.begins()
            for _ in range(int(seconds)):
                await asyncio.sleep(1.0)
                for piece in pieces:
                    turn.moved(piece)


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


def test_networks_take_turns_however_many_clients_each_has() -> None:
    """Identities cost nothing."""

    async def scenario() -> None:
        diary = Diary()
        async with asyncio.TaskGroup() as group:
            for client in ("a@many", "b@many", "c@many", "d@many", "e@one", "a@many"):
                group.create_task(diary.move(client, 10.0))
                await asyncio.sleep(0)
        assert [name for name, _ in diary.began] == ["a@many", "e@one", "b@many", "c@many", "d@many", "a@many"]

    run(scenario())


def test_one_that_comes_again_is_behind_the_others() -> None:
    async def scenario() -> None:
        diary = Diary()

        async def over_and_over(client: str) -> None:
            for _ in range(4):
                await diary.move(client, 1.0)

        async with asyncio.TaskGroup() as group:
            for client in ("x@1", "y@1", "z@2"):
                group.create_task(over_and_over(client))
                await asyncio.sleep(0)
        names = [name for name, _ in diary.began]
        assert names[:7] == ["x@1", "z@2", "y@1", "z@2", "x@1", "z@2", "y@1"]

    run(scenario())


@pytest.mark.parametrize(
    ("pieces", "lost_at"),
    [((), SILENCE), ((1,) * 100, SILENCE), (PIECES, HOLD), ((SMALLEST_PART_BYTES // 2,) * 2, HOLD)],
    ids=["nothing", "crumbs", "slowly", "pieces that are crumbs"],
)
def test_a_part_that_stands_still_or_takes_long_loses_its_turn_and_goes_on(
    pieces: Sequence[int], lost_at: float
) -> None:
    """It may be an honest one on a slow link, and its session goes on as well."""

    async def scenario() -> None:
        diary = Diary()
        async with asyncio.TaskGroup() as group:
            # It ends while another one has the turn, and takes it away from nobody.
            group.create_task(diary.move("slow", lost_at + 12.0, pieces=pieces))
            for name in ("second", "third", "fourth"):
                await asyncio.sleep(0)
                group.create_task(diary.move(name, 10.0))
        later = [("second", lost_at), ("third", lost_at + 10.0), ("fourth", lost_at + 20.0)]
        assert diary.began == [("slow", 0.0), *later]

    run(scenario())


def test_the_time_of_one_that_stands_still_costs_nobody_a_pause() -> None:
    async def scenario() -> None:
        diary = Diary(link_share=0.1)
        silent = asyncio.create_task(diary.move("silent", 100.0, pieces=()))
        await asyncio.sleep(0)
        await diary.move("next", 1.0)
        assert diary.began == [("silent", 0.0), ("next", SILENCE)]
        await silent

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
            await diary.move("late", 100.0, timeout_seconds=25.0)  # 15 s of waiting, 10 s of moving
        assert asyncio.get_running_loop().time() == 30.0
        await first

    run(scenario())


@pytest.mark.parametrize("turn_has_come", [False, True])
def test_one_that_is_cancelled_passes_its_turn_on(turn_has_come: bool) -> None:
    async def scenario() -> None:
        diary = Diary()
        async with diary.transfers.turn(taker("first"), 100.0):
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


@pytest.mark.parametrize(("waits", "next_at"), [(2 * SILENCE, 2 * SILENCE + 3.0), (HOLD - 1.0, HOLD), (1000.0, HOLD)])
def test_a_part_that_waits_for_its_peer_keeps_its_turn_while_others_have_to_wait(waits: float, next_at: float) -> None:
    """It cannot move yet; but a client could have its peer wait for ever, by steps that it takes no answers of."""

    async def scenario() -> None:
        diary = Diary()

        async def wait_and_move() -> None:
            async with diary.transfers.turn(taker("first"), 2000.0) as turn:
                await asyncio.sleep(waits)
                turn.begins()
                for _ in range(3):
                    await asyncio.sleep(1.0)
                    turn.moved(SMALLEST_PART_BYTES)

        async with asyncio.TaskGroup() as group:
            group.create_task(wait_and_move())
            await asyncio.sleep(0)
            group.create_task(diary.move("next", 1.0))
        assert diary.began == [("next", next_at)]

    run(scenario())


def test_an_export_that_waits_for_the_engine_keeps_its_turn() -> None:
    class SlowEngine:
        async def export(self, starts: tuple[int, ...], max_tokens: int) -> CachePart:
            await asyncio.sleep(2 * SILENCE)
            return CachePart((0,), (1,), b"")

    class Outlet:
        async def kv_state(self, round_: int, seq: int, part: CachePart, moved: Callable[[int], None]) -> None:
            await asyncio.sleep(3.0)

    async def scenario() -> None:
        diary = Diary()
        turn = partial(diary.transfers.turn, taker("first"))
        worker = make_worker(FakeLink(), compute=SlowEngine(), outlet=Outlet(), take_turn=turn)
        tasks = [asyncio.create_task(work) for work in (worker.run(), worker.send_parts())]
        await worker.put_export(KvExportFrame(1000.0, 1, (), 5))
        await asyncio.sleep(1.0)
        await diary.move("next", 1.0)
        assert diary.began == [("next", 2 * SILENCE + 3.0)]
        for task in tasks:
            task.cancel()

    run(scenario())


def test_an_import_of_which_nothing_comes_loses_its_turn_soon() -> None:
    class SilentStream:
        def __init__(self) -> None:
            self.said = [KvStateFrame(1, 1, (0,), (5,), 1000, b"", 1000.0)]

        async def read(self) -> Any:
            return self.said.pop() if self.said else await asyncio.Event().wait()

    async def scenario() -> None:
        diary = Diary()
        unused: Any = None
        turn = partial(diary.transfers.turn, taker("silent"))
        reader = SessionReader(unused, unused, unused, unused, turn, lambda starts, lengths: 1000)
        reading = asyncio.create_task(reader.run(SilentStream()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await diary.move("next", 1.0)
        assert diary.began == [("next", SILENCE)]
        reading.cancel()

    run(scenario())


def test_a_part_that_waits_for_its_peer_costs_nobody_a_pause() -> None:
    """Parts move for half of the time; one that was held up by a step of 4 seconds moved for 3 seconds only."""

    async def scenario() -> None:
        diary = Diary(link_share=0.5)
        async with diary.transfers.turn(taker("first"), 100.0) as turn:
            await asyncio.sleep(4.0)
            turn.begins()
            await asyncio.sleep(3.0)
        await diary.move("next", 1.0)
        assert diary.began == [("next", 4.0 + 3.0 + 3.0)]

    run(scenario())
