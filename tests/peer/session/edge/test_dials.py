"""The budget of failed dials: what a client can have a peer knock at, and what it cannot spoil for others."""

from __future__ import annotations

import pytest
from blockswarm.peer.session.edge.dials import (
    MAX_FAILED_ADDRESSES,
    MAX_FAILED_PER_ADDRESS,
    MAX_FAILED_PER_CLIENT,
    MAX_KNOWN,
    DialBudget,
)
from blockswarm.proto.errors import PeerUnavailable, PushFailed
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import AddressRefused
from blockswarm.routing.swarm import PeerId

ALICE, BOB = PeerId("alice"), PeerId("bob")


def address(number: int) -> PeerAddress:
    return PeerAddress(PeerId(f"peer {number}"), f"192.0.2.1:{number + 1}")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def fails(budget: DialBudget, client: PeerId, number: int, error: Exception | None = None) -> bool:
    """Whether a dial is made that fails; False if it is not allowed."""
    try:
        with budget.dial(client, address(number)):
            raise error or PeerUnavailable("nobody is there")
    except PushFailed:
        return False
    except PeerUnavailable:
        return True


def succeeds(budget: DialBudget, client: PeerId, number: int) -> bool:
    try:
        with budget.dial(client, address(number)):
            pass
    except PushFailed:
        return False
    return True


def test_a_client_has_a_number_of_failed_dials_and_others_keep_theirs() -> None:
    budget, clock = DialBudget(60.0, clock := Clock()), clock
    assert sum(fails(budget, ALICE, number) for number in range(100)) == MAX_FAILED_PER_CLIENT
    assert not succeeds(budget, ALICE, 200)
    assert succeeds(budget, BOB, 200)
    clock.now += 61
    assert succeeds(budget, ALICE, 201)


def test_all_clients_together_have_one_too_whatever_their_number() -> None:
    """Identities cost nothing."""
    budget = DialBudget(60.0, Clock())
    knocks = sum(fails(budget, PeerId(f"client {number}"), number) for number in range(1000))
    assert knocks == MAX_FAILED_ADDRESSES


def test_one_address_is_not_knocked_at_for_ever_and_counts_once() -> None:
    """A popular peer that dies fails for everybody at the same time: that is no scan."""
    budget = DialBudget(60.0, Clock())
    assert sum(fails(budget, PeerId(f"client {number}"), 0) for number in range(1000)) == MAX_FAILED_PER_ADDRESS
    assert succeeds(budget, BOB, 1)


def test_where_a_peer_has_answered_a_spent_budget_does_not_matter() -> None:
    budget = DialBudget(60.0, Clock())
    assert succeeds(budget, ALICE, 0)
    for number in range(1, 1000):
        fails(budget, PeerId(f"client {number}"), number)
    assert succeeds(budget, ALICE, 0)
    assert not succeeds(budget, ALICE, 5000)
    assert fails(budget, ALICE, 0)
    assert not succeeds(budget, ALICE, 0), "it has failed since"


def test_dials_that_go_well_or_are_refused_here_cost_nothing() -> None:
    budget = DialBudget(60.0, Clock())
    assert all(succeeds(budget, ALICE, number) for number in range(3 * MAX_KNOWN))
    assert all(fails(budget, ALICE, number + 10_000, AddressRefused("private")) for number in range(100))


def test_dials_under_way_count_as_failed_until_they_succeed() -> None:
    budget = DialBudget(60.0, Clock())
    under_way = [budget.dial(ALICE, address(number)) for number in range(MAX_FAILED_PER_CLIENT)]
    for dial in under_way:
        dial.__enter__()
    with pytest.raises(PushFailed, match="too many dials"), budget.dial(ALICE, address(99)):
        pytest.fail("the budget is spent")
    for dial in under_way:
        dial.__exit__(None, None, None)
    assert succeeds(budget, ALICE, 99)
