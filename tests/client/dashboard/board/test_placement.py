"""The placement's figures and moves are those of the rule itself."""

from __future__ import annotations

from typing import Any

import pytest
from blockswarm.client.dashboard.board.placement import PlacementBoard, placement_board, planning_of
from blockswarm.client.dashboard.watch.sighting import Sighting
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.routing.outlook import outlook_of
from blockswarm.routing.place.rule import upcoming
from blockswarm.routing.swarm import BlockRange, MoveClaim, PeerState
from support.sightings import FACTS, NOW, known, sighting

SIZES = {"block_bytes": 1e6, "kv_bytes_per_token": 100.0}


def peer(blocks: str | None, name: str = "", **spec: Any) -> KnownPeer:
    return known(blocks, name, **SIZES, **spec)


def board_of(seen: Sighting) -> PlacementBoard:
    return placement_board(planning_of(FACTS, seen), seen)


def test_figures_and_moves_are_the_rules() -> None:
    seen = sighting([peer("0:4", "a"), peer("0:4", "b"), peer(None, "new", state=PeerState.JOINING)])
    board = board_of(seen)
    swarm = planning_of(FACTS, seen).swarm
    expected = upcoming(swarm, limit=8)
    assert [(row.peer, row.after) for row in board.planned] == [
        (move.peer, (move.after.start, move.after.stop)) for move in expected
    ]
    assert {row.reason for row in board.planned} <= {"join", "repair", "improve"}
    assert (board.now.token_seconds, board.now.bound_seconds, board.now.gap_seconds) == (None, None, None)
    assert board.then.token_seconds > 0, "the new peer serves what nobody serves now"


def test_a_swarm_that_rests_has_no_moves_and_a_gap() -> None:
    seen = sighting([peer("0:8", "a"), peer("0:8", "b")])
    board = board_of(seen)
    outlook = outlook_of(planning_of(FACTS, seen).swarm, rtts=seen.prepared.client_rtts)
    assert (board.claimed, board.planned, board.then) == ((), (), None)
    assert board.now.gap_seconds == pytest.approx(outlook.bound_seconds - outlook.scratch_bound_seconds)
    assert board.now.concurrency == outlook.concurrency
    assert board.now.bound_seconds > seen.prepared.client_rtts[seen.prepared.announced[0].id] > 0, "from here as well"


def test_claims_are_moves_in_flight() -> None:
    claim = MoveClaim(NOW - 5, BlockRange(4, 8))
    board = board_of(sighting([peer("0:8", "a"), peer("0:4", "mover", claim=claim)]))
    (row,) = board.claimed
    assert (row.name, row.before, row.after, row.reason) == ("mover", (0, 4), (4, 8), "claimed")
    assert board.then is not None


def test_where_nobody_stays_there_is_nothing_to_plan() -> None:
    assert board_of(sighting([peer("0:8", state=PeerState.LEAVING)])).now is None
    assert board_of(sighting()).now is None
