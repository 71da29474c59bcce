"""The memory of other peers: the newest record, for a time, and nothing that is hostile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from blockswarm.peer.placement.knowledge import MAX_REMEMBERED, SwarmKnowledge
from blockswarm.proto.directory.records import PeerRecord
from blockswarm.proto.identity import Identity
from blockswarm.routing.place.moves import ClaimTiming
from blockswarm.routing.swarm import BlockRange, ComputeCost, MoveClaim, PeerSpec, PeerState

NOW = 1_000_000.0
TIMING = ClaimTiming()
OWN, OTHER = (Identity.generate().peer_id for _ in range(2))
ME = PeerSpec(OWN, BlockRange(0, 2), ComputeCost(1.0))


def record(peer: str = OTHER, issued: float = NOW, blocks: str = "0:4", **changes: object) -> PeerRecord:
    spec = replace(PeerSpec(peer, BlockRange.parse(blocks), ComputeCost(1.0), issued_seconds=issued), **changes)
    hashes = (b"8" * 8,) * len(spec.blocks or ())
    return PeerRecord("ab" * 32, replace(spec, block_hashes=hashes), ("127.0.0.1:1",))


def known(*records: PeerRecord, now: float = NOW) -> SwarmKnowledge:
    knowledge = SwarmKnowledge(OWN, 6, TIMING)
    knowledge.read(records, now)
    return knowledge


def others(knowledge: SwarmKnowledge, now: float = NOW) -> list[PeerSpec]:
    snapshot = knowledge.snapshot(ME, now)
    assert ME in snapshot.peers
    return [peer for peer in snapshot.peers if peer.id != OWN]


def test_the_newest_record_counts_and_the_own_one_is_given() -> None:
    knowledge = known(record(issued=NOW - 5), record(OWN, blocks="3:5"))
    knowledge.read([record(issued=NOW - 9, blocks="2:3")], NOW)
    assert [str(peer.blocks) for peer in others(knowledge)] == ["0:4"]
    knowledge.read([record(issued=NOW - 1, blocks="2:3")], NOW)
    assert [str(peer.blocks) for peer in others(knowledge)] == ["2:3"]


def test_a_peer_is_remembered_for_a_while_and_one_that_has_left_is_not_planned_with() -> None:
    knowledge = known(record())
    knowledge.read([], NOW + TIMING.peer_memory_seconds - 1)
    assert others(knowledge)
    knowledge.read([], NOW + TIMING.peer_memory_seconds)
    assert not others(knowledge)
    assert not others(known(record(state=PeerState.LEAVING)))


def test_an_overdue_peer_is_to_be_pinged_and_gone_until_it_says_something_new() -> None:
    later = NOW + 1.6 * TIMING.refresh_seconds
    knowledge = known(record())
    assert not knowledge.overdue(NOW + TIMING.refresh_seconds)
    assert [r.spec.id for r in knowledge.overdue(later)] == [OTHER]
    knowledge.gone(OTHER)
    knowledge.gone(Identity.generate().peer_id)
    knowledge.read([record()], later)
    assert not others(knowledge, later)
    assert not knowledge.overdue(later)
    knowledge.read([record(issued=later)], later)
    assert others(knowledge, later)


@pytest.mark.long
def test_a_crowd_of_new_ids_displaces_nobody_of_the_present_look() -> None:
    crowd = [record(Identity.generate().peer_id, NOW + 1) for _ in range(MAX_REMEMBERED)]
    for looks in ([[record()], [*crowd, record()]], [crowd, [record()]]):
        knowledge = known()
        for look in looks:
            knowledge.read(look, NOW + 1)
        assert OTHER in {peer.id for peer in others(knowledge)}
        assert len(knowledge.records) == MAX_REMEMBERED


def test_what_does_not_fit_the_model_or_comes_from_the_future_does_no_harm() -> None:
    outside = record(blocks="4:8")
    claims_outside = record(claim=MoveClaim(NOW, BlockRange(5, 9)))
    assert not others(known(outside, claims_outside))
    knowledge = known(record(issued=NOW + 10_000))
    knowledge.read([], NOW + TIMING.peer_memory_seconds + TIMING.clock_tolerance_seconds)
    assert not others(knowledge), "its record does not outlive it"
