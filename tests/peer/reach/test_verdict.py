"""The verdict on an address from the answers of others, some of whom lie or see another side of it."""

from __future__ import annotations

import pytest
from blockswarm.peer.reach.verdict import UNCHECKED, ReachStatus, ReachVerdict, judge
from blockswarm.proto.wire.messages.relay import ReachReply

PUBLIC, HOME = "8.8.8.8", "192.168.1.2"
OWN = ("192.168.1.2:4000",)


def yes(host: str) -> ReachReply:
    return ReachReply(host, True)


def no(host: str) -> ReachReply:
    return ReachReply(host, False)


def test_a_founder_announces_itself_unchecked() -> None:
    assert judge([]) == UNCHECKED
    assert UNCHECKED.addresses(OWN, 4000) == OWN


@pytest.mark.parametrize("answers", [[yes(HOME), yes(HOME)], [yes(PUBLIC), yes(PUBLIC), no(PUBLIC)]])
def test_two_that_reach_a_peer_are_enough(answers: list[ReachReply]) -> None:
    assert judge(answers).reached is ReachStatus.YES


@pytest.mark.parametrize(
    "answers", [[no(HOME)], [no(PUBLIC), no(PUBLIC)], [yes(PUBLIC), no(PUBLIC), no(PUBLIC)]], ids=["1", "2", "3"]
)
def test_where_most_do_not_reach_it_a_peer_has_no_address(answers: list[ReachReply]) -> None:
    assert judge(answers).reached is ReachStatus.NO
    assert judge(answers).addresses(OWN, 4000) == ()


def test_one_peer_alone_does_not_make_an_address_checked() -> None:
    verdict = judge([yes(PUBLIC)])
    assert (verdict.reached, verdict.answers) == (ReachStatus.UNCHECKED, 1), "it is told from one that nobody checked"
    assert verdict.addresses(OWN, 4000) == OWN, "nor does it name an address for this peer"


def test_neighbours_know_nothing_of_the_world_outside() -> None:
    """Two in the same house reach it, one outside does not: it is not reached."""
    assert judge([yes(HOME), yes(HOME), no(PUBLIC)]).reached is ReachStatus.NO
    assert judge([no(HOME), no(HOME), yes(PUBLIC), yes(PUBLIC)]).reached is ReachStatus.YES


def test_an_address_that_two_others_saw_and_reached_is_announced_first() -> None:
    """A rented machine knows only its inner address; the provider maps the public one to it."""
    verdict = judge([yes(PUBLIC), yes(PUBLIC), yes("1.1.1.1")])
    assert verdict.addresses(OWN, 4000) == (f"{PUBLIC}:4000", *OWN)
    assert judge([yes(HOME), yes(HOME)]).addresses(OWN, 4000) == OWN


def test_no_liar_has_a_victim_announced() -> None:
    assert judge([yes("1.1.1.1"), yes(PUBLIC)]).addresses(OWN, 4000) == OWN
    for nonsense in ("evil.example", "not an address", "fe80::1%eth0", ""):
        assert judge([yes(nonsense), yes(nonsense)]).addresses(OWN, 4000) == OWN


def test_addresses_of_both_kinds_are_written_as_they_are_read() -> None:
    verdict = ReachVerdict(ReachStatus.YES, ("2606:4700:4700::1111",))
    assert verdict.addresses((), 4000) == ("[2606:4700:4700::1111]:4000",)
