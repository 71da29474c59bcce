"""Real peers place themselves: they join at different blocks, rest, and fill the hole of one that is gone."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.config import SessionEvent
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.routing.swarm import BlockRange, PeerId, PeerSpec, PeerState
from support.chain_truth import Truth, check_step, plan
from support.placed_peers import REFRESH_SECONDS, PlacedPeer, PlacedSwarm, placed_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six blocks."""
    torch.set_num_threads(1)
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def whole_stage(checkpoint: Path) -> Engine:
    return Engine(load_stage(open_checkpoint(checkpoint), BlockRange(0, 6)), KvPool(0, prefix_limit_bytes=0))


def run(folder: Path, checkpoint: Path, scenario: Callable[[PlacedSwarm], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120), placed_swarm(folder, checkpoint) as swarm:
            await scenario(swarm)

    asyncio.run(bounded())


def test_peers_that_start_together_take_different_blocks_and_rest(tmp_path: Path, checkpoint: Path) -> None:
    async def scenario(swarm: PlacedSwarm) -> None:
        for blocks in ("2", "2", "2"):
            swarm.start(blocks)
        await swarm.until_covered()
        placement = await swarm.placement()
        assert sorted(placement.values()) == ["0:2", "2:4", "4:6"]
        for _ in range(12):
            await asyncio.sleep(REFRESH_SECONDS)
            specs = await swarm.specs()
            assert await swarm.placement() == placement
            assert all(spec.claim is None for spec in specs.values())
        assert all(spec.coordinate is not None for spec in specs.values())
        assert all(spec.load_seconds > 0 for spec in specs.values())

    run(tmp_path, checkpoint, scenario)


async def four_peers(swarm: PlacedSwarm) -> tuple[PlacedPeer, PlacedPeer]:
    """Three whose blocks their operators chose and one that was placed: that one, and one that is alone."""
    fixed = [swarm.start(blocks) for blocks in ("0:2", "2:4", "4:6")]
    await swarm.until_covered()
    placed = swarm.start("2")
    await asyncio.gather(*(peer.ready for peer in swarm.peers))
    await swarm.until(lambda specs: serving(specs) == 4)
    replica = (await swarm.placement())[placed.id]
    return placed, next(peer for peer in fixed if peer.ready.result().blocks != BlockRange.parse(replica))


def test_the_hole_of_a_peer_that_is_gone_is_filled_by_one_that_is_not_needed(tmp_path: Path, checkpoint: Path) -> None:
    async def scenario(swarm: PlacedSwarm) -> None:
        placed, victim = await four_peers(swarm)
        before = await swarm.placement()
        await victim.kill()
        settled = (before[victim.id], PeerState.SERVING, None)
        await swarm.until(
            lambda specs: (str(specs[placed.id].blocks), specs[placed.id].state, specs[placed.id].claim) == settled
        )
        specs = await swarm.specs()
        for peer in swarm.peers:
            if peer not in (placed, victim):
                assert specs[peer.id].blocks_fixed
                assert str(specs[peer.id].blocks) == before[peer.id], "what the operator chose is never moved"

    run(tmp_path, checkpoint, scenario)


def test_the_last_server_of_a_block_stays_until_another_has_it(
    tmp_path: Path, checkpoint: Path, whole_stage: Engine
) -> None:
    """Stopped, it serves new sessions until the placed peer has moved; then it goes."""

    async def scenario(swarm: PlacedSwarm) -> None:
        placed, leaver = await four_peers(swarm)
        before = await swarm.placement()
        truth = Truth(whole_stage)
        client = await swarm.client()
        enough = threading.Event()
        placed.before_load = lambda: enough.wait(60)  # the move takes as long as four sessions, on any machine
        leaver.stop()
        served, sessions, fewest = before[leaver.id], 0, 9
        while leaver.task is not None and not leaver.task.done():
            specs = await swarm.specs()
            states = (PeerState.SERVING, PeerState.DRAINING)
            hosts = [s.blocks for s in specs.values() if s.state in states and s.blocks is not None]
            fewest = min(fewest, *(sum(block in blocks for blocks in hosts) for block in range(6)))
            if str(specs[placed.id].blocks) != served:
                session = ChainSession(client, kv_tokens=100, max_rows=1)
                await check_step(session, truth, plan((0, 0, 3)), 0)
                await session.close()
                sessions += 1
            if sessions > 3:
                enough.set()
            await asyncio.sleep(0.02)
        assert leaver.task is not None
        leaver.task.result()
        assert sessions > 3, "new sessions found a server meanwhile"
        assert fewest >= 1
        assert (await swarm.placement())[placed.id] == served
        session = ChainSession(client, kv_tokens=100, max_rows=1)
        await check_step(session, truth, plan((0, 0, 3)), 0)
        await session.close()

    run(tmp_path, checkpoint, scenario)


def test_a_load_that_fails_leaves_the_peer_as_it_was_and_says_so(tmp_path: Path, checkpoint: Path) -> None:
    """It is announced as one that stays, until its pause is over; then it tries again."""

    async def scenario(swarm: PlacedSwarm) -> None:
        placed, victim = await four_peers(swarm)
        before, failures = await swarm.placement(), []

        def fails() -> None:
            failures.append(1)
            raise OSError("the disk is broken")

        placed.before_load = fails
        await victim.kill()
        seen: list[PeerSpec] = []

        def announced(specs: dict[str, PeerSpec]) -> bool:
            seen.append(specs[placed.id])
            return seen[-1].blocks_fixed

        await swarm.until(announced)
        assert failures
        assert (str(seen[-1].blocks), seen[-1].claim, seen[-1].state) == (before[placed.id], None, PeerState.SERVING)
        placed.before_load = lambda: None
        await swarm.until(lambda specs: str(specs[placed.id].blocks) == before[victim.id])

    run(tmp_path, checkpoint, scenario)


def test_sessions_follow_a_peer_that_moves_and_notice_nothing(
    tmp_path: Path, checkpoint: Path, whole_stage: Engine
) -> None:
    """A peer leaves in good order, the placed one takes its place; both are left by the session while they still serve,
    and the blocks that were dropped are freed."""

    async def scenario(swarm: PlacedSwarm) -> None:
        placed, leaver = await four_peers(swarm)
        before = await swarm.placement()
        events: list[SessionEvent] = []
        client = await swarm.client(events.append)
        session = ChainSession(client, kv_tokens=1500, max_rows=1)
        twin = next(peer for peer, blocks in before.items() if blocks == before[placed.id] and peer != placed.id)
        client.router.ban(PeerId(twin), PeerUnavailable("so that the placed one is used"))
        truth, position = Truth(whole_stage), 0

        async def step(count: int = 1) -> None:
            nonlocal position
            await check_step(session, truth, plan((0, position, count)), position)
            position += count

        await step(40)
        assert placed.id in [peer for peer, _ in session.chain]
        dropped = placed.modules()
        leaver.stop()
        fewest = min(await swarm.servers())
        while (await swarm.placement()).get(placed.id) != before[leaver.id] or leaver.id in dict(session.chain):
            await step()
            fewest = min(fewest, min(await swarm.servers()))
            await asyncio.sleep(0.02)
        for _ in range(20):
            await step()
            await asyncio.sleep(0.02)
        kinds = [event.kind for event in events]
        assert kinds.count("handed-over") == 2
        assert not {"replay", "hop-lost", "stalled"} & set(kinds)
        hops = dict(session.chain)
        assert leaver.id not in hops
        assert str(hops[placed.id]) == before[leaver.id]
        await swarm.until(lambda specs: specs[placed.id].kv_tokens_free > 0)
        gc.collect()
        assert not [module for module in dropped if module() is not None], "their memory is free"
        await session.close()

    run(tmp_path, checkpoint, scenario)


def serving(specs: dict[str, PeerSpec]) -> int:
    return sum(spec.state is PeerState.SERVING for spec in specs.values())
