"""No task outlives its owner, and none fails without a word."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing

import pytest
from blockswarm.client.tasks import OwnedTasks
from support.virtual_time import VirtualTimeLoop


def run(work: object) -> None:

    async def checked() -> None:
        await work  # type: ignore[misc]
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left behind"

    with closing(VirtualTimeLoop()) as loop:
        loop.run(checked())


async def fail_after(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ValueError("no such thing")


def test_an_error_of_an_owned_task_is_logged_when_it_happens(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        owned = OwnedTasks()
        owned.start(fail_after(2), "looking around")
        owned.start(asyncio.sleep(10), "sleeping")
        await asyncio.sleep(3)
        assert [record.message for record in caplog.records] == ["looking around failed"]
        await owned.finish()
        assert asyncio.get_running_loop().time() == 10.0
        owned.start(asyncio.sleep(100), "sleeping")
        await owned.cancel()
        assert asyncio.get_running_loop().time() == 10.0

    with caplog.at_level(logging.ERROR):
        run(scenario())
