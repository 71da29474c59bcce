"""The wait for a successor ends: with it, without hope, when time is up, or when the swarm is out of sight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from blockswarm.peer.placement.leaving import until_replaced
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.routing.swarm import PeerSpec, PeerState, Swarm
from support.placement import peer, swarm

ME = peer("bc", "8:12", state=PeerState.DRAINING)
TIMING = PeerTiming(replaced_seconds=0.5, join_turn_seconds=0.01)
PARTS = (peer("a", "0:4"), peer("b", "4:8"))
SPARE, TAKER = peer("c", "4:8"), peer("c", "8:12")


def seconds_until_replaced(others: Callable[[float], tuple[PeerSpec, ...]]) -> float:
    """`others` gives the other peers after some seconds."""

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def look() -> Swarm:
            return swarm(*others(loop.time() - began), ME)

        await until_replaced(ME.id, look, TIMING)
        return loop.time() - began

    return asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_peer_waits_until_another_serves_its_blocks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert seconds_until_replaced(lambda now: (*PARTS, TAKER if now > 0.2 else SPARE)) >= 0.2
    (message,) = [record.message for record in caplog.records]
    assert message.startswith("stopping: nobody else serves blocks 8:12 yet")


def test_a_peer_that_is_not_needed_or_has_no_successor_does_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    seconds_until_replaced(lambda now: (*PARTS, TAKER))
    assert not caplog.records
    seconds_until_replaced(lambda now: PARTS)
    assert [record.message for record in caplog.records] == ["nobody will serve blocks 8:12 when this peer has left"]


def test_the_wait_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    assert seconds_until_replaced(lambda now: (*PARTS, SPARE)) >= TIMING.replaced_seconds
    assert "nobody has taken over blocks 8:12" in caplog.text


def test_a_peer_that_sees_nobody_waits_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def blind() -> Swarm:
        raise PeerUnavailable("nobody answers")

    with caplog.at_level("INFO"):
        asyncio.run(asyncio.wait_for(until_replaced(ME.id, blind, TIMING), 60))
    assert "nobody is waited for" in caplog.text
