"""Strangers take the turn of a peer's transfers and stand still; a session is handed over there all the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from blockswarm.client.config import SessionEvent
from blockswarm.client.timing import ChainTiming, ClientTiming
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.tasks import cancel_all
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.routing.swarm import BlockRange
from support.chain_truth import BLOCKS, Truth, check_step, plan
from support.stranger import Stranger, frame, read, refusal
from support.swarm import local_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm

STRANGERS = 2
STEP_TOKENS = 64
LARGE_TOKENS = 60 * STEP_TOKENS
"""Their attention cache is larger than anything that lies between a peer and a client which takes nothing."""
COPIES = ClientTiming(chain=ChainTiming(last_part_seconds=25.0, handover_seconds=25.0, doubtful_parts=1_000_000))
"""A client that waits for a copy a while longer than strangers may keep others from the turn, and not for ever."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


async def import_nothing(stranger: Stranger) -> Any:
    """Announce a part of a cache, and send none of it."""
    call = await stranger.opened()
    part = pb.KvState(timeout_seconds=250.0, starts=[0], lengths=[8], total_bytes=9000)
    await call.write(pb.ClientFrame(kv_import=part))
    return call


async def take_nothing(stranger: Stranger) -> Any:
    """Ask for a large part of a cache, and take none of it."""
    call = await stranger.opened(kv_tokens=LARGE_TOKENS)
    for seq, start in enumerate(range(0, LARGE_TOKENS, STEP_TOKENS), 1):
        await call.write(frame(seq, ((0, start, STEP_TOKENS, 1),), acked_seq=seq - 1))
        assert (await read(call)).WhichOneof("kind") == "step"
    wish = pb.KvExport(timeout_seconds=250.0, round=1, starts=[0], max_tokens=LARGE_TOKENS)
    await call.write(pb.ClientFrame(kv_export=wish))
    return call


Attack = Callable[[Stranger], Awaitable[Any]]


async def over_and_over(attack: Attack, stranger: Stranger, begun: asyncio.Event) -> None:
    """As soon as the peer ends what the stranger did it comes again."""
    for _ in itertools.count():
        call = await attack(stranger)
        begun.set()
        if attack is take_nothing:
            await call.wait_for_connection()
            await call.code()  # without a read
        else:
            await refusal(call)


@pytest.mark.parametrize("attack", [import_nothing, take_nothing], ids=["sends nothing", "takes nothing"])
def test_strangers_that_stand_still_do_not_keep_others_from_handing_over(folder: Path, attack: Attack) -> None:
    async def scenario() -> None:
        truth = Truth(Engine(load_stage(open_checkpoint(folder), BlockRange(0, BLOCKS)), KvPool(0, 0)))
        async with asyncio.timeout(150), local_swarm(folder) as swarm:
            for _ in range(2):
                await swarm.start_peer(BlockRange(0, BLOCKS), kv_tokens=3 * LARGE_TOKENS)
            events: list[SessionEvent] = []
            session = await swarm.session(kv_tokens=100, events=events, timing=COPIES)
            await check_step(session, truth, plan((0, 0, 40)), 0)
            old = next(peer for peer in swarm.peers if peer.identity.peer_id == session.chain[0][0])
            new = next(peer for peer in swarm.peers if peer is not old)
            strangers = [Stranger(swarm, new if attack is import_nothing else old) for _ in range(STRANGERS)]
            begun = [asyncio.Event() for _ in strangers]
            attacks = [asyncio.create_task(over_and_over(attack, *each)) for each in zip(strangers, begun, strict=True)]
            for event in begun:
                await event.wait()
            await swarm.drain(old)
            while not {"handed-over", "replay"} & {event.kind for event in events}:
                await check_step(session, truth, plan((0, 39, 1)), 1)
            assert session.chain[0][0] == new.identity.peer_id
            assert "replay" not in [event.kind for event in events]
            await cancel_all(attacks)
            for stranger in strangers:
                await stranger.dialer.close()
            await session.close()

    asyncio.run(scenario())
