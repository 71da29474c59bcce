"""The agent's turn: every step of a move, on the snapshot that calls for it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from blockswarm.routing.place.agent import (
    Action,
    AgentState,
    BeginLoading,
    Claim,
    Loading,
    MoveTo,
    Rest,
    Wait,
    Withdraw,
    next_action,
)
from blockswarm.routing.place.claims import Verdict
from blockswarm.routing.swarm import BlockRange, MoveClaim, PeerId, PeerSpec, PeerState
from blockswarm.routing.timing import CLOCK_TOLERANCE_SECONDS, RECORD_REFRESH_SECONDS
from support.placement import POLICY, peer, swarm

NOW = 100.0
LATER = NOW + RECORD_REFRESH_SECONDS
HOLE = BlockRange(8, 12)
CLAIMED = AgentState(PeerId("c"), MoveClaim(NOW, HOLE))
TWINS = (peer("a", "0:4"), peer("b", "4:8", issued_seconds=LATER), peer("c", "4:8"))
"""Nobody hosts 8:12, and c is not needed where it is."""


def turn(state: AgentState, *peers: PeerSpec, now: float = LATER, **options: bool) -> Action:
    return next_action(state, swarm(*peers, now=now), POLICY, **options)


def test_a_move_is_claimed_loaded_and_made() -> None:
    assert turn(AgentState(PeerId("c")), *TWINS, now=NOW) == Claim(HOLE)
    assert turn(AgentState(PeerId("b")), *TWINS, now=NOW) == Rest(), "the other twin goes"
    assert turn(CLAIMED, *TWINS, now=NOW) == Wait(LATER)
    assert turn(CLAIMED, *TWINS) == BeginLoading(HOLE)
    assert turn(replace(CLAIMED, loading=Loading.UNDER_WAY), *TWINS) == Wait(math.inf)
    assert turn(replace(CLAIMED, loading=Loading.DONE), *TWINS) == MoveTo(HOLE)


def test_without_a_witness_nothing_is_dropped() -> None:
    silent = (TWINS[0], replace(TWINS[1], issued_seconds=NOW), TWINS[2])
    assert turn(CLAIMED, *silent) == Wait(LATER + CLOCK_TOLERANCE_SECONDS)
    assert turn(replace(CLAIMED, loading=Loading.DONE), *silent) == Wait(LATER + CLOCK_TOLERANCE_SECONDS)


def test_a_claim_is_withdrawn_for_an_older_one_and_where_it_is_not_wanted() -> None:
    older = peer("a", "0:4", claim=MoveClaim(NOW - 1, HOLE))
    for loading in (Loading.NOT_BEGUN, Loading.DONE):
        assert turn(replace(CLAIMED, loading=loading), older, *TWINS[1:]) == Withdraw(Verdict.OUTRANKED)
    assert turn(CLAIMED, *TWINS, peer("d", "8:12")) == Withdraw(Verdict.UNWANTED)


def test_a_joining_peer_may_load_at_once_and_is_judged_before_it_serves() -> None:
    """It drops nothing, so no witness is needed; an older claim still wins."""
    peers = (*TWINS[:2], peer("new"))
    assert turn(AgentState(PeerId("new")), *peers, now=NOW) == Claim(HOLE)
    assert turn(AgentState(PeerId("new")), *peers, now=NOW, joins_at_once=True) == Claim(HOLE, begin_loading=True)
    claimed = AgentState(PeerId("new"), MoveClaim(NOW, HOLE))
    assert turn(claimed, *peers) == BeginLoading(HOLE)
    loading, loaded = (replace(claimed, loading=how) for how in (Loading.UNDER_WAY, Loading.DONE))
    assert turn(loading, *peers, now=NOW, joins_at_once=True) == Wait(math.inf)
    assert turn(loaded, *peers, now=NOW, joins_at_once=True) == MoveTo(HOLE), "no refresh is waited for"
    assert turn(loaded, *peers, now=NOW) == Wait(LATER)
    rival = peer("a", claim=MoveClaim(NOW - 1, HOLE), state=PeerState.JOINING)
    for state in (loading, loaded):
        assert turn(state, rival, *peers[1:], joins_at_once=True) == Withdraw(Verdict.OUTRANKED), "0:4 has nobody"


def test_a_peer_with_blocks_does_not_load_at_once() -> None:
    assert turn(AgentState(PeerId("c")), *TWINS, now=NOW, joins_at_once=True) == Claim(HOLE)


def test_the_claim_is_the_agent_s_not_the_record_s() -> None:
    """A record that was issued before the claim is not what the claim is judged by."""
    stale = replace(TWINS[2], claim=MoveClaim(NOW - 500, BlockRange(0, 4)))
    assert turn(CLAIMED, *TWINS[:2], stale) == BeginLoading(HOLE)


def test_blocks_are_loaded_for_a_claim_only() -> None:
    with pytest.raises(ValueError, match="for a claim only"):
        AgentState(PeerId("a"), loading=Loading.DONE)
