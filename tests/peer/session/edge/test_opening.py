"""Openings are checked as a whole before they are admitted, and little of them is held; with the real service."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from blockswarm.peer.session.edge.opening import NameBudget
from blockswarm.proto.errors import AuthenticationError, LocalProtocolError, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.frames import ChunkFrame
from blockswarm.proto.wire.messages.opening import OpenedFrame, QueuedFrame
from blockswarm.proto.wire.messages.session import FailureFrame
from blockswarm.proto.wire.prefixes import DIGEST_BYTES, PAGE_TOKENS
from blockswarm.routing.swarm import PeerId
from support.toy_client import ToyClient, one_token
from support.toy_swarm import World

ALICE, BOB, CAROL = map(PeerId, ("alice", "bob", "carol"))


def run(scenario: Coroutine[Any, Any, None], world: World) -> None:
    world.loop.run(scenario)
    world.loop.run(asyncio.sleep(1))
    world.check_nothing_is_left()


def full_world() -> World:
    """One peer with room for 200 tokens in each block."""
    return World([1200], 0, patience_seconds=0.0, seed=0)


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[SwarmError]]] = {
    "names larger than the room": ({}, {"prefixes": (bytes(2 * DIGEST_BYTES),)}, LocalProtocolError),
    "names of more rows": ({}, {"prefixes": (b"",) * 5}, LocalProtocolError),
    "no record of the successor": ({"successor": Identity.generate().peer_id}, {}, SwarmError),
    "a successor that is nobody": ({"successor": PeerId("nobody")}, {}, AuthenticationError),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_opening_does_not_get_into_the_queue(name: str) -> None:
    """Else it would hold a place for an hour, and be refused when its room is there."""
    changes, fields, wanted = BAD[name]
    world = full_world()

    async def scenario() -> None:
        holder, client = (ToyClient(world, world.peers[0]) for _ in range(2))
        call = await holder.open(holder.grant(kv_tokens=200))
        bad = await client.send_opening(
            replace(client.grant(kv_tokens=PAGE_TOKENS), **changes), wait_seconds=60.0, **fields
        )
        frame = await bad.read()
        assert isinstance(frame, FailureFrame), frame
        assert isinstance(frame.error, wanted)
        assert world.loop.time() < 1
        call.cancel()

    run(scenario(), world)


def test_a_session_that_waits_says_nothing() -> None:
    """A frame of half a megabyte for each that waits would be a gigabyte; and what has gone leaves the queue."""
    world = full_world()

    async def scenario() -> None:
        holder, client = (ToyClient(world, world.peers[0]) for _ in range(2))
        call = await holder.open(holder.grant(kv_tokens=200))
        for early in (ChunkFrame(bytes(100)), one_token(1)):
            waiting = await client.send_opening(client.grant(), wait_seconds=60.0)
            assert isinstance(await waiting.read(), QueuedFrame)
            await waiting.write(early)
            frame = await waiting.read()
            assert isinstance(frame, FailureFrame)
            assert "waits for room" in frame.message
            await asyncio.sleep(0.1)
            assert world.peers[0].table.waiting == 0
        call.cancel()

    run(scenario(), world)


def test_names_are_held_within_a_budget_of_each_client_and_of_all() -> None:
    budget = NameBudget(most=100, most_per_client=60)
    assert budget.take(ALICE, (bytes(30), bytes(20))) == (bytes(30), bytes(20))
    assert budget.take(ALICE, (bytes(16), b"")) == (b"", b""), "one entry for each row, without names"
    assert budget.take(BOB, (bytes(48),)) == (bytes(48),)
    assert budget.nbytes == 98
    assert budget.take(CAROL, (bytes(16),)) == (b"",)
    for client, prefixes in ((ALICE, (b"", b"")), (ALICE, (bytes(30), bytes(20))), (CAROL, (b"",))):
        budget.give_back(client, prefixes)
    assert budget.take(CAROL, (bytes(16),)) == (bytes(16),)
    assert budget.nbytes == 64


def test_a_session_that_is_open_already_leaves_no_names_behind() -> None:
    """Else a client could use up the names of all others by opening one session again and again."""
    world = full_world()

    async def scenario() -> None:
        client = ToyClient(world, world.peers[0])
        grant = client.grant(kv_tokens=PAGE_TOKENS)
        call = await client.open(grant)
        again = await client.send_opening(grant, prefixes=(bytes(DIGEST_BYTES),))
        frame = await again.read()
        assert isinstance(frame, FailureFrame)
        assert "open on this peer already" in frame.message
        call.cancel()

    run(scenario(), world)


def test_a_session_without_its_names_computes_all() -> None:
    """Its client is told that nothing is held, for every row that it named."""
    world = full_world()

    async def scenario() -> None:
        client = ToyClient(world, world.peers[0])
        call = await client.send_opening(client.grant(kv_tokens=128), prefixes=(b"", b""))
        frame = await call.read()
        assert isinstance(frame, OpenedFrame)
        assert frame.held_tokens == (0, 0)
        call.cancel()

    run(scenario(), world)
