"""Full peers, over real gRPC: a client goes elsewhere, or waits in the queue and starts when there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.config import SessionEvent
from blockswarm.client.timing import PATIENCE_SECONDS
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.errors import PeerBusy
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange
from support.directories import until
from support.swarm import LocalPeer, LocalSwarm, local_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm

HIDDEN = 64
ROOM = 256
"""KV tokens of every peer of these tests, and of a session that fills it."""
ONE = StepPlan((RowSlice(0, 0, 1, 1),))
TWO = StepPlan((RowSlice(0, 1, 1, 1),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def answers(folder: Path) -> tuple[bytes, bytes]:
    """The answers of the whole model to the first two tokens."""
    engine = Engine(load_stage(open_checkpoint(folder), BlockRange(0, 6)), KvPool(0, prefix_limit_bytes=0))
    kv = engine.open(BlockRange(0, 6), engine.wire_format("float32"), ROOM, 1)
    try:
        return kv.step(ONE, tokens(1)).data, kv.step(TWO, tokens(1)).data
    finally:
        engine.close()


@pytest.fixture(scope="module")
def expected(answers: tuple[bytes, bytes]) -> bytes:
    return answers[0]


def tokens(count: int) -> bytes:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1)).numpy().tobytes()


def in_swarm(folder: Path, scenario: Callable[[LocalSwarm], Awaitable[None]], *ranges: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), local_swarm(folder) as swarm:
            for text in ranges:
                blocks = BlockRange.parse(text)
                await swarm.start_peer(blocks, kv_tokens=ROOM * (1 if blocks.start == 2 else 8))
            await scenario(swarm)

    asyncio.run(main())


async def first_step(session: ChainSession, expected: bytes) -> None:
    check_close(await session.run(ONE, tokens(1)), expected)


def check_close(answer: bytes, expected: bytes) -> None:
    got, wanted = (torch.frombuffer(bytearray(data), dtype=torch.float32) for data in (answer, expected))
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


async def client(swarm: LocalSwarm, events: list[SessionEvent], **options: object) -> ChainSession:
    """A session that fills the middle peer; every one is another client."""
    return ChainSession(replace(await swarm.client(events=events), **options), ROOM, 1)  # type: ignore[arg-type]


def middle(swarm: LocalSwarm) -> list[LocalPeer]:
    return [peer for peer in swarm.peers if peer.blocks.start == 2]


def waiting(swarm: LocalSwarm) -> int:
    return sum(peer.parts.sessions.waiting for peer in swarm.peers)


def kinds(events: list[SessionEvent]) -> list[str]:
    return [event.kind for event in events]


async def check_all_free(swarm: LocalSwarm) -> None:
    async with asyncio.timeout(60):
        for peer in swarm.peers:
            await peer.service.wait_idle()
    for peer in swarm.peers:
        table = peer.parts.sessions
        assert (table.kv_token_blocks_free, table.waiting) == (table.kv_token_blocks_total, 0)


def test_a_full_peer_is_refused_and_another_chain_is_taken(folder: Path, expected: bytes) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        first, second = await client(swarm, []), await client(swarm, events)
        await first_step(first, expected)
        await first_step(second, expected)
        assert first.chain[1] != second.chain[1]
        assert kinds(events)[-1] in ("opened", "rerouted")
        assert "queued" not in kinds(events)
        await first.close()
        await second.close()
        await check_all_free(swarm)

    in_swarm(folder, scenario, "0:2", "2:4", "2:4", "4:6")


def test_where_all_are_full_a_session_is_queued_and_starts_when_another_ends(folder: Path, expected: bytes) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        holders = [await client(swarm, []) for _ in range(2)]
        for holder in holders:
            await first_step(holder, expected)
        late = await client(swarm, events)
        running = asyncio.create_task(first_step(late, expected))
        await until(lambda: "queued" in kinds(events))
        told = next(event for event in events if event.kind == "queued")
        assert told.detail.startswith("place 1, about ")
        assert told.peer in [peer.identity.peer_id for peer in middle(swarm)]
        queue = next(peer for peer in middle(swarm) if peer.parts.sessions.waiting)
        assert queue.identity.peer_id == told.peer
        assert [each.prompt_tokens for each in queue.asked] == [ONE.tokens] * len(queue.asked) != [], "for estimates"
        await next(session for session in holders if session.chain[1][0] == told.peer).close()
        await asyncio.wait_for(running, 60)
        assert late.chain[1][0] == told.peer
        assert sum(peer.parts.counters.steps_pushed for peer in swarm.peers) == 6, "its peers push, as everybody's"
        for session in (*holders, late):
            await session.close()
        await check_all_free(swarm)

    in_swarm(folder, scenario, "0:2", "2:4", "2:4", "4:6")


@pytest.mark.parametrize("how", ["cancelled", "closed", "connection lost"])
def test_who_goes_away_leaves_the_queue_at_once(folder: Path, expected: bytes, how: str) -> None:
    """And not only when its patience is over."""

    async def scenario(swarm: LocalSwarm) -> None:
        holder, events = await client(swarm, []), []
        await first_step(holder, expected)
        late = await client(swarm, events)
        running = asyncio.create_task(late.run(ONE, tokens(1)))
        await until(lambda: "queued" in kinds(events))
        assert waiting(swarm) == 1
        if how == "connection lost":
            await swarm.dialers[-1].close()
        elif how == "closed":
            await late.close()
        else:
            running.cancel()
        async with asyncio.timeout(PATIENCE_SECONDS - 10):
            await until(lambda: waiting(swarm) == 0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await late.close()
        await holder.close()
        await check_all_free(swarm)

    in_swarm(folder, scenario, "0:2", "2:4", "4:6")


def test_patience_ends_with_a_time_to_come_back(folder: Path, expected: bytes) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        holder = await client(swarm, [])
        await first_step(holder, expected)
        late = await client(swarm, [], patience_seconds=0.5)
        with pytest.raises(PeerBusy) as caught:
            await asyncio.wait_for(late.run(ONE, tokens(1)), 60)
        assert caught.value.retry_after_seconds >= 1
        await late.close()
        await holder.close()
        await check_all_free(swarm)

    in_swarm(folder, scenario, "0:2", "2:4", "4:6")


def test_a_peer_that_leaves_sends_its_queue_to_another(folder: Path, expected: bytes) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        holder, events = await client(swarm, []), []
        await first_step(holder, expected)
        late = await client(swarm, events)
        running = asyncio.create_task(first_step(late, expected))
        await until(lambda: "queued" in kinds(events))
        (full,) = middle(swarm)
        fresh = await swarm.start_peer(BlockRange(2, 4), kv_tokens=ROOM)
        await swarm.drain(full)
        assert full.parts.sessions.waiting == 0
        await asyncio.wait_for(running, 60)
        assert late.chain[1][0] == fresh.identity.peer_id
        await late.close()
        await holder.close()
        await check_all_free(swarm)

    in_swarm(folder, scenario, "0:2", "2:4", "4:6")


def test_a_peer_s_replacement_is_queued_for(folder: Path, answers: tuple[bytes, bytes]) -> None:
    """Both hosts of the middle are full; one dies: its session waits for the other one, and goes on there."""

    async def scenario(swarm: LocalSwarm) -> None:
        events: list[SessionEvent] = []
        holder, other = await client(swarm, []), await client(swarm, events)
        await first_step(holder, answers[0])
        await first_step(other, answers[0])
        victim = next(peer for peer in middle(swarm) if peer.identity.peer_id == other.chain[1][0])
        await victim.kill()
        more = asyncio.create_task(other.run(TWO, tokens(1)))
        await until(lambda: "queued" in kinds(events))
        await holder.close()
        check_close(await asyncio.wait_for(more, 60), answers[1])
        assert "replay" in kinds(events)
        await other.close()
        swarm.peers.remove(victim)
        await check_all_free(swarm)
        victim.parts.engine.close()

    in_swarm(folder, scenario, "0:2", "2:4", "2:4", "4:6")
