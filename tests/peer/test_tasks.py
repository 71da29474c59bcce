"""Tasks with owners: cleanup that a cancellation does not cut short, and conditions that are told of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from blockswarm.peer.tasks import Changes, run_to_end, run_until_first
from support.virtual_time import VirtualTimeLoop


def run(work: object) -> object:
    loop = VirtualTimeLoop()
    try:
        return loop.run(work)
    finally:
        loop.close()


def test_a_cancelled_caller_waits_for_the_work() -> None:
    """However often it is cancelled; the cancellation comes out when the work is over."""
    diary: list[object] = []

    async def work() -> str:
        await asyncio.sleep(10)
        diary.append("work")
        return "done"

    async def caller() -> None:
        try:
            await run_to_end(work())
        finally:
            diary.append("caller")

    async def scenario() -> None:
        task = asyncio.create_task(caller())
        for _ in range(3):
            await asyncio.sleep(1)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert diary == ["work", "caller"]
        assert await run_to_end(work()) == "done"

    run(scenario())


def test_a_timeout_around_the_work_is_still_a_timeout() -> None:
    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await run_to_end(asyncio.sleep(10))
        assert asyncio.get_running_loop().time() == 10

    run(scenario())


def test_what_the_work_raises_is_raised_or_is_the_cause_of_the_cancellation() -> None:
    async def work() -> None:
        await asyncio.sleep(1)
        raise ValueError("no")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="no"):
            await run_to_end(work())
        task = asyncio.create_task(run_to_end(work()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        causes = [cancelled.value.__cause__, cancelled.value.__context__]
        assert any(isinstance(cause, ValueError) for cause in causes), causes

    run(scenario())


def test_the_first_that_ends_ends_the_others() -> None:
    """They are cancelled inside of the given context, and over when the caller goes on, also when it is cancelled."""
    diary: list[str] = []

    async def steady() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            diary.append("over")

    async def failing() -> None:
        await asyncio.sleep(5)
        raise ValueError("no")

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        diary.append("in")
        yield
        diary.append("out")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="no"):
            await run_until_first(steady(), failing(), cancel_inside=context)
        assert diary == ["in", "over", "out"]
        diary.clear()
        task = asyncio.create_task(run_until_first(steady(), steady()))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert diary == ["over", "over"]

    run(scenario())


def test_waiters_hear_of_every_change() -> None:
    async def scenario() -> None:
        changes, value = Changes(), 0
        reached: list[int] = []

        async def waiter(wanted: int) -> None:
            await changes.wait_for(lambda: value >= wanted)
            reached.append(wanted)

        async with asyncio.TaskGroup() as group:
            for wanted in (3, 1, 2, 0):
                group.create_task(waiter(wanted))
            await asyncio.sleep(1)
            for value in (1, 2, 3):  # noqa: B007 -- the waiters read it
                changes.notify()
                await asyncio.sleep(1)
        assert reached == [0, 1, 2, 3]

    run(scenario())
