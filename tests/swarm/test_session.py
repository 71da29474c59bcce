"""Sessions through peers of this process over real gRPC, against one stage that holds the whole model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.config import SessionEvent
from blockswarm.client.swarm.view import SwarmView
from blockswarm.client.timing import ChainTiming, ClientTiming
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.wire.steps import StepPlan
from blockswarm.routing.swarm import BlockRange
from support.chain_truth import BLOCKS, Truth, check_step, plan, tokens
from support.swarm import LocalPeer, LocalSwarm, local_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm

RANGES = ("0:2", "2:4", "4:6")
NEAR_SECONDS = 0.025
"""Four such round trips are a small part of what a slow step takes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def whole_stage(folder: Path) -> Engine:
    return Engine(load_stage(open_checkpoint(folder), BlockRange(0, BLOCKS)), KvPool(0, prefix_limit_bytes=0))


STORY = [
    plan((0, 0, 300), (1, 0, 7)),
    plan((0, 300, 1), (1, 7, 1)),
    plan((0, 301, 1), (1, 301, 1), (2, 8, 1), source=(0, 0, 1)),
    plan((0, 290, 5), (1, 302, 1)),
    plan((0, 302, 2), source=(1,)),
    plan((0, 304, 1), (1, 0, 4)),
]


def in_swarm(folder: Path, scenario: Callable[[LocalSwarm], Awaitable[None]], *ranges: str, **options: object) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), local_swarm(folder, *(ranges or RANGES), **options) as swarm:
            await scenario(swarm)

    asyncio.run(main())


@pytest.mark.parametrize("push", [True, False], ids=["push", "hub"])
def test_steps_forks_and_rewinds_give_what_one_cache_gives(folder: Path, whole_stage: Engine, push: bool) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        session, truth = await swarm.session(kv_tokens=2000, push=push), Truth(whole_stage)
        for number, step in enumerate(STORY):
            await check_step(session, truth, step, number)
        await session.close()
        counters = [peer.parts.counters for peer in swarm.peers]
        pushed, relayed = sum(c.steps_pushed for c in counters), sum(c.steps_relayed for c in counters)
        assert (pushed > 0, relayed > 0) == (push, not push)

    in_swarm(folder, scenario)


def test_closing_frees_the_reservation_and_the_buffers(folder: Path) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        session = await swarm.session(kv_tokens=1000)
        await session.run(STORY[0], tokens(307, 0))
        assert all(peer.parts.sessions.kv_token_blocks_free == 2 * 3096 for peer in swarm.peers)
        await session.close()
        async with asyncio.timeout(60):
            for peer in swarm.peers:
                await peer.service.wait_idle()
        assert all(peer.parts.sessions.kv_token_blocks_free == 2 * 4096 for peer in swarm.peers)
        assert all(peer.parts.replay.nbytes == 0 for peer in swarm.peers)

    in_swarm(folder, scenario)


@pytest.mark.parametrize("victim", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_dead_peer_is_replaced_and_nothing_changes(folder: Path, whole_stage: Engine, victim: int) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        session, truth = await swarm.session(kv_tokens=2000, events=events), Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number in (2, 4):
                dead = session.chain[victim][0]
                await next(peer for peer in swarm.peers if peer.identity.peer_id == dead).kill()
                if number == 2:
                    await swarm.start_peer(BlockRange.parse(RANGES[victim]))
            await check_step(session, truth, step, number)
        await session.close()
        replays = [event for event in events if event.kind == "replay"]
        assert len(replays) == 2
        assert all((event.peer is None) == (victim == 0) for event in replays)

    in_swarm(folder, scenario, *RANGES, RANGES[victim])


def test_where_the_buffer_was_evicted_the_peer_before_is_rebuilt_too(folder: Path, whole_stage: Engine) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        await swarm.start_peer(BlockRange(0, 2), replay_bytes=1000)
        await swarm.start_peer(BlockRange(2, 4))
        await swarm.start_peer(BlockRange(2, 4))
        await swarm.start_peer(BlockRange(4, 6))
        events: list[SessionEvent] = []
        session, truth = await swarm.session(kv_tokens=2000, events=events), Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number == 3:
                dead = session.chain[1][0]
                await next(peer for peer in swarm.peers if peer.identity.peer_id == dead).kill()
            await check_step(session, truth, step, number)
        await session.close()
        assert [event.peer for event in events if event.kind == "replay"] == [None]

    async def main() -> None:
        swarm = LocalSwarm(open_checkpoint(folder))
        try:
            async with asyncio.timeout(60):
                await scenario(swarm)
        finally:
            await swarm.close()

    asyncio.run(main())


def peer_of(swarm: LocalSwarm, session: ChainSession, index: int) -> LocalPeer:
    """The peer that computes the blocks `RANGES[index]` of the session now."""
    return next(peer for peer in swarm.peers if peer.identity.peer_id == session.chain[index][0])


def rebuilt_tokens(swarm: LocalSwarm) -> int:
    return sum(peer.parts.counters.rebuilt_tokens for peer in swarm.peers)


def kinds(events: list[SessionEvent]) -> list[str]:
    return [event.kind for event in events if event.kind in ("handed-over", "replay", "hop-lost")]


async def until(kind: str, events: list[SessionEvent], session: ChainSession, truth: Truth, again: StepPlan) -> None:
    """Go on with a step that leaves the rows as long as they were, until it happens; at first it has not happened."""
    before = kinds(events).count(kind)
    while kinds(events).count(kind) == before:
        await check_step(session, truth, again, 99)


COPIES = ClientTiming(chain=ChainTiming(last_part_seconds=60.0, doubtful_parts=1_000_000, idle_look_seconds=0.05))
"""A cache is copied however slow the machine is, which would make a replay the better choice for a while."""


@pytest.mark.parametrize("push", [True, False], ids=["push", "hub"])
@pytest.mark.parametrize("index", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_leaving_peer_hands_its_cache_over(folder: Path, whole_stage: Engine, index: int, push: bool) -> None:
    """Nothing is computed again, and the peer is free; when its replacement dies later, that is repaired as ever."""

    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        session = await swarm.session(kv_tokens=2000, push=push, events=events, timing=COPIES)
        truth = Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number == 3:
                old = peer_of(swarm, session, index)
                await swarm.drain(old)
            if number == 5:
                await swarm.start_peer(BlockRange.parse(RANGES[index]))
                await peer_of(swarm, session, index).kill()
            await check_step(session, truth, step, number)
            if number == 3:
                assert kinds(events) == [], "the step did not wait for the cache"
                await until("handed-over", events, session, truth, plan((0, 294, 1), (2, 8, 1)))
                assert kinds(events) == ["handed-over"]
                assert rebuilt_tokens(swarm) == 0
                assert peer_of(swarm, session, index) is not old
                await asyncio.wait_for(old.service.wait_idle(), 60)
                assert old.parts.engine.pool.usage.nbytes == 0, "its memory is free"
        await session.close()
        assert kinds(events) == ["handed-over", "hop-lost", "replay"]
        if push:
            assert sum(peer.parts.counters.steps_relayed for peer in swarm.peers) == 0

    in_swarm(folder, scenario, *RANGES, RANGES[index])


def test_a_session_at_rest_leaves_a_peer_that_leaves(folder: Path, whole_stage: Engine) -> None:
    """A chat between two turns holds nobody up, and its next turn computes nothing again."""

    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        session, truth = await swarm.session(kv_tokens=2000, events=events, timing=COPIES), Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number == 3:
                for index in (0, 2):
                    old = peer_of(swarm, session, index)
                    await swarm.drain(old)
                    await asyncio.wait_for(old.service.wait_idle(), 60)
                    assert old.parts.engine.pool.usage.nbytes == 0, "its memory is free"
            await check_step(session, truth, step, number)
        await session.close()
        assert kinds(events) == ["handed-over"] * 2
        assert rebuilt_tokens(swarm) == 0

    in_swarm(folder, scenario, *RANGES, RANGES[0], RANGES[2])


def test_the_whole_chain_leaves_at_once(folder: Path, whole_stage: Engine) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        session, truth = await swarm.session(kv_tokens=2000, events=events, timing=COPIES), Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number == 2:
                for index in range(3):
                    await swarm.drain(peer_of(swarm, session, index))
            await check_step(session, truth, step, number)
            if number == 2:
                for _ in range(3):
                    await until("handed-over", events, session, truth, plan((2, 8, 1)))
        await session.close()
        assert kinds(events) == ["handed-over"] * 3
        assert rebuilt_tokens(swarm) == 0

    in_swarm(folder, scenario, *RANGES, *RANGES)


def test_what_a_replacement_did_not_send_is_replayed_from_before_it(folder: Path, whole_stage: Engine) -> None:
    """The replay buffer stays behind at the peer that leaves: the one after it is rebuilt through the replacement."""

    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        session, truth = await swarm.session(kv_tokens=2000, events=events, timing=COPIES), Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number == 2:
                await swarm.drain(peer_of(swarm, session, 1))
            if number == 4:
                await peer_of(swarm, session, 2).kill()
            await check_step(session, truth, step, number)
            if number == 2:
                await until("handed-over", events, session, truth, plan((2, 8, 1)))
        first = session.chain[0][0]
        await session.close()
        assert kinds(events) == ["handed-over", "hop-lost", "replay"]
        assert [event.peer for event in events if event.kind == "replay"] == [first]

    in_swarm(folder, scenario, *RANGES, *RANGES[1:])


def test_a_leaving_peer_stays_while_there_is_no_other(folder: Path, whole_stage: Engine) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        session, truth = await swarm.session(kv_tokens=2000, events=events), Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number == 2:
                await swarm.drain(peer_of(swarm, session, 1))
            await check_step(session, truth, step, number)
        await session.close()
        assert kinds(events) == []

    in_swarm(folder, scenario)


def test_a_replacement_that_refuses_changes_nothing(folder: Path, whole_stage: Engine) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        await swarm.start_peer(BlockRange(2, 4), kv_tokens=10)
        events: list[SessionEvent] = []
        session, truth = await swarm.session(kv_tokens=2000, events=events), Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number == 2:
                chain = session.chain
                assert peer_of(swarm, session, 1) is not swarm.peers[-1]
                await swarm.drain(peer_of(swarm, session, 1))
            await check_step(session, truth, step, number)
        assert session.chain == chain
        await session.close()
        assert kinds(events) == []

    in_swarm(folder, scenario)


def test_several_peers_in_place_of_one_are_rebuilt_by_replay(folder: Path, whole_stage: Engine) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        session, truth = await swarm.session(kv_tokens=2000, events=events), Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number == 2:
                await swarm.start_peer(BlockRange(2, 3))
                await swarm.start_peer(BlockRange(3, 4))
                await swarm.drain(peer_of(swarm, session, 1))
            await check_step(session, truth, step, number)
        assert len(session.chain) == 4
        await session.close()
        assert kinds(events) == ["replay", "handed-over"]

    in_swarm(folder, scenario)


@pytest.mark.long
@pytest.mark.parametrize("together", [1, 4])
def test_a_session_leaves_a_hop_that_has_become_slow_by_a_hand_over(
    folder: Path, whole_stage: Engine, together: int
) -> None:
    """It takes more than twice what it announces, step after step; nothing is computed again.

    That others are under way meanwhile, as guesses are, hides no step.
    """

    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        session, truth = await swarm.session(kv_tokens=2000, events=events, timing=COPIES), Truth(whole_stage)
        await near(swarm.views[0])
        await check_step(session, truth, plan((0, 0, 60)), 0)
        slow, steps = peer_of(swarm, session, 1), 0
        slow.parts.engine.extra_seconds = 0.2
        under_way: deque[asyncio.Task[None]] = deque()
        while not kinds(events):
            while len(under_way) < together:
                step = plan((0, 60 + steps, 1))
                under_way.append(asyncio.create_task(check_step(session, truth, step, steps)))
                steps += 1
            await under_way.popleft()
        await asyncio.gather(*under_way)
        assert kinds(events) == ["handed-over"]
        assert peer_of(swarm, session, 1) is not slow
        assert ChainTiming().slow_steps <= steps < 3 * ChainTiming().slow_steps
        assert rebuilt_tokens(swarm) == 0
        await session.close()

    in_swarm(folder, scenario, *RANGES, RANGES[1], make_engine=FailingEngine)


async def near(view: SwarmView) -> None:
    """Look until each peer's best ping is short: where a busy machine delayed one, no other chain seems faster."""
    while max(known.rtt_seconds for known in view.peers.values()) > NEAR_SECONDS:
        await view.refresh()


class FailingEngine(Engine):
    """An engine that becomes slow, or whose exports of caches fail, when a test says so."""

    extra_seconds = 0.0
    """The time that every step takes longer."""
    before_export: Callable[[], Awaitable[object]] | None = None

    async def step(self, *args: Any, **more: Any) -> Any:
        if self.extra_seconds:
            await asyncio.sleep(self.extra_seconds)
        return await super().step(*args, **more)

    async def submit(self, work: Callable[[], Any]) -> Any:
        if self.before_export is not None and getattr(getattr(work, "func", None), "__name__", "") == "export":
            await self.before_export()
        return await super().submit(work)


@pytest.mark.parametrize("failure", ["refused", "died", "slow"])
def test_a_cache_that_cannot_be_had_is_rebuilt_at_the_replacement(
    folder: Path, whole_stage: Engine, failure: str
) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        timing = ClientTiming(chain=ChainTiming(handover_seconds=0.02)) if failure == "slow" else ClientTiming()
        session, truth = await swarm.session(kv_tokens=2000, events=events, timing=timing), Truth(whole_stage)
        for number, step in enumerate(STORY):
            if number == 2:
                old = peer_of(swarm, session, 1)
                await swarm.drain(old)
                break_exports(old, failure)
                await until("replay", events, session, truth, plan((1, 7, 1)))
            await check_step(session, truth, step, number)
        assert peer_of(swarm, session, 1) is not old
        await session.close()
        happened = [kind for kind in kinds(events) if kind != "handed-over"]
        assert happened == [*([] if failure == "slow" else ["hop-lost"]), "replay"]
        assert rebuilt_tokens(swarm) in (301 + 8, 301 + 7), "all rows, perhaps cut for the step already"

    in_swarm(folder, scenario, *RANGES, RANGES[1], make_engine=FailingEngine)


def break_exports(peer: LocalPeer, failure: str) -> None:
    """From now on the engine of `peer` refuses to export a cache, dies when asked for one, or takes its time."""
    deaths = []

    async def fail() -> None:
        if failure == "refused":
            raise RemoteProtocolError("there is no such frame")
        if failure == "died":
            deaths.append(asyncio.create_task(peer.kill()))  # not by the stream that it ends
            await asyncio.Event().wait()
        await asyncio.sleep(0.1)

    peer.parts.engine.before_export = fail
