"""The rules for windows against their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blockswarm.routing.place.windows import (
    added_blocks,
    hosts_per_block,
    is_safe_to_leave,
    lasting_servers,
    least_served_window,
    leaves,
    most_uncovered_window,
    range_rows,
    safe_starts,
    without_leaving_blocks,
)
from blockswarm.routing.swarm import BlockRange, MoveClaim, PeerState
from hypothesis import given
from hypothesis import strategies as st
from support.placement import peer

SERVICE = st.lists(st.integers(0, 4) | st.sampled_from([0.1, 0.2, 0.1 + 0.2, 0.3]), min_size=1, max_size=12)


@given(SERVICE, st.data())
def test_the_least_served_window_has_the_smallest_ascending_vector(service: list[float], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(service)))
    starts = range(len(service) - size + 1)
    assert least_served_window(service, size) == min(starts, key=lambda a: (sorted(service[a : a + size]), a))


@pytest.mark.long
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
def test_the_most_uncovered_window_is_the_first_of_the_best(uncovered: list[bool], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(uncovered)))
    starts = range(len(uncovered) - size + 1)
    assert most_uncovered_window(np.array(uncovered), size) == max(
        starts, key=lambda a: (sum(uncovered[a : a + size]), -a)
    )


RANGES = st.tuples(st.integers(0, 9), st.integers(1, 6)).map(lambda pair: BlockRange(pair[0], pair[0] + pair[1]))


@pytest.mark.long
@given(st.lists(RANGES | st.none(), max_size=6), st.integers(1, 12))
def test_hosts_are_counted_block_by_block(ranges: list[BlockRange | None], num_blocks: int) -> None:
    """Also where a record names blocks that the model does not have."""
    counted = [sum(block in (blocks or ()) for blocks in ranges) for block in range(num_blocks)]
    assert hosts_per_block(range_rows(ranges), num_blocks).tolist() == counted


@given(st.lists(st.integers(0, 2), min_size=10, max_size=10), st.integers(0, 9), st.integers(1, 10), st.integers(1, 10))
def test_leaving_is_safe_where_every_dropped_block_has_another_server(
    others: list[int], start: int, length: int, size: int
) -> None:
    before = BlockRange(start, min(start + length, 10))
    safe = safe_starts(np.array(others), before, size).tolist()
    for first in range(10 - size + 1):
        after = BlockRange(first, first + size)
        assert safe[first] == all(others[block] > 0 for block in set(before) - set(after))
        assert safe[first] == is_safe_to_leave(np.array(others), before, after)
    assert is_safe_to_leave(np.array(others), None, before), "a peer without blocks drops none"


@given(RANGES, RANGES)
def test_added_blocks_are_those_that_were_not_there(before: BlockRange, after: BlockRange) -> None:
    added = added_blocks(range_rows([before]), range_rows([after]))
    assert added.tolist() == [len(set(after) - set(before))]


def test_a_lasting_server_serves_and_claims_nothing_that_drops_the_block() -> None:
    peers = [
        peer("a", "0:3"),
        peer("b", "0:3", state=PeerState.JOINING),
        peer("c", "0:3", state=PeerState.DRAINING),
        peer("d", "0:3", claim=MoveClaim(0.0, BlockRange(2, 5))),
        peer("e", "0:2", claim=MoveClaim(0.0, BlockRange(3, 5))),
        peer("f"),
    ]
    assert lasting_servers(peers, 5).tolist() == [1, 1, 2, 0, 0]


def test_a_peer_leaves_blocks_that_it_drains_has_dropped_or_will_drop() -> None:
    blocks = BlockRange(1, 3)
    to = MoveClaim(100.0, BlockRange(2, 5))
    assert not leaves(peer("a", "0:3"), blocks)
    assert leaves(peer("a", "0:3", state=PeerState.DRAINING), blocks)
    assert leaves(peer("a", "0:2"), blocks), "it has moved"
    assert not leaves(peer("a", "0:3", claim=to, issued_seconds=119.0), blocks), "most claims are given up by then"
    assert leaves(peer("a", "0:3", claim=to, issued_seconds=120.0), blocks)
    assert not leaves(peer("a", "0:3", claim=to, issued_seconds=120.0), BlockRange(2, 3)), "this one it keeps"


def test_new_sessions_avoid_blocks_that_go_where_others_serve_them() -> None:
    to = {"claim": MoveClaim(100.0, BlockRange(2, 5)), "issued_seconds": 130.0}
    hashes = (b"a" * 8, b"b" * 8, b"c" * 8)
    going, spare, away = peer("a", "0:3", block_hashes=hashes, **to), peer("b", "0:2"), peer("c", "0:2", **to)
    kept = without_leaving_blocks([going, spare], 6)
    assert [(p.id, str(p.blocks), p.block_hashes) for p in kept] == [("a", "2:3", hashes[2:]), ("b", "0:2", ())]
    assert without_leaving_blocks([going], 6) == (going,), "the last server is used until it is gone"
    assert without_leaving_blocks([going, away], 6) == (going, away)
    assert [p.id for p in without_leaving_blocks([spare, away], 6)] == ["b"]


def test_new_sessions_use_a_draining_peer_only_for_blocks_that_nobody_else_serves() -> None:
    hashes = tuple(bytes([block]) * 8 for block in range(6))
    draining = peer("a", "0:6", state=PeerState.DRAINING, block_hashes=hashes, kv_tokens_total=9)
    ends = [peer("b", "0:2"), peer("c", "4:6")]
    first, *_ = without_leaving_blocks([draining, *ends], 6)
    assert (first.id, str(first.blocks), first.block_hashes) == ("a", "2:4", hashes[2:4])
    assert without_leaving_blocks([draining], 6) == (draining,)
    assert [p.id for p in without_leaving_blocks([draining, *ends, peer("d", "1:5")], 6)] == ["b", "c", "d"]
    other = peer("e", "2:4", state=PeerState.DRAINING, kv_tokens_total=9)
    assert [p.id for p in without_leaving_blocks([draining, *ends, other], 6)] == ["a", "b", "c", "e"]
    refusing = replace(draining, kv_tokens_total=0)
    assert [p.id for p in without_leaving_blocks([refusing, *ends], 6)] == ["b", "c"], "it takes no more sessions"
