"""The figures of a snapshot, against hand-made cases and against CG-BP's own bound."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from blockswarm.routing.outlook import outlook_of, outlook_of_view, view_with_peers_at, with_peer_at
from blockswarm.routing.place.cgbp import place
from blockswarm.routing.place.view import PlanningView
from blockswarm.routing.swarm import BlockRange, MoveClaim, PeerState
from support.placement import POLICY, mixed_swarm, peer, random_swarm, settle, swarm

RTT = 2 * 0.005
"""From the clients at x = 0, whose height is rounded to a whole cell of 10 ms, to peers there: heights of 5 ms."""


def test_a_chain_of_three() -> None:
    """Nobody but these peers is there, so clients are where the peers are."""
    found = outlook_of(swarm(peer("a", "0:4"), peer("b", "4:8", decode=0.02), peer("c", "8:12")))
    assert found is not None
    assert (found.weakest_block, found.weakest_servers, found.uncovered, found.moves) == (0, 1, (), ())
    visit = found.token_seconds - 4 * (0.01 + 0.02 + 0.01)
    assert visit == pytest.approx(3 * RTT, abs=3 * 0.005)
    assert found.bound_seconds == pytest.approx(found.token_seconds), "one place of clients, and room for all"
    assert found.request_seconds > POLICY.request.new_tokens * found.token_seconds


def test_the_bounds_hold_for_a_client_that_is_farther_away_than_coordinates_say() -> None:
    """A token then goes there and back on every one of these ways."""
    snapshot = swarm(peer("a", "0:4"), peer("b", "4:8", decode=0.02), peer("c", "8:12"))
    known, near = outlook_of(snapshot), outlook_of(snapshot, rtts={"a": 0.001, "gone": 9.0})
    assert near == known, "a shorter way promises no less to others"
    rtts = {"a": 0.3, "b": 0.2, "c": 0.1}
    far = outlook_of(snapshot, rtts=rtts)
    assert far is not None
    assert known is not None
    assert far.bound_seconds == pytest.approx(4 * (0.01 + 0.02 + 0.01) + sum(rtts.values()))
    assert far.scratch_bound_seconds > known.scratch_bound_seconds
    assert far.token_seconds == known.token_seconds
    assert far.concurrency == known.concurrency


def test_a_hole_is_named_and_promises_nothing() -> None:
    claim = MoveClaim(0.0, BlockRange(4, 8))
    found = outlook_of(
        swarm(peer("a", "0:4"), peer("b", "0:4", claim=claim), peer("c", "8:12", state=PeerState.LEAVING))
    )
    assert found is not None
    assert found.uncovered == tuple(range(4, 12))
    assert (found.weakest_block, found.weakest_servers) == (4, 0)
    assert math.isinf(found.bound_seconds)
    assert math.isinf(found.token_seconds)
    assert math.isinf(found.request_seconds)
    assert found.moves == (("b", BlockRange(0, 4), BlockRange(4, 8)),)


def test_a_peer_that_is_loading_serves_nothing_yet() -> None:
    loading = peer("c", claim=MoveClaim(0.0, BlockRange(8, 12)))
    found = outlook_of(swarm(peer("a", "0:4"), peer("b", "4:8"), loading))
    assert found is not None
    assert found.uncovered == tuple(range(8, 12))


def test_peers_without_room_for_all_sessions_are_not_promised() -> None:
    crowded = [peer(name, blocks, gigabytes=4.001) for name, blocks in (("a", "0:4"), ("b", "4:8"), ("c", "8:12"))]
    found = outlook_of(swarm(*crowded))
    assert found is not None
    assert found.uncovered == ()
    assert math.isinf(found.bound_seconds)


def test_nobody_stays() -> None:
    assert outlook_of(swarm(peer("a", "0:4", state=PeerState.DRAINING))) is None


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_of_a_placement_from_scratch_is_theorem_2s_or_better(seed: int) -> None:
    snapshot = random_swarm(random.Random(seed), 16)
    view = PlanningView.of(snapshot, POLICY)
    assert view is not None
    plan = place(view.model, view.concurrency)
    placed = tuple(
        replace(p, blocks=blocks, state=PeerState.SERVING if blocks else PeerState.JOINING)
        for p, blocks in zip(view.peers, plan.ranges, strict=True)
    )
    found = outlook_of(replace(snapshot, peers=placed))
    assert found is not None
    assert found.concurrency == plan.concurrency
    assert found.scratch_bound_seconds == pytest.approx(plan.bound_seconds)
    assert found.token_seconds <= found.bound_seconds <= plan.bound_seconds * (1 + 1e-9)
    rested = outlook_of(settle(snapshot)[0])
    assert rested is not None
    assert rested.uncovered == ()


@pytest.mark.parametrize("seed", range(12))
def test_a_view_of_moved_peers_says_what_the_moved_snapshot_says(seed: int) -> None:
    rng = random.Random(seed)
    snapshot = mixed_swarm(rng, 14)
    view = PlanningView.of(snapshot, POLICY)
    assert view is not None
    moving = rng.sample([p.id for p in view.peers], 3)
    places = [(peer_id, BlockRange(start, start + 6)) for peer_id, start in zip(moving, (0, 5, 10), strict=True)]
    moved = snapshot
    for peer_id, blocks in places:
        moved = with_peer_at(moved, peer_id, blocks)
    rtts = {p.id: rng.uniform(0, 0.3) for p in snapshot.peers}
    assert outlook_of_view(view_with_peers_at(view, places), rtts) == outlook_of(moved, rtts=rtts)
    assert outlook_of_view(view) == outlook_of(snapshot), "the first view is as it was"
