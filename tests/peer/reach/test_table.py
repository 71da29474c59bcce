"""The limits of a relay: one peer does not take all that it does for others."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from blockswarm.peer.config import RelayQuota
from blockswarm.peer.reach.table import RelayTable, Throttle
from blockswarm.proto.errors import PeerBusy, PeerUnavailable, UsageError
from blockswarm.routing.swarm import PeerId
from hypothesis import given
from hypothesis import strategies as st

ME, ALICE, BOB, CAROL = map(PeerId, ("me", "alice", "bob", "carol"))


def table(**quota: object) -> RelayTable:
    return RelayTable(ME, RelayQuota(**quota))  # type: ignore[arg-type]


def never() -> None:
    raise AssertionError("nobody else needs the room")


def test_a_relay_has_a_number_of_places() -> None:
    relay = table(peers=2)
    first = relay.reserve(ALICE, "a", never)
    relay.reserve(BOB, "b", never)
    assert (relay.free, relay.peers) == (0, 2)
    with pytest.raises(PeerBusy):
        relay.reserve(CAROL, "c", never)
    relay.release(first)
    relay.reserve(CAROL, "c", never)


def test_one_network_takes_half_of_the_places_however_many_ids_it_makes() -> None:
    relay = table(peers=8)
    for number in range(4):
        relay.reserve(PeerId(f"sybil {number}"), "a", never)
    with pytest.raises(PeerBusy):
        relay.reserve(PeerId("one more"), "a", never)
    relay.reserve(BOB, "b", never)


def test_networks_that_hold_all_places_make_room_for_others() -> None:
    """A place is held by saying nothing, for ever, and two networks could hold all: that with most gives one back."""
    relay, ended = table(peers=4), list[str]()
    for name, network in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")):
        relay.reserve(PeerId(name), network, lambda name=name: ended.append(name))  # type: ignore[misc]
    relay.reserve(CAROL, "c", never)
    assert ended == ["b2"]
    with pytest.raises(PeerBusy):
        relay.reserve(PeerId("b3"), "b", never)
    relay.reserve(PeerId("dave"), "d", never)
    assert ended == ["b2", "a2"]
    with pytest.raises(PeerBusy):
        relay.reserve(PeerId("eve"), "e", never)
    with pytest.raises(PeerUnavailable), relay.connection(PeerId("b2"), "x", never):
        pass
    assert relay.peers == 4


def test_a_peer_that_comes_again_takes_its_own_place() -> None:
    """Its old stream may look alive for a while after its network was away."""
    relay = table(peers=2)
    old = relay.reserve(ALICE, "a", never)
    new = relay.reserve(ALICE, "a", never)
    relay.release(old)
    with relay.connection(ALICE, "x", never) as used:
        assert used is new
    relay.release(new)
    assert relay.peers == 0


def test_a_relay_is_not_reached_through_itself() -> None:
    with pytest.raises(PeerUnavailable, match="itself"):
        table().reserve(ME, "a", never)


def test_nobody_is_reached_without_a_place() -> None:
    relay = table()
    relay.release(relay.reserve(ALICE, "a", never))
    with pytest.raises(PeerUnavailable, match="not reached through this relay"), relay.connection(ALICE, "x", never):
        pass


def test_connections_are_limited_for_each_peer_and_in_all() -> None:
    relay = table(connections=3, connections_per_peer=2)
    relay.reserve(ALICE, "a", never)
    relay.reserve(BOB, "b", never)
    with relay.connection(ALICE, "x", never), relay.connection(ALICE, "y", never):
        with pytest.raises(PeerBusy), relay.connection(ALICE, "x", never):
            pass
        with relay.connection(BOB, "z", never):
            assert relay.connections == 3
            with pytest.raises(PeerBusy), relay.connection(BOB, "x", never):
                pass
    assert relay.connections == 0


def test_a_network_keeps_no_other_one_from_a_peer_nor_from_the_relay() -> None:
    """The youngest connection of the network that has most makes room; where all have as many, nobody loses any."""
    relay, ended = table(connections=4, connections_per_peer=3), []
    relay.reserve(ALICE, "a", never)
    relay.reserve(BOB, "b", never)
    with ExitStack() as stack:

        def connect(peer: PeerId, network: str) -> None:
            number = len(numbers)
            numbers.append(number)
            stack.enter_context(relay.connection(peer, network, lambda: ended.append(number)))

        numbers: list[int] = []
        for _ in range(3):
            connect(ALICE, "greedy")
        connect(ALICE, "one")
        assert (ended, relay.connections) == ([2], 3)
        with pytest.raises(PeerBusy):
            connect(ALICE, "greedy")
        connect(BOB, "greedy")
        connect(BOB, "two")
        assert (ended, relay.connections) == ([2, 5], 4)
        with pytest.raises(PeerBusy):
            connect(BOB, "one")
    assert relay.connections == 0


@pytest.mark.parametrize(
    "quota", [{"peers": 0}, {"connections": 0}, {"bytes_per_second": 1.0}, {"peer_share": 0.0}, {"peer_share": 2.0}]
)
def test_limits_that_are_none_are_refused(quota: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        table(**quota)


@pytest.mark.long
@given(
    st.lists(st.tuples(st.integers(1, 1 << 18), st.floats(0, 2)), min_size=1, max_size=60),
    st.integers(1 << 16, 1 << 22),
)
def test_a_sender_that_pauses_as_it_is_told_keeps_to_the_rate(sends: list[tuple[int, float]], rate: int) -> None:
    """By any moment no more has been let through than a burst of a second and the rate since, counted independently."""
    throttle, now, sent = Throttle(rate), 100.0, 0
    for nbytes, pause in sends:
        now += pause
        now += throttle.delay(nbytes, now)
        sent += nbytes
        assert sent <= rate * (1.0 + now - 100.0) * (1 + 1e-9) + 1


def test_a_peer_that_takes_all_it_may_leaves_the_other_half() -> None:
    relay = table(bytes_per_second=float(1 << 20), peer_share=0.5)
    greedy, modest = relay.reserve(ALICE, "a", never), relay.reserve(BOB, "b", never)
    now = 0.0
    for _ in range(64):
        now += relay.delay(greedy, 1 << 16, now)
    assert now >= ((64 << 16) - (1 << 19)) / (1 << 19) - 1e-6
    assert relay.delay(modest, 1 << 16, now) == 0.0
    assert relay.relayed_bytes == 65 << 16


def test_a_clock_that_stands_still_or_runs_back_gives_no_credit() -> None:
    throttle = Throttle(1000.0)
    assert throttle.delay(1000, 5.0) == 0.0
    assert throttle.delay(500, 5.0) == pytest.approx(0.5)
    assert throttle.delay(500, 1.0) == pytest.approx(1.0)
