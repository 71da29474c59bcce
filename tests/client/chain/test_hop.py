"""A stream to a peer that breaks, in whatever way, fails its hop with the reason."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.client.chain.hop import HopStream
from blockswarm.client.chain.machine import events as ev
from blockswarm.proto.errors import RemoteProtocolError, SessionLost, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.frames import ChunkFrame, StepReader
from blockswarm.proto.wire.messages.opening import OpenFrame, Signed
from blockswarm.proto.wire.messages.streams import ClientFrame
from blockswarm.routing.swarm import BlockRange


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

        choice = ev.HopChoice(PeerAddress(Identity.generate().peer_id, "h:1"), BlockRange(0, 4), b"")
        stream = HopStream(ev.HopId(7), choice, StepReader(4, answers=True), tell, lambda step: step)
        call = Call(said)
        stream.open(SimpleNamespace(session=lambda: call), OpenFrame(Signed(), Signed()))  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            await told.wait()
            await stream.ended()
        assert call.cancelled
        await stream.close()

    asyncio.run(scenario())
    (lost,) = events
    assert isinstance(lost, ev.Lost)
    assert lost.hop == 7
    assert isinstance(lost.error, reason)
