"""The agent's shell: what it does with actions, failures and its end; the actions themselves are tested in routing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from blockswarm.peer.placement.agent import PlacementAgent
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import OutOfMemory, PeerUnavailable, RetryElsewhere
from blockswarm.routing.place.moves import ClaimTiming, ReplanPolicy
from blockswarm.routing.swarm import BlockRange, PeerId, PeerSpec, PeerState, Swarm
from support.placement import peer, swarm

ME = PeerId("c")
HOLE = BlockRange(8, 12)
CLAIMS = ClaimTiming(refresh_seconds=0.05, clock_tolerance_seconds=0.0)
TIMING = PeerTiming(join_turn_seconds=0.01, failed_move_seconds=0.3, claims=CLAIMS, outcome_seconds=0.1)


class World:
    """A swarm in which nobody hosts 8:12 and c, whose agent is tested, is not needed where it is."""

    def __init__(self, blocks: str | None = "4:8") -> None:
        self.blocks = BlockRange.parse(blocks) if blocks else None
        self.loads: list[BlockRange] = []
        self.cancelled: list[BlockRange] = []
        self.fails: Exception | None = None
        self.left_by_failure: BlockRange | None = None
        """The blocks left after a load that fails, if it has dropped others to make room."""
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.is_blind = False
        self.while_looking: Callable[[], Awaitable[None]] | None = None
        self.announced: list[PeerSpec] = []
        self.others: Callable[[], list[PeerSpec]] = lambda: [peer("a", "0:4"), peer("b", "4:8")]
        self.agent = PlacementAgent(
            ME, self, self.look, self.announce, TIMING, time.time, random.Random(1), ReplanPolicy(timing=CLAIMS)
        )

    def own(self) -> PeerSpec:
        blocks = str(self.blocks) if self.blocks else None
        spec = peer(ME, blocks, claim=self.agent.claim, blocks_fixed=self.agent.rests)
        return replace(spec, issued_seconds=time.time())

    async def look(self) -> Swarm:
        if self.is_blind:
            raise PeerUnavailable("nobody answers")
        if self.while_looking is not None:
            await self.while_looking()
        now = time.time()
        return swarm(*(replace(p, issued_seconds=now) for p in self.others()), self.own(), now=now)

    async def announce(self) -> None:
        self.announced.append(self.own())

    async def load(self, blocks: BlockRange) -> BlockRange:
        self.loads.append(blocks)
        try:
            await self.may_load.wait()
        except asyncio.CancelledError:
            self.cancelled.append(blocks)
            raise
        if self.fails is not None:
            self.blocks = self.left_by_failure or self.blocks
            raise self.fails
        return blocks

    async def adopt(self, loaded: BlockRange) -> None:
        self.blocks = loaded

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.005)


async def running(world: World, meanwhile: Callable[[], object]) -> None:
    """The agent runs until the condition holds."""
    task = asyncio.create_task(world.agent.run())
    try:
        await world.until(lambda: task.done() or meanwhile())
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_a_move_is_announced_loaded_and_made(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World()
        await running(world, lambda: world.blocks == HOLE and len(world.announced) == 3)
        assert world.loads == [HOLE]
        claimed, loading, moved = world.announced
        assert loading.claim == claimed.claim, "clients hear that the claim stands"
        assert claimed.claim is not None
        assert (claimed.claim.blocks, claimed.blocks) == (HOLE, BlockRange(4, 8))
        assert (moved.claim, moved.blocks) == (None, HOLE)
        assert (world.agent.counts.moves, world.agent.counts.withdrawn) == (1, 0)
        await running(world, lambda: "was predicted" in caplog.text)

    with caplog.at_level("INFO"):
        asyncio.run(scenario())
    assert "claim blocks 8:12 in place of 4:8: blocks without a server 4 -> 0" in caplog.text


def test_a_peer_that_joins_loads_at_once() -> None:
    async def scenario() -> None:
        world = World(None)
        await asyncio.wait_for(world.agent.join(), 60)
        assert world.blocks == HOLE
        assert (world.loads, world.agent.claim) == ([HOLE], None)
        assert [spec.claim and spec.claim.blocks for spec in world.announced] == [HOLE], (
            "nobody may hear that it claims nothing before it is announced as serving"
        )

    asyncio.run(scenario())


def test_a_joining_peer_gives_up_its_load_for_a_hole_and_goes_elsewhere() -> None:
    async def scenario() -> None:
        world = World(None)
        world.may_load.clear()
        world.others = lambda: [peer("a", "0:4")]
        joining = asyncio.create_task(world.agent.join())
        await world.until(lambda: world.loads)
        first, claim = world.loads[0], world.agent.claim
        assert claim is not None
        rival = peer("b", claim=replace(claim, at_seconds=claim.at_seconds - 1), state=PeerState.JOINING)
        world.others = lambda: [peer("a", "0:4"), rival]
        await world.until(lambda: len(world.loads) == 2)
        assert world.cancelled == [first]
        world.may_load.set()
        await asyncio.wait_for(joining, 60)
        assert world.blocks is not None
        assert not set(world.blocks) & set(first), "both holes are filled"

    asyncio.run(scenario())


@pytest.mark.long
@pytest.mark.parametrize("error", [RetryElsewhere("the hub does not answer"), OutOfMemory("it does not fit")])
def test_a_failed_load_is_withdrawn_and_tried_again_after_a_pause(error: Exception) -> None:
    async def scenario() -> None:
        world = World()
        world.fails = error
        await running(world, lambda: world.agent.counts.failed_loads == 2)
        assert world.blocks == BlockRange(4, 8)
        first, loading, failed = world.announced[:3]
        assert first.claim is not None
        assert loading.claim == first.claim
        assert (failed.claim, failed.blocks_fixed) == (None, True)
        world.fails = None
        await running(world, lambda: world.blocks == HOLE)

    asyncio.run(scenario())


def test_a_load_that_fails_after_blocks_were_dropped_leaves_a_record_of_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        world = World()
        world.fails, world.left_by_failure = RetryElsewhere("the hub does not answer"), BlockRange(5, 8)
        await running(world, lambda: world.agent.counts.failed_loads and len(world.announced) == 3)
        assert (world.announced[-1].claim, world.announced[-1].blocks) == (None, BlockRange(5, 8))

    asyncio.run(scenario())
    assert "the move to blocks 8:12 has failed (the hub does not answer); this peer serves blocks 5:8" in caplog.text


def test_a_load_that_fails_while_the_agent_looks_is_a_failed_load() -> None:
    async def scenario() -> None:
        world = World()
        world.may_load.clear()
        world.fails = RetryElsewhere("the hub does not answer")

        async def fail_the_load() -> None:
            if world.loads:
                world.may_load.set()
                await asyncio.sleep(0.01)

        world.while_looking = fail_the_load
        await running(world, lambda: world.agent.counts.failed_loads)
        assert (world.blocks, world.agent.claim) == (BlockRange(4, 8), None)

    asyncio.run(scenario())


def test_a_failed_load_of_a_peer_that_joins_is_raised() -> None:
    async def scenario() -> None:
        world = World(None)
        world.fails = RetryElsewhere("the hub does not answer")
        with pytest.raises(RetryElsewhere):
            await asyncio.wait_for(world.agent.join(), 60)

    asyncio.run(scenario())


def test_a_defect_is_no_failed_load() -> None:
    async def scenario() -> None:
        world = World()
        world.fails = ZeroDivisionError("a defect")
        with pytest.raises(ZeroDivisionError):
            await running(world, lambda: False)

    asyncio.run(scenario())


def test_a_peer_that_leaves_gives_up_its_claim_and_its_load() -> None:
    async def scenario() -> None:
        world = World()
        world.may_load.clear()

        async def leave() -> None:
            await world.until(lambda: world.loads)
            await world.agent.stop()

        leaving = asyncio.create_task(leave())
        await running(world, leaving.done)
        assert (world.agent.claim, world.cancelled) == (None, [HOLE])
        await asyncio.wait_for(leaving, 60)
        loads = len(world.loads)
        task = asyncio.create_task(world.agent.run())
        await asyncio.sleep(4 * TIMING.record_refresh_seconds)
        assert (len(world.loads), world.agent.claim, task.done()) == (loads, None, False)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(scenario())


def test_a_swarm_that_cannot_be_seen_moves_nobody() -> None:
    async def scenario() -> None:
        world = World()
        world.is_blind = True
        task = asyncio.create_task(world.agent.run())
        await asyncio.sleep(4 * TIMING.record_refresh_seconds)
        assert (task.done(), world.announced) == (False, [])
        world.is_blind = False
        await world.until(lambda: world.blocks == HOLE)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(scenario())
