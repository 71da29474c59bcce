"""Events between two looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from blockswarm.client.dashboard.watch.changes import MOST_CHANGES, changes
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.routing.swarm import BlockRange, MoveClaim, PeerState
from support.sightings import NOW, known, sighting


def between(
    before: tuple[list[KnownPeer], list[KnownPeer]], after: tuple[list[KnownPeer], list[KnownPeer]]
) -> list[Any]:
    found = changes(sighting(*before), sighting(*after), (), ())
    return [(change.kind, change.name, change.detail) for change in found]


def changed(peer: KnownPeer, incarnation: int | None = None, **spec: Any) -> KnownPeer:
    record = replace(peer.record, spec=replace(peer.record.spec, **spec))
    return replace(peer, record=replace(record, incarnation=incarnation or record.incarnation))


ANN = known("0:4", "ann")


def test_coming_and_going() -> None:
    assert between(([], []), ([ANN], [])) == [("joined", "ann", "blocks 0:4")]
    assert between(([], []), ([], [ANN])) == [("silent", "ann", "blocks 0:4")]
    assert between(([ANN], []), ([], [])) == [("left", "ann", "blocks 0:4")]
    assert between(([ANN], []), ([], [ANN])) == [("silent", "ann", "blocks 0:4")]
    assert between(([], [ANN]), ([ANN], [])) == [("answers", "ann", "blocks 0:4")]
    assert between(([ANN], []), ([ANN], [])) == []


def test_states_moves_claims_and_restarts() -> None:
    draining = changed(ANN, state=PeerState.DRAINING)
    assert between(([ANN], []), ([draining], [])) == [("state", "ann", "serving to draining")]
    moved = changed(ANN, blocks=BlockRange(4, 8))
    assert between(([ANN], []), ([moved], [])) == [("moved", "ann", "from 0:4 to 4:8")]
    claiming = changed(ANN, claim=MoveClaim(NOW, BlockRange(4, 8)))
    assert between(([ANN], []), ([claiming], [])) == [("claims", "ann", "intends to move to 4:8")]
    assert between(([claiming], []), ([claiming], [])) == []
    again = changed(ANN, incarnation=ANN.record.incarnation + 1)
    assert between(([ANN], []), ([again], [])) == [("restarted", "ann", "blocks 0:4")]


def test_blocks_without_a_server_come_first() -> None:
    empty = sighting()
    assert [change.kind for change in changes(empty, empty, (), (3, 4))] == ["incomplete"]
    assert changes(empty, empty, (3,), (3,)) == []
    assert [change.detail for change in changes(empty, empty, (3,), (4,))] == ["no peer serves blocks 4:5"]
    assert [change.kind for change in changes(empty, empty, (3,), ())] == ["complete"]


def test_a_crowd_is_told_by_its_number() -> None:
    crowd = [known("0:1") for _ in range(MOST_CHANGES + 20)]
    found = changes(sighting(), sighting(crowd), (), ())
    assert len(found) == MOST_CHANGES + 1
    assert (found[-1].kind, found[-1].detail) == ("more", "20 further events in one look")
