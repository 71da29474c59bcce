"""Claims: judged on old snapshots, they let no two peers leave a block, and no hole be repaired twice."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from blockswarm.routing.place.claims import Verdict, is_succeeded, judge_claim, judge_join, unreplaced
from blockswarm.routing.place.rule import upcoming
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    ModelSpec,
    MoveClaim,
    PeerId,
    PeerSpec,
    PeerState,
    Swarm,
)
from blockswarm.routing.timing import (
    CLAIM_LIFETIME_SECONDS,
    CLOCK_TOLERANCE_SECONDS,
    RECORD_LIFETIME_SECONDS,
    RECORD_REFRESH_SECONDS,
)
from hypothesis import given
from hypothesis import strategies as st
from support.placement import POLICY, peer, swarm


def claimed(at: float, blocks: str) -> MoveClaim:
    return MoveClaim(at, BlockRange.parse(blocks))


def judge(*others: PeerSpec, now: float, claim: MoveClaim, before: str | None = "4:8", loaded: bool = False) -> Verdict:
    """The verdict on the claim of `m`, whose snapshot has these other peers and a peer that keeps 0:4."""
    me = peer("m", before, claim=claim)
    return judge_claim(swarm(*others, me, peer("first", "0:4"), now=now), me.id, POLICY, loaded=loaded)


def test_a_claim_waits_a_refresh_and_for_a_witness_of_every_block_it_drops():
    claim = claimed(100.0, "8:12")
    fresh = 100.0 + CLOCK_TOLERANCE_SECONDS + 1
    witness = peer("b", "4:8", issued_seconds=fresh)
    half = peer("b", "4:6", issued_seconds=fresh)
    stale = peer("b", "4:8", issued_seconds=99.0)
    leaving = peer("b", "4:8", issued_seconds=fresh, state=PeerState.LEAVING)
    later = 100.0 + RECORD_REFRESH_SECONDS
    assert judge(witness, now=later - 1, claim=claim) is Verdict.WAIT
    assert judge(witness, now=later, claim=claim) is Verdict.MOVE
    expired = peer("b", "4:8", issued_seconds=fresh)
    much_later = fresh + RECORD_LIFETIME_SECONDS
    assert judge(expired, now=much_later - 1, claim=claim) is Verdict.MOVE
    assert judge(expired, now=much_later, claim=claim) is Verdict.WAIT
    for insufficient in (half, stale, leaving):
        assert judge(insufficient, now=later, claim=claim) is Verdict.WAIT
        assert judge(insufficient, now=100.0 + CLAIM_LIFETIME_SECONDS, claim=claim) is Verdict.UNCONFIRMED
        assert judge(insufficient, now=100.0 + CLAIM_LIFETIME_SECONDS, claim=claim, loaded=True) is Verdict.WAIT
    assert judge(witness, now=later, claim=claim, before=None) is Verdict.MOVE


def test_a_claim_that_is_no_longer_wanted_is_withdrawn():
    """The peer that seemed to be gone is back: nothing to repair. Once loaded, the move is finished all the same."""
    claim = claimed(100.0, "8:12")
    witness = peer("b", "4:8", issued_seconds=150.0)
    back = peer("last", "8:12", issued_seconds=150.0)
    assert judge(witness, now=150.0, claim=claim) is Verdict.MOVE
    assert judge(witness, back, now=150.0, claim=claim) is Verdict.UNWANTED
    assert judge(witness, back, now=150.0, claim=claim, loaded=True) is Verdict.MOVE
    with pytest.raises(ValueError, match="claimed no move"):
        judge_claim(swarm(witness), witness.id)


def test_of_rival_claims_the_smallest_time_and_id_wins():
    """They drop the same blocks; the loser withdraws, and until it has, it is no witness for the winner."""
    claim = claimed(100.0, "8:12")

    def rival(name: str, at: float, blocks: str = "0:4") -> PeerSpec:
        return peer(name, "4:8", claim=claimed(at, blocks), issued_seconds=150.0)

    assert judge(rival("z", 99.0), now=150.0, claim=claim) is Verdict.OUTRANKED
    assert judge(rival("a", 100.0), now=150.0, claim=claim) is Verdict.OUTRANKED
    assert judge(rival("z", 100.0), now=150.0, claim=claim) is Verdict.WAIT
    assert judge(rival("z", 101.0), now=150.0, claim=claim) is Verdict.WAIT
    witness = peer("b", "4:8", issued_seconds=150.0)
    assert judge(rival("z", 101.0), witness, now=150.0, claim=claim) is Verdict.MOVE


def test_two_repairs_of_one_hole_are_one_too_many():
    claim = claimed(100.0, "8:12")
    witness = peer("b", "4:8", issued_seconds=150.0)
    first = peer("a", "0:4", claim=claimed(90.0, "8:12"), issued_seconds=150.0)
    elsewhere = peer("a", "0:4", claim=claimed(90.0, "1:5"), issued_seconds=150.0)
    assert judge(first, witness, now=150.0, claim=claim, loaded=True) is Verdict.OUTRANKED
    assert judge(elsewhere, witness, now=150.0, claim=claim, loaded=True) is Verdict.MOVE


def join(*others: PeerSpec, blocks: str = "4:8") -> Verdict:
    """The verdict on `m`, which hosts nothing and has claimed `blocks` of 0:12 at 100."""
    me = peer("m", claim=claimed(100.0, blocks))
    return judge_join(swarm(me, *others, now=101.0), me.id)


def test_a_joining_peer_gives_up_only_where_it_would_leave_a_hole() -> None:
    first = peer("first", "0:4")
    older, younger = claimed(99.0, "4:8"), claimed(100.5, "4:8")
    assert join(first) is Verdict.MOVE
    assert join(first, peer("r", claim=older)) is Verdict.OUTRANKED
    assert join(first, peer("r", claim=younger)) is Verdict.MOVE, "the other gives up"
    assert join(first, peer("a", claim=claimed(100.0, "4:8"))) is Verdict.OUTRANKED, "equal times: the smaller id"
    assert join(first, peer("z", claim=claimed(100.0, "4:8"))) is Verdict.MOVE
    assert join(first, peer("r", claim=older), peer("last", "8:12")) is Verdict.MOVE, "no hole is left: both are useful"
    assert join(first, peer("r", claim=older), peer("s", claim=claimed(100.5, "8:12"))) is Verdict.MOVE
    assert join(first, peer("r", claim=older, state=PeerState.LEAVING)) is Verdict.MOVE
    assert join(first, peer("r", claim=claimed(99.0, "2:6"))) is Verdict.OUTRANKED, "8:12 has more"
    assert join(peer("r", claim=claimed(99.0, "0:4"))) is Verdict.MOVE, "8:12 is not better"
    assert join(peer("s", "0:4"), peer("t", "8:12")) is Verdict.MOVE, "somebody serves there already"
    with pytest.raises(ValueError, match="claimed no move"):
        judge_join(swarm(first), first.id)


@pytest.mark.long
@given(st.lists(st.tuples(st.sampled_from([0, 4, 8]), st.floats(0.0, 3.0)), min_size=2, max_size=6))
def test_peers_that_join_together_leave_no_hole_that_they_could_fill(joiners: list[tuple[int, float]]) -> None:
    """All claim windows of four blocks without having read of each other; once they have, those that give up claim
    again, one by one, by the rule.  In the end nothing is uncovered unless there are too few peers."""
    members = [
        peer(f"p{index}", claim=MoveClaim(at, BlockRange(start, start + 4)))
        for index, (start, at) in enumerate(joiners)
    ]
    for turn in range(40):
        current = swarm(*members, now=10.0 + turn)
        losers = [p for p in members if p.claim is not None and judge_join(current, p.id) is Verdict.OUTRANKED]
        idle = [p for p in members if p.claim is None]
        if not losers and not idle:
            break
        members = [replace(p, claim=None) if p in losers else p for p in members]
        current = swarm(*members, now=10.0 + turn)
        move = next((m for m in upcoming(current, POLICY) if current.peer(m.peer).claim is None), None)
        if move is not None:
            claim = MoveClaim(10.0 + turn, move.after)
            members = [replace(p, claim=claim) if p.id == move.peer else p for p in members]
    else:
        raise AssertionError("they go on for ever")
    covered = {block for p in members if p.claim is not None for block in p.claim.blocks}
    assert len(covered) == 12 or len(members) < 3


# --- a peer that leaves ---

ME = PeerId("bc")
"""Between other peers: snapshots are in ascending order of id."""
PARTS = (peer("a", "0:4"), peer("b", "4:8"))


@pytest.mark.parametrize("state", [PeerState.SERVING, PeerState.DRAINING])
def test_blocks_are_unreplaced_that_no_other_peer_serves_and_keeps(state: PeerState) -> None:
    me = peer("bc", "6:10", state=state)
    assert unreplaced(swarm(*PARTS, me), ME) == (8, 9)
    joining = peer("c", claim=MoveClaim(0.0, BlockRange(8, 12)), state=PeerState.JOINING)
    draining = peer("d", "8:12", state=PeerState.DRAINING)
    going = peer("e", "8:12", claim=MoveClaim(0.0, BlockRange(0, 4)))
    assert unreplaced(swarm(*PARTS, me, joining, draining, going), ME) == (8, 9)
    assert unreplaced(swarm(*PARTS, me, peer("f", "9:12")), ME) == (8,)
    assert unreplaced(swarm(*PARTS, me, peer("f", "8:12")), ME) == ()


@pytest.mark.parametrize("state", [PeerState.SERVING, PeerState.DRAINING])
def test_a_successor_is_a_peer_that_would_claim_the_blocks_or_has(state: PeerState) -> None:
    me = peer("bc", "8:12", state=state)
    assert not is_succeeded(swarm(*PARTS, me), ME), "nobody else can leave what it has"
    assert is_succeeded(swarm(*PARTS, me, peer("c", "4:8")), ME), "one of two would move"
    fixed = peer("c", "4:8", blocks_fixed=True)
    assert not is_succeeded(swarm(peer("a", "0:4"), peer("b", "4:8", blocks_fixed=True), fixed, me), ME)
    assert is_succeeded(swarm(*PARTS, me, peer("c")), ME), "a peer that joins would take them"
    claim = MoveClaim(0.0, BlockRange(8, 12))
    assert is_succeeded(swarm(*PARTS, me, peer("c", state=PeerState.JOINING, claim=claim, blocks_fixed=True)), ME)
    assert not is_succeeded(swarm(*PARTS, me, peer("c", state=PeerState.LEAVING, claim=claim)), ME)
    assert not is_succeeded(swarm(me), ME), "it is the only peer"


# --- looks that are far apart ----------------------------------------------------------------------------------------


class Mover:
    """A peer that claims windows at random, whatever they bring, and moves as soon as its own old look allows it."""

    def __init__(self, name: str, start: int, clock_is_ahead: float, rng: random.Random) -> None:
        self.id, self.ahead, self.rng = PeerId(name), clock_is_ahead, rng
        self.blocks, self.claim = BlockRange(start, start + 4), None
        self.read: dict[PeerId, PeerSpec] = {}
        self.look_at = rng.uniform(0.0, 40.0)
        self.announce_at = rng.uniform(0.0, 20.0)
        self.said = self.record(0.0)

    def record(self, now: float) -> PeerSpec:
        cost, issued = ComputeCost(0.001), now + self.ahead
        return PeerSpec(self.id, self.blocks, cost, claim=self.claim, issued_seconds=issued, kv_tokens_total=10**6)

    def look(self, others: list[Mover]) -> None:
        """Read the records of the others; three in ten are lost, and the older one is kept."""
        self.read |= {other.id: other.said for other in others if other is not self and self.rng.random() < 0.7}

    def turn(self, now: float) -> bool:
        """Claim, wait, withdraw or move, as `judge_claim` says; whether it has moved."""
        if self.claim is None:
            start = self.rng.choice([s for s in range(9) if s != self.blocks.start])
            self.claim = MoveClaim(now + self.ahead, BlockRange(start, start + 4))
            self.said = self.record(now)
            return False
        snapshot = Swarm(ModelSpec(12), tuple(sorted([*self.read.values(), self.record(now)], key=lambda p: p.id)), now)
        verdict = judge_claim(replace(snapshot, now_seconds=now + self.ahead), self.id, loaded=True)
        moves = verdict is Verdict.MOVE
        if moves:
            self.blocks = self.claim.blocks
        if moves or verdict.withdraws:
            self.claim = None
            self.said = self.record(now)
        return moves


@pytest.mark.long
@pytest.mark.parametrize("longest", [20.0, 40.0, 90.0])
def test_no_block_loses_its_last_server_however_far_apart_looks_are(longest: float) -> None:
    """In a large swarm a peer reads every 40 s, while claims are judged at any time; clocks differ by up to 5 s."""
    moved = 0
    for seed in range(12):
        rng = random.Random(seed)
        movers = [Mover(f"peer {i}", 4 * (i % 3), rng.uniform(-2.5, 2.5), rng) for i in range(7)]
        for now in range(900):
            for mover in rng.sample(movers, len(movers)):
                if now >= mover.announce_at:
                    mover.said, mover.announce_at = mover.record(now), now + rng.uniform(16.0, 24.0)
                if now >= mover.look_at:
                    mover.look(movers)
                    mover.look_at = now + rng.uniform(longest / 2, longest)
                if rng.random() < 0.1 and mover.turn(now):
                    moved += 1
                    hosted = {block for other in movers for block in other.blocks}
                    assert hosted == set(range(12)), (seed, now, mover.id)
    assert moved >= 12, "the rule lets peers move"
