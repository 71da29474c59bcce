"""Real peers place themselves: they join at different blocks, rest, and fill the hole of one that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.routing.swarm import BlockRange, PeerSpec, PeerState
from support.placed_peers import REFRESH_SECONDS, PlacedPeer, PlacedSwarm, placed_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six blocks."""
    torch.set_num_threads(1)
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


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
    """Three whose blocks their operators chose and one that was placed: that one, and one that is alone on blocks."""
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
        await swarm.until(lambda specs: str(specs[placed.id].blocks) == before[victim.id])
        specs = await swarm.specs()
        assert (specs[placed.id].state, specs[placed.id].claim) == (PeerState.SERVING, None)
        for peer in swarm.peers:
            if peer not in (placed, victim):
                assert specs[peer.id].blocks_fixed
                assert str(specs[peer.id].blocks) == before[peer.id], "what the operator chose is never moved"

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


def serving(specs: dict[str, PeerSpec]) -> int:
    return sum(spec.state is PeerState.SERVING for spec in specs.values())
