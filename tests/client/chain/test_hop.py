"""A stream to a peer that breaks, in whatever way, fails its hop with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.client.chain.hop import BACKLOG_FRAMES, HopStream
from blockswarm.client.chain.machine import events as ev
from blockswarm.client.timing import ChainTiming
from blockswarm.proto.errors import RemoteProtocolError, SessionLost, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.frames import ChunkFrame, StepReader
from blockswarm.proto.wire.messages.opening import OpenFrame, Signed
from blockswarm.proto.wire.messages.session import KvStateFrame, StatusFrame
from blockswarm.proto.wire.messages.streams import ClientFrame
from blockswarm.routing.swarm import BlockRange
from support.virtual_time import VirtualTimeLoop

TIMING = ChainTiming()


class Call:
    """A stream on which the peer says one thing."""

    def __init__(self, said: Any) -> None:
        self.said = said
        self.cancelled = False

    async def read(self) -> Any:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    async def write(self, frame: ClientFrame) -> None:
        pass

    def cancel(self) -> None:
        self.cancelled = True


class FullCall:
    """A stream to a peer that takes nothing, until it is gone."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def read(self) -> None:
        await self.gone.wait()

    async def write(self, frame: ClientFrame) -> None:
        await asyncio.Event().wait()

    def cancel(self) -> None:
        pass


class LongCall:
    """A stream on which the peer says one thing after the other, and then nothing."""

    def __init__(self, *said: Any) -> None:
        self.left = list(said)

    async def read(self) -> Any:
        if not self.left:
            await asyncio.Event().wait()
        return self.left.pop(0)

    async def write(self, frame: ClientFrame) -> None:
        pass

    def cancel(self) -> None:
        pass


def stream_over(call: Any, tell: Callable[[ev.Event], None]) -> HopStream:
    choice = ev.HopChoice(PeerAddress(Identity.generate().peer_id, "h:1"), BlockRange(0, 4), b"")
    stream = HopStream(ev.HopId(7), choice, StepReader(4, answers=True), tell, lambda step: step)
    stream.open(SimpleNamespace(session=lambda: call), OpenFrame(Signed(), Signed()))  # type: ignore[arg-type]
    return stream


def test_a_cache_that_passes_to_a_peer_that_dies_holds_up_nobody() -> None:
    """The peer that sends it is well: its answers must still be read."""

    async def scenario() -> None:
        probed = asyncio.Event()
        full, chunks = FullCall(), 2 * BACKLOG_FRAMES
        state = KvStateFrame(1, 1, (0,), (5,), chunks, b"")
        sending = LongCall(state, *[ChunkFrame(b"k")] * chunks, StatusFrame(1, 1, 1, 1))
        target = stream_over(full, lambda event: None)
        source = stream_over(sending, lambda event: probed.set() if isinstance(event, ev.Probed) else None)
        source.pass_cache_on(target, ev.Export(source.id, target.id, 1, (), 5, 60.0), ChainTiming(passing_seconds=60.0))
        for _ in range(20 * chunks):  # more turns than all of it takes
            await asyncio.sleep(0)
        assert sending.left, "it waits for the target"
        full.gone.set()
        async with asyncio.timeout(60):
            await probed.wait()
        await source.close()
        await target.close()

    asyncio.run(scenario())


def test_a_cache_that_passes_to_a_peer_that_takes_nothing_holds_up_nobody() -> None:
    """A peer is not known to be dead while it only takes nothing: the part is given up, however the waits add up."""

    async def scenario() -> None:
        chunks = 4 * BACKLOG_FRAMES
        state = KvStateFrame(1, 1, (0,), (5,), chunks, b"")
        heard: list[ev.Event] = []
        source = stream_over(LongCall(state, *[ChunkFrame(b"k")] * chunks, StatusFrame(1, 1, 1, 1)), heard.append)
        target = stream_over(FullCall(), lambda event: None)
        source.pass_cache_on(target, ev.Export(source.id, target.id, 1, (), 5, 60.0), TIMING)
        await asyncio.sleep(TIMING.passing_seconds + 1.0)
        assert [type(event) for event in heard] == [ev.Exported, ev.PartDropped, ev.Probed]
        assert heard[1] == ev.PartDropped(source.id)
        await source.close()
        await target.close()

    with closing(VirtualTimeLoop()) as loop:
        loop.run(scenario())


def test_an_answer_is_not_late_because_a_part_waited_for_its_target() -> None:
    """Else the peer that sends the part would be examined, and perhaps replaced, for the other one's silence."""
    assert TIMING.passing_seconds < TIMING.late_seconds


@pytest.mark.parametrize(("said", "reason"), [
    (None, SessionLost),  # the end of the stream
    (RemoteProtocolError("a PeerFrame is not readable"), RemoteProtocolError),
    (ValueError("no such thing"), RemoteProtocolError),
    (ChunkFrame(b"123"), SwarmError),  # a part of nothing
])  # fmt: skip
def test_an_error_of_any_class_fails_the_hop(said: Any, reason: type[SwarmError]) -> None:
    """Else the session would wait for its answer until the stall is detected, and not know why."""

    events: list[ev.Event] = []

    async def scenario() -> None:
        told = asyncio.Event()

        def tell(event: ev.Event) -> None:
            events.append(event)
            told.set()

        call = Call(said)
        stream = stream_over(call, tell)
        async with asyncio.timeout(60):
            await told.wait()
            await stream.ended()
        assert call.cancelled
        await stream.close()

    asyncio.run(scenario())
    (lost,) = events
    assert isinstance(lost, ev.Lost)
    assert lost.hop == 7
    assert isinstance(lost.error, reason)
