"""Places are shared fairly: identities are free, so neither their number nor the time at which they come decides it."""

from __future__ import annotations

import random

import pytest
from blockswarm.proto.directory.hivemind.places import Network, Places, StorageLimits, network_of_maddr
from blockswarm.proto.wire.timing import MAX_RECORD_LIFETIME_SECONDS
from hypothesis import given, settings
from hypothesis import strategies as st

KEY, OTHER_KEY = b"k" * 20, b"o" * 20
START = 1.7e9
ATTACKER, HONEST, OTHER = "203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"


class World:
    """Places and their two clocks, which run together unless one is set."""

    def __init__(self, **limits: int) -> None:
        self.now, self.elapsed = START, 0.0
        self.places = Places("me", StorageLimits(**limits), lambda: self.now, lambda: self.elapsed)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.elapsed += seconds

    def keep(self, owner: str, network: Network | None, key: bytes = KEY, life: float = 60.0) -> bool:
        return self.places.keep(key, owner, b"value", self.now + life, network)

    def owners(self, key: bytes = KEY) -> set[str]:
        return set(self.places.records_under(key))


def test_a_newcomer_gets_a_place_from_the_network_that_has_the_most() -> None:
    """900 identities of one machine closed the door: places went by arrival."""
    world = World(records_per_key=20)
    for i in range(40):
        world.wait(0.1)
        assert world.keep(f"attacker-{i}", ATTACKER) == (i < 20)
    for i in range(10):
        assert world.keep(f"honest-{i}", f"198.51.{i}.0/24")
    assert {f"honest-{i}" for i in range(10)} <= world.owners()
    assert {f"attacker-{i}" for i in range(10)} <= world.owners(), "the youngest lose their places"
    assert len(world.owners()) == 20
    assert not world.keep("attacker-99", ATTACKER)


def test_one_network_excludes_nobody_while_there_is_room() -> None:
    """Behind one address there may be many: carrier-grade NAT, relays, a test on loopback."""
    world = World(records_per_key=20)
    assert all(world.keep(f"neighbour-{i}", "127.0.0.0/24") for i in range(20))


def test_those_without_a_connection_share_a_small_reserve_when_places_are_scarce() -> None:
    world = World(records_per_key=20, unreached_per_key=3)
    for i in range(20):
        world.wait(0.1)
        assert world.keep(f"unreached-{i}", None)  # there is room
    for i in range(17):
        assert world.keep(f"honest-{i}", f"198.51.{i}.0/24")
    assert {owner for owner in world.owners() if owner.startswith("unreached")} == {f"unreached-{i}" for i in range(3)}
    assert not world.keep("honest-late", "192.0.2.0/24"), "all networks have the same"
    assert not world.keep("unreached-late", None)


def test_the_reserve_is_there_for_those_without_a_connection() -> None:
    world = World(records_per_key=20, unreached_per_key=3)
    assert all(world.keep(f"attacker-{i}", ATTACKER) for i in range(20))
    assert [world.keep(f"unreached-{i}", None) for i in range(5)] == [True, True, True, False, False]


def test_a_record_that_is_renewed_keeps_its_age_and_its_network() -> None:
    world = World(records_per_key=3)
    for owner in ("old", "middle", "young"):
        world.wait(1.0)
        assert world.keep(owner, ATTACKER)
    world.wait(1.0)
    assert world.keep("old", None)  # by way of another node
    assert world.keep("newcomer", HONEST)
    assert world.owners() == {"old", "middle", "newcomer"}
    assert world.places.records_under(KEY)["old"].network == ATTACKER


def test_there_is_always_room_for_this_node_and_its_model() -> None:
    world = World(keys=4, records=8, records_per_key=4)
    for key in range(4):
        for i in range(2):
            assert world.keep(f"attacker-{i}", ATTACKER, key=b"%020d" % key)
    assert not world.keep("attacker-9", ATTACKER, key=OTHER_KEY)
    assert not world.keep("attacker-9", ATTACKER, key=b"%020d" % 1)
    assert world.keep("me", None)
    assert world.keep("honest", HONEST)
    assert all(world.keep(f"attacker-{i}", ATTACKER) for i in range(2))
    assert not world.keep("attacker-9", ATTACKER)
    assert world.keep("honest-2", "192.0.2.0/24")
    assert "me" in world.owners()


def test_a_newcomer_gets_a_key_from_the_network_that_has_the_most() -> None:
    """64 identities under 64 names that nobody uses closed the door to every other model."""
    world = World(keys=8)
    popular = b"popular".rjust(20)
    for i in range(3):
        assert world.keep(f"first-{i}", ATTACKER, key=popular)  # of the same network, or so it looks here
    assert world.keep("honest", HONEST, key=popular)
    for key in range(20):
        world.wait(0.1)
        assert world.keep("attacker", ATTACKER, key=b"%020d" % key) == (key < 7)
    assert world.keep("honest", HONEST, key=KEY)
    assert world.keep("other", OTHER, key=OTHER_KEY)
    assert world.owners() == {"honest"}
    assert world.owners(OTHER_KEY) == {"other"}
    assert world.owners(popular) == {"first-0", "first-1", "first-2", "honest"}, "a key of two networks stays"
    assert set(world.places.keys()) == {popular, KEY, OTHER_KEY, *(b"%020d" % key for key in range(5))}
    assert not world.keep("attacker", ATTACKER, key=b"x" * 20)


def test_keys_of_those_without_a_connection_have_a_reserve() -> None:
    world = World(keys=8, unreached_keys=2)
    assert all(world.keep("attacker", ATTACKER, key=b"%020d" % key) for key in range(8))
    assert [world.keep("unreached", None, key=b"u%019d" % key) for key in range(4)] == [True, True, False, False]


def test_a_newcomer_gets_a_place_under_any_key_from_the_network_that_has_the_most() -> None:
    """Records under ten keys were all that a node keeps, and those of one machine filled them."""
    world = World(records=30, records_per_key=10, unreached=2)
    for i in range(30):
        world.wait(0.1)
        assert world.keep(f"attacker-{i}", ATTACKER, key=b"%020d" % (i % 3))
    assert not world.keep("attacker-99", ATTACKER)
    assert all(world.keep(f"honest-{i}", HONEST) for i in range(10))
    assert [world.keep(f"other-{i}", OTHER, key=OTHER_KEY) for i in range(11)] == 10 * [True] + [False]
    assert [world.keep(f"unreached-{i}", None, key=b"u" * 20) for i in range(3)] == [True, True, False]
    attackers = {owner for key in range(3) for owner in world.owners(b"%020d" % key)}
    assert attackers == {f"attacker-{i}" for i in range(9)}, "the youngest have gone"


@pytest.mark.long
@settings(max_examples=200)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 9), st.sampled_from([ATTACKER, HONEST, OTHER, None])), max_size=150
    )
)
def test_whatever_comes_all_limits_hold_and_this_nodes_records_stay(
    arrivals: list[tuple[int, int, Network | None]],
) -> None:
    limits = StorageLimits(keys=4, records_per_key=5, records=12, unreached_per_key=1, unreached=2, unreached_keys=1)
    now = START
    places = Places("me", limits, lambda: now, lambda: now)
    assert places.keep(KEY, "me", b"", now + 60, None)
    for key, owner, network in arrivals:
        now += 0.1
        name = KEY if key == 0 else b"%020d" % key
        took = places.keep(name, f"{network}-{owner}", b"", now + 60, network)
        keys = places.keys()
        kept = {other: places.records_under(other) for other in keys}
        own = kept.get(name, {}).get(f"{network}-{owner}")
        assert took == (own is not None and own.until == now + 60)
        assert "me" in kept[KEY]
        assert all(len(records) <= limits.records_per_key for records in kept.values())
        foreign = [records for other, records in kept.items() if other != KEY]
        assert len(foreign) <= limits.keys
        assert sum(map(len, foreign)) <= limits.records


def test_records_are_over_by_the_clock_that_nobody_sets() -> None:
    world = World()
    assert world.keep("peer", HONEST)
    assert not world.keep("peer", HONEST, life=30.0), "an older record changes nothing"
    assert not world.keep("late", HONEST, life=-1.0)
    assert not world.keep("for ever", HONEST, life=MAX_RECORD_LIFETIME_SECONDS + 60)
    assert not world.keep("nan", HONEST, life=float("nan"))
    world.now -= 3600.0
    assert world.keep("peer", HONEST), "what was said before the clock was set back is in nobody's way"
    assert world.keep("other", HONEST)
    world.now -= 3600.0
    world.elapsed += 61.0
    assert world.owners() == set()
    assert world.places.keys() == ()


networks = st.sampled_from([ATTACKER, HONEST, OTHER, None])


@pytest.mark.long
@settings(max_examples=200)
@given(arrivals=st.lists(st.tuples(st.integers(0, 40), networks), max_size=120), limit=st.integers(1, 12))
def test_places_are_bounded_and_shared(arrivals: list[tuple[int, Network | None]], limit: int) -> None:
    """No network has a place too many while a newcomer of another one was refused."""
    world = World(records_per_key=limit, unreached_per_key=2)
    for owner, network in arrivals:
        world.wait(0.01)
        name = f"{network}-{owner}"
        before = dict(world.places.records_under(KEY))
        took = world.keep(name, network)
        kept = world.places.records_under(KEY)
        assert len(kept) <= limit
        assert took == (name in kept and kept[name].expires_at_seconds > world.now + 59.99)
        if not took and name not in before and network is not None:
            sizes = [sum(place.network == name for place in kept.values()) for name in (ATTACKER, HONEST, OTHER)]
            assert max(sizes) <= sum(place.network == network for place in kept.values()) + 1
            assert sum(place.network is None for place in kept.values()) <= 2


def test_many_machines_of_one_attacker_against_a_hundred_volunteers() -> None:
    """An attacker with 20 networks and 5000 identities holds no more than its networks' share."""
    rng, world = random.Random(1), World(records_per_key=200)
    crowd = [(f"bad-{i}", f"203.0.{i % 20}.0/24") for i in range(5000)]
    volunteers = [(f"good-{i}", f"10.{i}.0.0/24") for i in range(100)]
    for owner, network in [*crowd, *volunteers]:
        world.keep(owner, network)
    for owner, network in rng.sample(crowd, 2000):
        world.wait(0.01)
        world.keep(owner, network)
    assert sum(owner.startswith("good") for owner in world.owners()) == 100


@pytest.mark.parametrize(
    ("maddr", "network"),
    [
        ("/ip4/203.0.113.7/tcp/4001", ATTACKER),
        ("/ip4/203.0.113.200/udp/9/quic-v1", ATTACKER),
        ("/ip6/2001:db8:1:2::7/tcp/4001", "2001:db8:1::/48"),
        ("/ip6/::ffff:203.0.113.7/tcp/1", ATTACKER),
        ("/dns/example.org/tcp/1", None),
        ("/ip4/999.0.0.1/tcp/1", None),
        ("/ip6/zzz/tcp/1", None),
        ("", None),
    ],
)
def test_the_network_of_an_address(maddr: str, network: Network | None) -> None:
    assert network_of_maddr(maddr) == network
