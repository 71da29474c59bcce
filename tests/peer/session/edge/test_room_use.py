"""Only a step that was computed keeps room; with the real service, in virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from typing import Any

import pytest
from blockswarm.peer.session.edge.room_use import RoomUse
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import SessionLost
from blockswarm.proto.wire.frames import Rebuild, StepFrame
from blockswarm.proto.wire.handshake import Grant
from blockswarm.proto.wire.messages.opening import OpenedFrame, PushReadyFrame, QueuedFrame
from blockswarm.proto.wire.messages.session import FailureFrame, KvExportFrame, ProbeFrame, RerouteFrame
from blockswarm.proto.wire.messages.steps import ReplayFrame
from blockswarm.routing.swarm import BlockRange, PeerId
from support.memory_net import MemoryCall
from support.toy_client import ToyClient, one_token
from support.toy_swarm import World
from support.virtual_time import VirtualTimeLoop

TIMING = PeerTiming()
ROOM = 6 * 100
GRANT = Grant(bytes(16), 1, PeerId("c"), PeerId("p"), BlockRange(0, 1), 8, 1, None, None, "float32", "float32", 0.0, "")


class Scene:
    """A peer with room for 100 tokens in each of its blocks."""

    def __init__(self) -> None:
        self.world = World([ROOM], 0, patience_seconds=0.0, seed=0)
        (self.peer,) = self.world.peers
        self.loop = self.world.loop

    def client(self) -> ToyClient:
        return ToyClient(self.world, self.peer)

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        self.loop.run(scenario)
        self.loop.run(asyncio.sleep(1))
        self.world.check_nothing_is_left()


async def failure_of(call: MemoryCall) -> FailureFrame:
    while not isinstance(frame := await call.read(), FailureFrame):
        assert frame is not None, "the stream ended without a reason"
    return frame


Junk = Callable[[ToyClient, MemoryCall, int], Awaitable[None]]


async def probes(client: ToyClient, call: MemoryCall, number: int) -> None:
    await call.write(ProbeFrame(number))


async def steps_of_another_epoch(client: ToyClient, call: MemoryCall, number: int) -> None:
    await call.write(one_token(1, epoch=99))


async def a_step_of_the_future(client: ToyClient, call: MemoryCall, number: int) -> None:
    if number < 5:
        await call.write(one_token(number + 2))


async def exports(client: ToyClient, call: MemoryCall, number: int) -> None:
    await call.write(KvExportFrame(5.0, number, (), 64))


async def replays_in_another_epoch(client: ToyClient, call: MemoryCall, number: int) -> None:
    await call.write(ReplayFrame(99, (), Rebuild(PeerId("p"), 1, False), 5.0))


@pytest.mark.parametrize(
    "junk", [probes, steps_of_another_epoch, a_step_of_the_future, exports, replays_in_another_epoch]
)
def test_frames_are_no_use_of_room(junk: Junk) -> None:
    scene = Scene()

    async def scenario() -> None:
        client = scene.client()
        call = await client.open(client.grant())
        started = scene.loop.time()

        async def send() -> None:
            for number in range(1000):
                await junk(client, call, number)
                await asyncio.sleep(10)

        sending = asyncio.create_task(send())
        assert "computed nothing" in (await failure_of(call)).message
        assert scene.loop.time() - started == pytest.approx(TIMING.unused_room_seconds, abs=1)
        assert scene.peer.table.sessions == 0
        sending.cancel()

    scene.run(scenario())


def test_reroutes_and_pushes_are_no_use_of_room() -> None:
    """A session that names a predecessor has longer: all peers before it compute its first step first."""
    scene = Scene()

    async def scenario() -> None:
        client = scene.client()
        grant = client.grant(predecessor=client.identity.peer_id)
        call = await client.open(grant)
        started = scene.loop.time()

        async def disturb() -> None:
            for epoch in range(2, 1000):
                push = await client.push(grant)
                assert isinstance(await push.read(), PushReadyFrame)
                await push.write(one_token(1, epoch=epoch - 2))
                await call.write(RerouteFrame(client.capability(dataclasses.replace(grant, epoch=epoch))))
                await asyncio.sleep(20)
                push.cancel()

        disturbing = asyncio.create_task(disturb())
        assert "computed nothing" in (await failure_of(call)).message
        assert scene.loop.time() - started == pytest.approx(TIMING.unfed_room_seconds, abs=1)
        disturbing.cancel()
        await asyncio.gather(disturbing, return_exceptions=True)

    scene.run(scenario())


def test_a_session_that_was_used_may_rest_for_half_an_hour() -> None:
    scene = Scene()

    async def scenario() -> None:
        client = scene.client()
        call = await client.open(client.grant())
        for seq in (1, 2, 3):
            await call.write(one_token(seq))
            assert isinstance(await call.read(), StepFrame)
            await asyncio.sleep(TIMING.idle_seconds - 60)
        assert "computed nothing" in (await failure_of(call)).message
        assert scene.loop.time() == pytest.approx(3 * TIMING.idle_seconds - 120, abs=1)

    scene.run(scenario())


def test_while_others_wait_a_client_beyond_its_share_loses_what_rests() -> None:
    """One that keeps to its share, and one with a single session, however large, keep theirs."""
    scene = Scene()

    async def scenario() -> None:
        greedy, other = scene.client(), scene.client()
        calls = [await greedy.open(greedy.grant(kv_tokens=40)) for _ in range(2)]
        for call in calls:
            await call.write(one_token(1))
            assert isinstance(await call.read(), StepFrame)
        await asyncio.sleep(300)
        assert scene.peer.table.sessions == 2, "nobody waits"
        waiting = await other.send_opening(other.grant(kv_tokens=70), wait_seconds=600.0)
        assert isinstance(await waiting.read(), QueuedFrame)
        for call in calls:
            assert "computed nothing" in (await failure_of(call)).message
        while isinstance(frame := await waiting.read(), QueuedFrame):
            pass
        assert isinstance(frame, OpenedFrame)
        assert scene.loop.time() < 300 + TIMING.unused_room_seconds + 2
        await waiting.write(one_token(1))
        late = await greedy.send_opening(greedy.grant(kv_tokens=70), wait_seconds=600.0)
        await asyncio.sleep(300)
        assert scene.peer.table.waiting == 1
        assert scene.peer.table.sessions == 1, "a single session may rest"
        for call in (waiting, late):
            call.cancel()

    scene.run(scenario())


def test_a_session_is_not_to_blame_for_a_step_that_waits_for_the_engine() -> None:
    """However long a slow peer takes for those that came before."""
    with closing(VirtualTimeLoop()) as loop:
        busy = True

        async def scenario() -> None:
            nonlocal busy
            use = RoomUse(GRANT, TIMING, lambda: busy, lambda: False)
            watching = asyncio.create_task(use.watch())
            await asyncio.sleep(10 * TIMING.unused_room_seconds)
            assert not watching.done()
            busy = False
            use.step_computed(3)
            started = asyncio.get_running_loop().time()
            with pytest.raises(SessionLost, match="1800 s"):
                await watching
            assert asyncio.get_running_loop().time() - started == pytest.approx(TIMING.idle_seconds)

        loop.run(scenario())
