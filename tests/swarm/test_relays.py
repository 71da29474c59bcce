"""Chains through peers that are reached through relays only: the same numbers, whatever happens to the relays."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from blockswarm.client.config import SessionEvent
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.address import PeerAddress, RelayedAddress
from blockswarm.proto.network.transport import RelayHandlers
from blockswarm.routing.swarm import BlockRange
from support.chain_truth import BLOCKS, Truth, check_step, plan
from support.relays import LocalRelay, local_relay
from support.swarm import LocalSwarm, local_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = [pytest.mark.swarm, pytest.mark.long, pytest.mark.timeout(120)]

STORY = [plan((0, 0, 200), (1, 0, 7)), *(plan((0, 200 + n, 1), (1, 7 + n, 1)) for n in range(6))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def whole_stage(folder: Path) -> Engine:
    return Engine(load_stage(open_checkpoint(folder), BlockRange(0, BLOCKS)), KvPool(0, prefix_limit_bytes=0))


def with_relays(
    folder: Path,
    scenario: Callable[[LocalSwarm, list[LocalRelay]], Awaitable[None]],
    *changes: Callable[[RelayHandlers], RelayHandlers],
) -> None:
    """A swarm with a direct peer for blocks 0:2, and relays, one for each change."""

    async def main() -> None:
        async with asyncio.timeout(90), AsyncExitStack() as stack:
            relays = [await stack.enter_async_context(local_relay(change=change)) for change in changes]
            swarm = await stack.enter_async_context(local_swarm(folder, "0:2"))
            for relay in relays:
                await swarm.add_relay(relay)
            await scenario(swarm, relays)

    asyncio.run(main())


def honest(usual: RelayHandlers) -> RelayHandlers:
    return usual


def swallowing(usual: RelayHandlers) -> RelayHandlers:
    """Says that the peer is there, and passes nothing on."""

    async def connect(stream: Any, host: str) -> None:
        while await stream.read() is not None:
            pass

    return dataclasses.replace(usual, connect=connect)


@pytest.mark.parametrize("push", [True, False], ids=["push", "hub"])
def test_a_chain_of_peers_without_open_ports_gives_the_same_numbers(
    folder: Path, whole_stage: Engine, push: bool
) -> None:
    """Two of the three are reached through the relay only; with push they are reached so by each other, too."""

    async def scenario(swarm: LocalSwarm, relays: list[LocalRelay]) -> None:
        for blocks in ("2:4", "4:6"):
            await swarm.start_peer(BlockRange.parse(blocks), relays=relays)
        session, truth = await swarm.session(kv_tokens=2000, push=push), Truth(whole_stage)
        for number, step in enumerate(STORY):
            await check_step(session, truth, step, number)
        known = swarm.views[0].peers
        ways = [type(known[peer.identity.peer_id].address) for peer in swarm.peers]
        assert ways == [PeerAddress, RelayedAddress, RelayedAddress]
        await session.close()
        counters = [peer.parts.counters for peer in swarm.peers]
        pushed, relayed = sum(c.steps_pushed for c in counters), sum(c.steps_relayed for c in counters)
        assert (pushed > 0, relayed > 0) == (push, not push)
        assert relays[0].service.table.relayed_bytes > 200 * 64 * 4

    with_relays(folder, scenario, honest)


def test_when_a_relay_dies_the_session_goes_on_through_the_second_one(folder: Path, whole_stage: Engine) -> None:
    """Nobody else has the blocks, and the peer itself is well."""
    events: list[SessionEvent] = []

    async def scenario(swarm: LocalSwarm, relays: list[LocalRelay]) -> None:
        peer = await swarm.start_peer(BlockRange.parse("2:6"), relays=relays)
        session, truth = await swarm.session(kv_tokens=2000, events=events), Truth(whole_stage)
        for number, step in enumerate(STORY[:3]):
            await check_step(session, truth, step, number)
        used = swarm.views[0].peers[peer.identity.peer_id].address
        assert isinstance(used, RelayedAddress)
        dead = next(relay for relay in relays if relay.address == used.relay)
        await dead.server.stop(grace=0)
        for number, step in enumerate(STORY[3:], 3):
            await check_step(session, truth, step, number)
        now = swarm.views[0].peers[peer.identity.peer_id].address
        assert isinstance(now, RelayedAddress)
        assert now.relay != used.relay
        await session.close()

    with_relays(folder, scenario, honest, honest)


def test_when_the_only_relay_dies_another_peer_takes_over(folder: Path, whole_stage: Engine) -> None:
    async def scenario(swarm: LocalSwarm, relays: list[LocalRelay]) -> None:
        await swarm.start_peer(BlockRange.parse("2:6"), relays=relays)
        session, truth = await swarm.session(kv_tokens=2000), Truth(whole_stage)
        for number, step in enumerate(STORY[:3]):
            await check_step(session, truth, step, number)
        await swarm.start_peer(BlockRange.parse("2:6"))
        await swarm.views[0].refresh()
        await relays[0].server.stop(grace=0)
        for number, step in enumerate(STORY[3:], 3):
            await check_step(session, truth, step, number)
        await session.close()

    with_relays(folder, scenario, honest)


def test_a_relay_that_swallows_is_passed_over_for_the_second_one(folder: Path, whole_stage: Engine) -> None:
    async def scenario(swarm: LocalSwarm, relays: list[LocalRelay]) -> None:
        peer = await swarm.start_peer(BlockRange.parse("2:6"), relays=relays)
        session, truth = await swarm.session(kv_tokens=2000), Truth(whole_stage)
        known = swarm.views[0].peers[peer.identity.peer_id]
        assert known.address == relays[1].reach(peer.identity)
        for number, step in enumerate(STORY):
            await check_step(session, truth, step, number)
        await session.close()

    with_relays(folder, scenario, swallowing, honest)


def test_a_peer_is_not_reached_at_an_address_that_it_gives_for_its_relay(folder: Path) -> None:
    """Only the relay's own record counts; of one that announces nothing nobody knows where it is."""

    async def scenario(swarm: LocalSwarm, relays: list[LocalRelay]) -> None:
        async with local_relay() as unknown:
            peer = await swarm.start_peer(BlockRange.parse("2:6"), relays=[unknown])
            await swarm.client()
            view = swarm.views[0]
            assert peer.identity.peer_id not in view.peers
            assert peer.identity.peer_id in view.silent
            await swarm.add_relay(unknown)
            await view.refresh()
            assert view.peers[peer.identity.peer_id].address == unknown.reach(peer.identity)

    with_relays(folder, scenario)
