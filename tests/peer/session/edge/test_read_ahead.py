"""A client that speaks while its session waits is heard at once; afterwards it is heard by the session's reader."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import closing
from typing import Any

import pytest
from blockswarm.peer.session.edge.read_ahead import ReadAhead
from blockswarm.proto.errors import RemoteProtocolError, SessionLost, SwarmError
from blockswarm.proto.wire.frames import ChunkFrame
from blockswarm.proto.wire.messages.session import ProbeFrame
from support.virtual_time import VirtualTimeLoop


class Said:
    """A stream that says what is put into its queue."""

    def __init__(self, *frames: Any) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        for frame in frames:
            self.queue.put_nowait(frame)

    async def read(self) -> Any:
        said = await self.queue.get()
        if isinstance(said, Exception):
            raise said
        return said

    async def write(self, frame: Any) -> None:
        raise AssertionError("not called in this test")


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await work
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with closing(VirtualTimeLoop()) as loop:
        loop.run(bounded())


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (ChunkFrame(b"x"), RemoteProtocolError),
        (None, SessionLost),
        (RemoteProtocolError("no frame"), RemoteProtocolError),
    ],
)
def test_what_comes_too_early_is_told(said: Any, wanted: type[SwarmError]) -> None:
    async def scenario() -> None:
        told: list[SwarmError] = []
        ahead = ReadAhead(Said(ProbeFrame(1), said))
        ahead.begin(told.append)
        await asyncio.sleep(1)
        (error,) = told
        assert isinstance(error, wanted)
        await ahead.close()

    run(scenario())


def test_after_the_wait_nothing_is_lost_or_refused() -> None:
    async def scenario() -> None:
        told: list[SwarmError] = []
        stream = Said(ProbeFrame(1))
        ahead = ReadAhead(stream)
        ahead.begin(told.append)
        await asyncio.sleep(1)
        ahead.admitted()
        for frame in (ProbeFrame(2), ChunkFrame(b"x"), None):
            stream.queue.put_nowait(frame)
        assert [await ahead.read() for _ in range(3)] == [ProbeFrame(2), ChunkFrame(b"x"), None]
        assert not told
        await ahead.close()

    run(scenario())


def test_a_wait_that_ends_leaves_nobody_listening() -> None:
    async def scenario() -> None:
        ahead = ReadAhead(Said())
        ahead.begin(lambda error: pytest.fail(str(error)))
        await ahead.close()

    run(scenario())
