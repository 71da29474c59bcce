"""Fair places: takers take turns, those that wait are bounded, and no place is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from blockswarm.proto.fair_places import FairPlaces


class FullError(Exception):
    """The refusal."""


class Asked:
    """Work that ends when the test says so."""

    def __init__(self, places: FairPlaces[str]) -> None:
        self.places = places
        self.running: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, taker: str, name: str) -> asyncio.Task[None]:
        """Begin work; returns when it runs, waits or was refused."""

        async def work() -> None:
            async with self.places.place(taker):
                self.running.append(name)
                try:
                    await end.wait()
                finally:
                    self.running.remove(name)

        end = self._ends[name] = asyncio.Event()
        task = asyncio.create_task(work())
        await settle()
        return task

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def played(scenario: Callable[[Asked], Awaitable[None]]) -> None:
    async def play() -> None:
        async with asyncio.timeout(60):
            await scenario(Asked(FairPlaces(1, 3, FullError)))

    asyncio.run(play())


def test_another_taker_is_next_however_many_wait() -> None:
    async def scenario(asked: Asked) -> None:
        for number in range(3):
            await asked.ask("stranger", f"s{number}")
        await asked.ask("ann", "a")
        assert asked.running == ["s0"]
        await asked.end("s0")
        assert asked.running == ["a"]
        await asked.end("a")
        assert asked.running == ["s1"]

    played(scenario)


def test_one_too_many_is_refused_at_once_and_room_is_made_for_another_taker() -> None:
    async def scenario(asked: Asked) -> None:
        waiting = [await asked.ask("stranger", f"s{number}") for number in range(4)]
        further = await asked.ask("stranger", "further")
        with pytest.raises(FullError):
            await further
        await asked.ask("ann", "a")
        with pytest.raises(FullError):
            await waiting[3]
        assert (asked.running, asked.places.waiting) == (["s0"], 3)
        await asked.end("s0")
        assert asked.running == ["a"]

    played(scenario)


def test_a_caller_that_goes_away_keeps_no_place() -> None:
    async def scenario(asked: Asked) -> None:
        first = await asked.ask("a", "first")
        second, third = await asked.ask("b", "second"), await asked.ask("c", "third")
        second.cancel()
        await settle()
        assert asked.places.waiting == 1
        first.cancel()  # its place comes to the third at the same moment as that goes away
        await asyncio.sleep(0)
        third.cancel()
        await settle()
        await asked.ask("d", "last")
        assert (asked.running, asked.places.waiting) == (["last"], 0)

    played(scenario)
