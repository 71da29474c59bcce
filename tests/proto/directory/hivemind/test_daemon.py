"""One life of the daemon: how it ends is told."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.proto.directory.hivemind.daemon import HivemindTiming, RunningNode

TIMING = HivemindTiming(heartbeat_seconds=0.01, heartbeat_answer_seconds=0.01)


class Process:
    """A daemon's process that runs until it is killed."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    async def wait(self) -> None:
        await self._ended.wait()

    def kill(self) -> None:
        self.returncode = -9
        self._ended.set()


def node_of(process: Process, reading: asyncio.Task[None], error: Exception) -> RunningNode:
    """A node whose daemon cannot be asked, for the reason `error`."""

    async def open_connection() -> Any:
        raise error

    connector = SimpleNamespace(open_connection=open_connection)
    control = SimpleNamespace(daemon_connector=connector, _read_task=reading)
    p2p = SimpleNamespace(_child=process, _client=SimpleNamespace(control=control))
    return RunningNode(p2p, None, (), TIMING, time.time)


async def ended(error: Exception) -> tuple[str, int | None]:
    """How a daemon ends that cannot be asked, and its exit status."""
    reading = asyncio.create_task(asyncio.Event().wait())
    process = Process()
    try:
        async with asyncio.timeout(60):
            return await node_of(process, reading, error).ended(), process.returncode  # type: ignore[arg-type]
    finally:
        reading.cancel()


def test_a_daemon_that_does_not_answer_is_killed() -> None:
    assert asyncio.run(ended(ConnectionRefusedError())) == ("the DHT daemon does not answer", -9)


def test_a_defect_in_asking_is_not_taken_for_a_daemon_that_hangs() -> None:
    """It was swallowed, and the daemon killed and started again, for ever."""
    with pytest.raises(KeyError, match="a defect"):
        asyncio.run(ended(KeyError("a defect")))
