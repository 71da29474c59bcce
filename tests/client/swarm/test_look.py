"""The order of a look: known peers first, few others, one way each, and silent ones ever more rarely."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from types import SimpleNamespace

from blockswarm.client.swarm.look import MAX_OTHERS_A_LOOK, Found, LookOrder, Question
from blockswarm.client.timing import ClientTiming
from blockswarm.proto.network.address import PeerAddress, Reach
from blockswarm.routing.swarm import PeerId

TIMING = ClientTiming(silent_seconds=10.0, max_silent_seconds=100.0)


def way(peer: str, number: int = 0) -> Reach:
    return PeerAddress(PeerId(peer), f"192.0.2.1:{number + 1}")


def found(peer: str, ways: int = 1, incarnation: int = 1) -> Found:
    record = SimpleNamespace(incarnation=incarnation)
    return Found(record, b"", tuple(way(peer, number) for number in range(ways)))  # type: ignore[arg-type]


def crowd(count: int, ways: int = 1) -> dict[PeerId, Found]:
    return {PeerId(f"peer {number}"): found(f"peer {number}", ways) for number in range(count)}


def order() -> LookOrder:
    return LookOrder(random.Random(1), TIMING)


def test_known_peers_come_first_by_the_way_that_worked() -> None:
    those = crowd(500, ways=3)
    known = {PeerId("peer 7"): way("peer 7", 2), PeerId("peer 400"): way("gone"), PeerId("lost"): way("lost")}
    questions = order().first_turn(those, known, 0.0)
    assert questions[:2] == (
        Question(PeerId("peer 7"), way("peer 7", 2)),
        Question(PeerId("peer 400"), way("peer 400", 0)),
    )
    assert len(questions) == 2 + MAX_OTHERS_A_LOOK
    assert len({question.peer for question in questions}) == len(questions)


def test_every_peer_of_a_crowd_has_its_chance() -> None:
    """Their own choice of an id, or of an order, gives nobody an advantage."""
    those, looks, asked = crowd(2 * MAX_OTHERS_A_LOOK), order(), Counter[PeerId]()
    for _ in range(40):
        asked.update(question.peer for question in looks.first_turn(those, {}, 0.0))
    assert len(asked) == len(those)
    assert max(asked.values()) < 2 * 20


def test_a_peer_of_which_nothing_is_announced_is_not_asked() -> None:
    those = {PeerId("joins"): found("joins", ways=0)}
    assert order().first_turn(those, {PeerId("joins"): way("joins")}, 0.0) == ()
    assert not order().has_untried(those, ())


def test_a_silent_peer_is_asked_by_all_its_ways_and_then_left_alone_for_longer_and_longer() -> None:
    looks, those, now = order(), {PeerId("quiet"): found("quiet", ways=3)}, 1000.0
    begun = []
    for _ in range(5):
        while not (questions := looks.first_turn(those, {}, now)):
            now += 1.0
        begun.append(now)
        ways = []
        while questions:
            (question,) = questions
            ways.append(question.way)
            looks.silent(question, those[question.peer], now, to_blame=True)
            questions = looks.next_turn(those, questions)
        assert ways == [way("quiet", number) for number in range(3)]
    pauses = [after - before for before, after in itertools.pairwise(begun)]
    assert pauses == [10.0, 20.0, 40.0, 80.0]


def test_a_look_that_ends_early_goes_on_with_the_next_way() -> None:
    looks, those = order(), {PeerId("quiet"): found("quiet", ways=2)}
    (first,) = looks.first_turn(those, {}, 0.0)
    looks.silent(first, those[first.peer], 0.0, to_blame=True)
    (second,) = looks.first_turn(those, {}, 0.0)
    assert (first.way, second.way) == (way("quiet", 0), way("quiet", 1))


def test_a_known_peer_that_is_lost_is_asked_by_all_its_ways() -> None:
    looks, those = order(), {PeerId("moved"): found("moved", ways=3)}
    known = {PeerId("moved"): way("moved", 1)}
    questions, ways = looks.first_turn(those, known, 0.0), []
    while questions:
        ways.append(questions[0].way)
        looks.silent(questions[0], those[PeerId("moved")], 0.0, to_blame=True)
        questions = looks.next_turn(those, questions)
    assert ways[0] == way("moved", 1)
    assert set(ways) == set(those[PeerId("moved")].ways)


def test_who_was_silent_with_everybody_else_is_asked_again_at_once() -> None:
    """Then it was this machine's network."""
    looks, those = order(), crowd(3)
    for question in looks.first_turn(those, {}, 0.0):
        looks.silent(question, those[question.peer], 0.0, to_blame=False)
    assert len(looks.first_turn(those, {}, 0.0)) == 3


def test_a_peer_that_answers_or_is_announced_anew_is_asked_again() -> None:
    looks, peer = order(), PeerId("quiet")
    for better in ({peer: found("quiet", incarnation=2)}, {peer: found("quiet", ways=2)}):
        those = {peer: found("quiet")}
        (question,) = looks.first_turn(those, {}, 0.0)
        looks.silent(question, those[peer], 0.0, to_blame=True)
        assert not looks.first_turn(those, {}, 0.0)
        assert looks.first_turn(better, {}, 0.0)
        looks.first_turn(those, {peer: way("quiet")}, 0.0)  # it has answered meanwhile
        assert looks.has_untried(those, ())


def test_nobody_is_remembered_who_is_announced_no_more() -> None:
    looks, those = order(), crowd(3)
    for question in looks.first_turn(those, {}, 0.0):
        looks.silent(question, those[question.peer], 0.0, to_blame=True)
    assert not looks.has_untried(those, ())
    looks.first_turn({}, {}, 0.0)
    assert looks.has_untried(those, ())
