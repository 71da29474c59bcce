"""The agent plans with all peers, or with its group of thousands, and says which."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest
from blockswarm.peer.placement.group import GroupLook
from blockswarm.proto.directory.shards import Shards, keys_of, prefix_of
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.wire.messages.limits import MAX_RECORDS_PER_KEY
from blockswarm.routing.swarm import PeerId

BASE = b"b" * 20
ME = PeerId("me")


def records(count: int) -> list[SignedRecord]:
    return [SignedRecord(BASE, PeerId(f"peer {i}"), b"", 1e9, b"") for i in range(count)]


class World:
    def __init__(self) -> None:
        self.shards = Shards(BASE, ME, random.Random(1), longest_rest_seconds=30.0)
        self.found = records(5)
        self.now = 100.0
        self.look = GroupLook(self.lookup, lambda: self.shards, lambda: self.now)

    async def lookup(self) -> list[SignedRecord]:
        for _ in range(3):
            look = self.shards.next_look()
            under = {
                key: [r for r in self.found if key in (BASE, *keys_of(BASE, r.peer_id)[self.shards.bits or 7 :][:1])]
                for key in look.keys
            }
            self.shards.took(look, under, self.now)
        return self.found


def test_a_small_swarm_is_planned_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    with caplog.at_level(logging.INFO):
        assert asyncio.run(world.look.records()) == world.found
    assert not world.look.is_part
    assert (world.look.planned_with, world.look.peers) == (5, 5)
    assert not caplog.records


def test_of_thousands_the_own_group_is_planned_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.found = records(MAX_RECORDS_PER_KEY)
    with caplog.at_level(logging.INFO):
        group = [record.peer_id for record in asyncio.run(world.look.records())]
    bits = world.shards.bits - 5
    assert group == [r.peer_id for r in world.found if prefix_of(BASE, r.peer_id, bits) == prefix_of(BASE, ME, bits)]
    assert 0 < len(group) < MAX_RECORDS_PER_KEY
    assert world.look.is_part
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"there are about 900 peers: this one plans with the {len(group)} of its group"]
    world.found = records(20)
    with caplog.at_level(logging.INFO):
        assert len(asyncio.run(world.look.records())) == 20
    assert caplog.records[-1].getMessage() == "there are 20 peers: this one plans with all of them"


def test_the_age_of_what_was_read_is_known() -> None:
    world = World()
    asyncio.run(world.look.records())
    world.now += 30.0
    assert world.look.age_seconds == 30.0
