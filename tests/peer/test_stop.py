"""The first stop is gentle and the second one is not; before a peer serves there is nothing to be gentle with."""

from __future__ import annotations

import asyncio

import pytest
from blockswarm.peer.stop import StopRequest, until_stopped


def test_before_it_serves_a_stop_is_at_once() -> None:
    async def scenario() -> None:
        stop = StopRequest()
        stop()
        assert (stop.gently.is_set(), stop.now.is_set()) == (False, True)

    asyncio.run(scenario())


def test_a_serving_peer_is_stopped_gently_and_then_at_once() -> None:
    async def scenario() -> None:
        stop = StopRequest()
        stop.serving = True
        stop()
        assert (stop.gently.is_set(), stop.now.is_set()) == (True, False)
        stop()
        assert (stop.gently.is_set(), stop.now.is_set()) == (True, True)

    asyncio.run(scenario())


def test_a_stop_at_once_cancels_the_work_and_waits_for_its_end() -> None:
    async def scenario() -> None:
        stop, ended = StopRequest(), []

        async def work() -> None:
            try:
                stop()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append("tidied up")

        await until_stopped(work(), stop)
        assert ended == ["tidied up"]

    asyncio.run(scenario())


def test_work_that_ends_or_fails_by_itself_needs_no_stop() -> None:
    async def scenario() -> None:
        await until_stopped(asyncio.sleep(0), StopRequest())

        async def fail() -> None:
            raise OSError("no room on disk")

        with pytest.raises(OSError, match="no room"):
            await until_stopped(fail(), StopRequest())

    asyncio.run(scenario())


def test_a_cancellation_from_outside_is_passed_on() -> None:
    """The program's own end must not look as if the peer had been asked to stop."""

    async def scenario() -> None:
        task = asyncio.create_task(until_stopped(asyncio.Event().wait(), StopRequest()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
