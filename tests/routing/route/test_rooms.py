"""The arrays of the search, the simulator's ledger and the one function say the same of when there is room."""

from __future__ import annotations

import numpy as np
from blockswarm.routing.releases import Room
from blockswarm.routing.route.rooms import Releases, SnapshotRooms
from blockswarm.routing.route.wsrr import Ledger
from blockswarm.routing.swarm import BlockRange, ComputeCost, KvRelease, PeerId, PeerSpec
from hypothesis import given
from hypothesis import strategies as st

NOW = 100.0
RELEASES = st.lists(st.tuples(st.integers(-5, 30), st.integers(1, 40)), max_size=4)


@given(need=st.integers(1, 20), peers=st.lists(st.tuples(st.integers(0, 60), RELEASES), min_size=1, max_size=4))
def test_every_way_to_ask_gives_the_same_wait(need: int, peers: list[tuple[int, list[tuple[int, int]]]]) -> None:
    rooms = [
        Room(free, tuple(KvRelease(NOW + at, tokens) for at, tokens in sorted(releases))) for free, releases in peers
    ]
    specs = tuple(
        PeerSpec(PeerId(f"p{j}"), BlockRange(0, 4), ComputeCost(0.01), kv_tokens_free=r.free, releases=r.releases)
        for j, r in enumerate(rooms)
    )
    usable = np.ones(len(rooms), dtype=bool)
    free = np.array([room.free for room in rooms], dtype=np.int64)
    snapshot = SnapshotRooms(need, free, usable, Releases.of(specs), NOW)
    table = snapshot.waits(4)
    for j, room in enumerate(rooms):
        for blocks in range(1, 5):
            wait = room.wait_seconds(blocks * need, NOW)
            assert snapshot.wait_seconds(j, blocks) == table[j, blocks - 1] == wait
            assert snapshot.blocks_within(wait)[j] >= blocks or wait == float("inf")


@given(total=st.integers(1, 60), booked=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), max_size=5))
def test_a_ledger_s_waits_are_those_of_its_bookings(total: int, booked: list[tuple[int, int]]) -> None:
    ledger = Ledger([total])
    for end, blocks in booked:
        ledger.book([(0, BlockRange(0, blocks))], NOW + end)
    room = Room(ledger.free(0), tuple(KvRelease(NOW + end, blocks) for end, blocks in sorted(booked)))
    waits = [room.wait_seconds(blocks, NOW) for blocks in range(1, 6)]
    assert [ledger.wait(0, blocks, NOW) for blocks in range(1, 6)] == waits
    assert ledger.waits(0, 5, NOW)[1:] == waits
