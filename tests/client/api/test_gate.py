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
            async with gate.slot("ann"):
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
            await stack.enter_async_context(gate.slot("ann"))

            async def request() -> None:
                async with gate.slot("ann"):
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
        async with gate.slot("ann") as waited:
            assert waited == 0
            with pytest.raises(ApiError) as refused:
                await gate.slot("ann").__aenter__()
            assert (refused.value.status, refused.value.headers()) == (429, {"Retry-After": "1"})
            clock.now += 12
        async with gate.slot("ann"):
            with pytest.raises(ApiError) as refused:
                await gate.slot("ann").__aenter__()
            assert refused.value.headers() == {"Retry-After": "12"}
            gate.note_busy(40.0)
            clock.now += 5
            assert gate.retry_after_seconds() == 35, "the swarm has no room before"

    asyncio.run(scenario())


class Requests:
    """Requests of several takers, each of which ends when the test says so."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.entered: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, taker: str, name: str) -> asyncio.Task[None]:
        """Send a request; returns when it generates, waits or was refused."""

        async def request() -> None:
            async with self.gate.slot(taker):
                self.entered.append(name)
                await end.wait()

        end = self._ends[name] = asyncio.Event()
        task = asyncio.create_task(request())
        await settle()
        return task

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


def test_one_key_with_many_requests_delays_the_request_of_another_by_one() -> None:
    async def scenario() -> None:
        requests = Requests(Gate(1, 100, Clock()))
        tasks = [await requests.ask("ann", f"ann {number}") for number in range(65)]
        tasks += [await requests.ask("bob", f"bob {number}") for number in range(2)]
        for name in ("ann 0", "bob 0", "ann 1", "bob 1", *(f"ann {number}" for number in range(2, 65))):
            assert requests.entered[-1] == name
            await requests.end(name)
        await asyncio.gather(*tasks)
        assert (requests.gate.running, requests.gate.queued) == (0, 0)

    asyncio.run(scenario())


def test_a_queue_that_one_key_has_filled_has_room_for_another() -> None:
    async def scenario() -> None:
        requests = Requests(Gate(1, 3, Clock()))
        tasks = [await requests.ask("ann", f"ann {number}") for number in range(4)]
        with pytest.raises(ApiError) as refused:
            await (await requests.ask("ann", "one too many"))
        assert (refused.value.status, refused.value.code) == (429, "endpoint_full")
        tasks.append(await requests.ask("bob", "bob"))
        with pytest.raises(ApiError) as refused:
            await tasks.pop(3)
        assert str(refused.value) == "the endpoint is full: 1 requests are answered and 3 wait"
        with pytest.raises(ApiError):
            await (await requests.ask("bob", "bob again"))  # it has one, and would then have as many as the other
        for name in ("ann 0", "bob", "ann 1", "ann 2"):
            await requests.end(name)
        await asyncio.gather(*tasks)
        assert requests.entered == ["ann 0", "bob", "ann 1", "ann 2"]
        assert (requests.gate.running, requests.gate.queued) == (0, 0)

    asyncio.run(scenario())


def test_the_wait_grows_with_the_queue_and_shrinks_with_the_slots() -> None:
    assert wait_seconds(0, 4, None) == 0
    assert wait_seconds(7, 4, 10.0) == 20.0
    assert wait_seconds(0, 1, 3.0) == 3.0
