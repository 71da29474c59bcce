"""Places and the queue before them, on a loop without waiting."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from blockswarm.client.api.gate import Gate, wait_seconds
from blockswarm.client.api.openai.errors import ApiError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_enter_in_the_order_in_which_they_came() -> None:
    async def scenario() -> None:
        gate, entered = Gate(2, 10, Clock()), []
        done = [asyncio.Event() for _ in range(6)]

        async def request(index: int) -> None:
            async with gate.slot():
                entered.append(index)
                await done[index].wait()

        tasks = [asyncio.create_task(request(index)) for index in range(6)]
        await settle()
        assert (entered, gate.running, gate.queued) == ([0, 1], 2, 4)
        tasks[2].cancel()
        done[1].set()
        await settle()
        assert (entered, gate.running, gate.queued) == ([0, 1, 3], 2, 2)
        for event in done:
            event.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (entered, gate.running, gate.queued) == ([0, 1, 3, 4, 5], 0, 0)

    asyncio.run(scenario())


def test_a_slot_that_comes_together_with_a_cancellation_is_passed_on() -> None:
    async def scenario() -> None:
        gate = Gate(1, 10, Clock())
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(gate.slot())

            async def request() -> None:
                async with gate.slot():
                    pass

            first, second = asyncio.create_task(request()), asyncio.create_task(request())
            await settle()
            await stack.aclose()  # the slot is given to the first...
            first.cancel()  # ...which is cancelled before it runs
        await asyncio.gather(first, second, return_exceptions=True)
        assert first.cancelled()
        assert second.exception() is None
        assert (gate.running, gate.queued) == (0, 0)

    asyncio.run(scenario())


def test_a_full_queue_refuses_with_the_time_that_requests_took() -> None:
    async def scenario() -> None:
        clock = Clock()
        gate = Gate(1, 0, clock)
        async with gate.slot() as waited:
            assert waited == 0
            with pytest.raises(ApiError) as refused:
                await gate.slot().__aenter__()
            assert (refused.value.status, refused.value.headers()) == (429, {"Retry-After": "1"})
            clock.now += 12
        async with gate.slot():
            with pytest.raises(ApiError) as refused:
                await gate.slot().__aenter__()
            assert refused.value.headers() == {"Retry-After": "12"}
            gate.note_busy(40.0)
            clock.now += 5
            assert gate.retry_after_seconds() == 35, "the swarm has no room before"

    asyncio.run(scenario())


def test_the_wait_grows_with_the_queue_and_shrinks_with_the_slots() -> None:
    assert wait_seconds(0, 4, None) == 0
    assert wait_seconds(7, 4, 10.0) == 20.0
    assert wait_seconds(0, 1, 3.0) == 3.0
