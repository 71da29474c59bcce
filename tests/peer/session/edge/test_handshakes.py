"""Streams that do not say what they want: few of them, for a short while, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import closing
from typing import Any

import pytest
from blockswarm.peer.session.edge.handshakes import Handshakes
from blockswarm.proto.errors import DeadlineExceeded, RemoteProtocolError, UsageError
from support.virtual_time import VirtualTimeLoop

SECONDS = 15.0


def run(work: Coroutine[Any, Any, None]) -> None:
    with closing(VirtualTimeLoop()) as loop:
        loop.run(work)


async def silent(handshakes: Handshakes, ends: list[float]) -> None:
    with pytest.raises(DeadlineExceeded, match=r"not opened (within|before newer)"):
        async with handshakes.handshake():
            await asyncio.sleep(1000)
    ends.append(asyncio.get_running_loop().time())


def test_a_silent_stream_is_given_up() -> None:
    async def scenario() -> None:
        ends: list[float] = []
        await silent(Handshakes(SECONDS), ends)
        assert ends == [SECONDS]

    run(scenario())


def test_the_oldest_makes_room_for_a_new_one() -> None:
    """A flood of silent streams holds no more of them at once, and keeps no honest one out."""

    async def scenario() -> None:
        handshakes, ends = Handshakes(SECONDS, most=10), list[float]()
        flood = [asyncio.create_task(silent(handshakes, ends)) for _ in range(500)]
        await asyncio.sleep(0)
        assert handshakes.count == 10
        await asyncio.sleep(1)
        assert len(ends) == 490
        async with handshakes.handshake():
            await asyncio.sleep(0.1)
        assert len(ends) == 491
        await asyncio.gather(*flood)
        assert handshakes.count == 0

    run(scenario())


def test_a_stream_comes_while_the_oldest_whose_time_is_over_clears_up() -> None:
    """The limit of the oldest has expired and its stream has not ended: it cannot be moved any more."""

    async def scenario() -> None:
        handshakes = Handshakes(SECONDS, most=1)

        async def slow_to_end() -> None:
            async with handshakes.handshake():
                try:
                    await asyncio.sleep(1000)
                finally:
                    await asyncio.sleep(2)

        oldest = asyncio.create_task(slow_to_end())
        await asyncio.sleep(SECONDS + 1)
        async with handshakes.handshake():
            assert not oldest.done()
        with pytest.raises(DeadlineExceeded, match="within"):
            await oldest

    run(scenario())


def test_what_the_user_of_the_other_side_did_wrong_is_wrong_on_the_wire() -> None:
    async def scenario() -> None:
        with pytest.raises(RemoteProtocolError, match="no such format"):
            async with Handshakes(SECONDS).handshake():
                raise UsageError("no such format")

    run(scenario())
