"""The online rule: safe, restful and equal on every peer, whatever the churn; and close to placing from scratch."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blockswarm.routing.place import cgbp
from blockswarm.routing.place.moves import Move, Reason, ReplanPolicy, after_move
from blockswarm.routing.place.rule import decide, upcoming
from blockswarm.routing.place.view import PlanningView
from blockswarm.routing.swarm import BlockRange, Coordinate, ModelSpec, MoveClaim, PeerId, PeerState, Swarm
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.placement import GB, POLICY, hosted, mixed_swarm, peer, random_swarm, settle, swarm, validate_move

# --- any churn -------------------------------------------------------------------------------------------------


KINDS = st.fixed_dictionaries(
    {
        "gigabytes": st.sampled_from([2.0, 3.0, 4.5, 6.0, 9.0, 15.0, 24.0, 40.0, 0.5]),
        "decode": st.sampled_from([0.001, 0.002, 0.004, 0.01, 0.011, 0.02, 0.05]),
        "x": st.sampled_from([0.0, 0.01, 0.05, 0.2]),
        "max_blocks": st.sampled_from([None, None, None, 1, 3]),
    }
)


class Churn(RuleBasedStateMachine):
    """Peers of all sizes come, go, slow down and drain while the rule carries out its decisions one at a time."""

    @initialize(
        blocks=st.integers(6, 24),
        block_gigabytes=st.sampled_from([0.2, 1.0, 1.5]),
        kv_kilobytes=st.sampled_from([4, 64, 1024]),
        crowd=st.lists(KINDS, min_size=4, max_size=12),
    )
    def start(self, blocks: int, block_gigabytes: float, kv_kilobytes: int, crowd: list[dict[str, object]]) -> None:
        self.swarm = swarm(model=ModelSpec(blocks, block_gigabytes * GB, kv_kilobytes * 1024.0))
        self.names = (f"p{i:03d}" for i in itertools.count())
        self.join(crowd)
        self.swarm, _ = settle(self.swarm)

    def change(self, index: int, **fields: object) -> None:
        chosen = self.swarm.peers[index % len(self.swarm.peers)].id
        peers = tuple(replace(member, **fields) if member.id == chosen else member for member in self.swarm.peers)
        self.swarm = replace(self.swarm, peers=peers)

    @precondition(lambda self: len(self.swarm.peers) < 16)
    @rule(crowd=st.lists(KINDS, min_size=1, max_size=4))
    def join(self, crowd: list[dict[str, object]]) -> None:
        new = [peer(next(self.names), **kind) for kind in crowd]
        self.swarm = replace(self.swarm, peers=(*self.swarm.peers, *new))

    @precondition(lambda self: len(self.swarm.peers) > 3)
    @rule(index=st.integers(0, 99))
    def vanish(self, index: int) -> None:
        gone = index % len(self.swarm.peers)
        peers = self.swarm.peers
        self.swarm = replace(self.swarm, peers=peers[:gone] + peers[gone + 1 :])

    @precondition(lambda self: len(self.swarm.peers) > 3)
    @rule(index=st.integers(0, 99), state=st.sampled_from([PeerState.DRAINING, PeerState.LEAVING]))
    def retire(self, index: int, state: PeerState) -> None:
        self.change(index, state=state)

    @precondition(lambda self: self.swarm.peers)
    @rule(index=st.integers(0, 99), factor=st.sampled_from([2, 20]))
    def slow_down(self, index: int, factor: int) -> None:
        cost = self.swarm.peers[index % len(self.swarm.peers)].cost
        self.change(index, cost=replace(cost, decode_fixed=min(1.0, cost.decode_fixed * factor)))

    @precondition(lambda self: self.swarm.peers)
    @rule(index=st.integers(0, 99), fixed=st.booleans())
    def pin(self, index: int, fixed: bool) -> None:
        self.change(index, blocks_fixed=fixed)

    @precondition(lambda self: self.swarm.peers)
    @rule(index=st.integers(0, 99), sessions=st.sampled_from([0.0, 0.4, 3.0, 50.0]), x=st.sampled_from([0.0, 0.1]))
    def serve(self, index: int, sessions: float, x: float) -> None:
        self.change(index, concurrency=sessions, client_centroids=(Coordinate((x, 0.0, 0.0), 0.01, 0.1),))

    @rule()
    def one_move(self) -> None:
        move = decide(self.swarm, POLICY)
        if move is not None:
            validate_move(self.swarm, move)
            self.swarm = after_move(self.swarm, move)

    @rule()
    def come_to_rest(self) -> None:
        """Within the bound of `settle`, and it stays so; equal on every peer; blocks that were served still are."""
        assert decide(copy.deepcopy(self.swarm), POLICY) == decide(self.swarm, POLICY)
        before = hosted(self.swarm)
        self.swarm, _ = settle(self.swarm)
        assert before <= hosted(self.swarm)
        assert decide(replace(self.swarm, now_seconds=self.swarm.now_seconds + 3600), POLICY) is None


TestChurn = pytest.mark.slow(Churn.TestCase)
TestChurn.settings = settings(max_examples=200, stateful_step_count=10, deadline=None)


@pytest.mark.parametrize("seed", range(6))
def test_a_crowd_that_joins_is_placed_like_cgbp(seed):
    """From nothing the rule ends as good as CG-BP from scratch, within one move per peer."""
    snapshot, moves = settle(random_swarm(random.Random(seed), 20))
    assert all(move.reason is Reason.JOIN for move in moves[:20])
    view = PlanningView.of(snapshot, POLICY)
    plan = cgbp.place(view.model, view.concurrency)
    scratch = np.array([(r.start, r.stop) if r else (0, 0) for r in plan.ranges])
    assert view.cost_seconds(view.ranges) <= 1.10 * view.cost_seconds(scratch)


# --- single decisions --------------------------------------------------------------------------------------------


def test_an_empty_swarm_and_a_full_one_rest():
    assert decide(swarm()) is None
    assert decide(swarm(peer("a", "0:12", gigabytes=40))) is None


def test_a_joining_peer_fills_the_hole_first():
    snapshot = swarm(peer("a", "0:4"), peer("b", "4:8"), peer("new"))
    move = decide(snapshot)
    assert move == Move(PeerId("new"), None, BlockRange(8, 12), Reason.JOIN)


def test_a_hole_is_repaired_by_a_peer_that_is_not_needed_where_it_is():
    """b and c are twins: one of them moves; a is the only one with its blocks and stays."""
    snapshot = swarm(peer("a", "0:4"), peer("b", "4:8"), peer("c", "4:8"))
    move = decide(snapshot)
    assert move is not None
    assert move.peer in ("b", "c")
    assert (move.after, move.reason) == (BlockRange(8, 12), Reason.REPAIR)


def test_blocks_of_a_draining_peer_are_repaired_before_it_is_gone():
    snapshot = swarm(peer("a", "0:4"), peer("b", "4:8"), peer("c", "4:8"), peer("d", "8:12", state=PeerState.DRAINING))
    move = decide(snapshot)
    assert move is not None
    assert move.after == BlockRange(8, 12)


def test_no_move_is_made_that_would_open_another_hole():
    """Every peer is the last server of its blocks: the hole stays until somebody joins."""
    assert decide(swarm(peer("a", "0:4"), peer("b", "4:8"))) is None


def test_a_joining_twin_does_not_count_as_a_server():
    """The peer that loads 4:8 does not serve it yet, so b must not leave it."""
    loading = peer("c", "4:8", state=PeerState.JOINING)
    assert decide(swarm(peer("a", "0:4"), peer("b", "4:8"), loading)) is None


def test_fixed_peers_are_never_moved():
    twins = [peer(name, "4:8", blocks_fixed=True) for name in "bc"]
    assert decide(swarm(peer("a", "0:4"), *twins)) is None
    assert decide(swarm(peer("a", blocks_fixed=True))) is None


def test_a_peer_without_room_for_a_block_gets_none():
    assert decide(swarm(peer("a", gigabytes=0.9))) is None


def test_a_peer_too_small_for_all_sessions_is_still_used():
    """CG-BP would drop it: it has no room for R sessions at one block, but for some."""
    placed, _ = settle(swarm(peer("a", gigabytes=200), peer("b", gigabytes=1.1)))
    view = PlanningView.of(placed, POLICY)
    assert cgbp.conservative_sizes(view.model, view.concurrency)[1] == 0
    assert len(placed.peer(PeerId("b")).blocks or ()) == 1


def test_a_claimed_move_counts_as_made():
    """The hole is being repaired already: nobody else is sent there, and the twin that remains must stay."""
    claim = MoveClaim(0.0, BlockRange(8, 12))
    snapshot = swarm(peer("a", "0:4"), peer("b", "4:8", claim=claim), peer("c", "4:8"))
    assert decide(snapshot) is None


def test_upcoming_moves_are_of_different_peers_to_different_places():
    """Three peers that join at once need not wait for each other."""
    moves = upcoming(swarm(*(peer(name) for name in "abc")), limit=8)
    assert {move.peer for move in moves} == {"a", "b", "c"}
    assert {move.after for move in moves} == {BlockRange(0, 4), BlockRange(4, 8), BlockRange(8, 12)}


@pytest.mark.parametrize("seed", range(12))
def test_upcoming_moves_are_those_decided_one_after_the_other(seed: int) -> None:
    """On a snapshot in which every move before is claimed: views are carried on, and must say what new ones would."""
    snapshot = mixed_swarm(random.Random(seed), 14)
    expected: list[Move] = []
    current = snapshot
    while len(expected) < 6 and (move := decide(current)) is not None:
        expected.append(move)
        claim = MoveClaim(current.now_seconds, move.after)
        peers = (replace(p, claim=claim) if p.id == move.peer else p for p in current.peers)
        current = replace(current, peers=tuple(peers))
    assert upcoming(snapshot, limit=6) == tuple(expected)


def swarm_of_slow_and_idle_fast() -> Swarm:
    """Three slow peers carry the chain while a fast one that could hold everything hosts one block."""
    slow = [peer(name, blocks, decode=0.05) for name, blocks in (("a", "0:4"), ("b", "4:8"), ("c", "8:12"))]
    return swarm(*slow, peer("fast", "0:1", gigabytes=40, decode=0.005))


def test_an_improvement_is_made_when_it_pays():
    move = decide(swarm_of_slow_and_idle_fast())
    assert move == Move(PeerId("fast"), BlockRange(0, 1), BlockRange(0, 12), Reason.IMPROVE)


def test_an_improvement_that_takes_longer_to_load_than_it_saves_is_not():
    """Eleven blocks of 1 GB at 10 kB/s take two weeks; over a horizon of one hour that cannot pay."""
    assert decide(swarm_of_slow_and_idle_fast(), ReplanPolicy(load_bytes_per_second=1e4, horizon_seconds=3600)) is None


def swarm_of_overfull_fast_peers() -> Swarm:
    """Three fast peers host 6 blocks each and have room for one session beside them, though seven ask; there are slow
    peers enough for the others."""
    ranges = ("0:6", "6:12", "3:9")
    fast = [peer(f"fast{r}", r, gigabytes=6.35, decode=0.002, concurrency=7.0) for r in ranges]
    slow = [peer(f"slow{i}", f"{2 * i}:{2 * i + 2}", gigabytes=4.5, decode=0.02) for i in range(6)]
    return swarm(*fast, *slow)


def test_a_fast_peer_gives_up_blocks_for_room():
    """The cheapest chain fits one session: a lone request could not be served better, the second waits or crawls."""
    snapshot = swarm_of_overfull_fast_peers()
    rested, moves = settle(snapshot)
    assert moves
    before, after = (PlanningView.of(seen, POLICY) for seen in (snapshot, rested))
    assert before.concurrency == after.concurrency >= 7
    assert before.model.full_sessions(before.ranges[:, 1] - before.ranges[:, 0])[0] == 1
    times = [view.request_times(view.ranges) for view in (before, after)]
    assert times[1].among_others < 0.9 * times[0].among_others
    assert times[1].alone[0] >= times[0].alone[0]


@pytest.mark.parametrize("field", [{"horizon_seconds": 0}, {"load_bytes_per_second": math.nan}, {"min_gain": 0}])
def test_an_absurd_policy_is_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        ReplanPolicy(**field)


@pytest.mark.long
def test_decisions_do_not_depend_on_the_process():
    """Two interpreters with different hash seeds plan a random swarm alike."""
    program = (
        "import random, sys; sys.path.insert(0, sys.argv[1]); import support.placement as t;"
        "s, moves = t.settle(t.random_swarm(random.Random(4), 12)); print(moves)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parents[2])],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "Move" in outputs.pop()
