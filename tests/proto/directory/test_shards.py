"""Records over many keys: peers find each other, agree about the number, and read a bounded part of many.

A DHT is a dictionary here, whose keys hold 900 records each, the first ones that came.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
from blockswarm.proto.directory.shards import (
    BASE_EVERY,
    LEAST_PER_SHARD,
    MANY,
    MAX_BITS,
    MAX_KNOWN,
    MAX_NAMES,
    MOST_PER_SHARD,
    OVERLAP_ANNOUNCEMENTS,
    PACED,
    SAMPLE_BITS,
    Shards,
    ShardsByName,
    belongs_under,
    bits_for,
    in_sample,
    keys_of,
    prefix_of,
    shard_key,
    size_of_sample,
)
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.wire.messages.limits import MAX_RECORDS_PER_KEY
from blockswarm.proto.wire.timing import RECORD_LIFETIME_SECONDS, RECORD_REFRESH_JITTER, RECORD_REFRESH_SECONDS
from blockswarm.routing.swarm import PeerId
from hypothesis import given
from hypothesis import strategies as st

BASE = b"b" * 20
NOW = 1e9
MAX_KEYS_A_LOOK = 225
LONGEST_REST_SECONDS = 30.0
LOOK_SECONDS = 40
"""Time between two looks at the slowest pace; records are renewed twice in it."""


def record(number: int, expires_at: float = NOW + 60) -> SignedRecord:
    return SignedRecord(BASE, PeerId(f"peer {number}"), b"", expires_at, b"")


class Swarm:
    """Peers that look every 40 s and announce themselves every 20 s, half of them at a time, and their DHT."""

    def __init__(self) -> None:
        self.now = NOW
        self.kept: dict[bytes, dict[PeerId, SignedRecord]] = defaultdict(dict)
        self.keys_read: Counter[bytes] = Counter()
        self.peers: dict[int, Shards] = {}
        self.rng = random.Random(1)
        self._next = 0

    def join(self, count: int) -> None:
        """Newcomers look first and then announce themselves."""
        for number in range(self._next, self._next + count):
            self.peers[number] = Shards(BASE, record(number).peer_id, self.rng, LONGEST_REST_SECONDS)
            self.look(self.peers[number])
            self.write(number)
        self._next += count

    def leave(self, count: int) -> None:
        for number in self.rng.sample(sorted(self.peers), count):
            del self.peers[number]

    def run(self, seconds: int) -> None:
        for _ in range(0, seconds, LOOK_SECONDS // 2):
            self.now += LOOK_SECONDS // 2
            for number, shards in self.peers.items():
                if (self.now // (LOOK_SECONDS // 2) + number) % 2 == 0:
                    self.look(shards)
                self.write(number)

    def write(self, number: int) -> None:
        shards = self.peers[number]
        for key in shards.keys_to_write():
            if shards.own in self.kept[key] or len(self.under(key)) < MAX_RECORDS_PER_KEY:
                self.kept[key][shards.own] = record(number, self.now + 60)

    def under(self, key: bytes) -> tuple[SignedRecord, ...]:
        return tuple(said for said in self.kept[key].values() if said.expires_at_seconds > self.now)

    def look(self, shards: Shards) -> None:
        for _ in range(3):
            todo = shards.next_look()
            assert len(todo.keys) == len(set(todo.keys)) <= MAX_KEYS_A_LOOK
            self.keys_read.update(todo.keys)
            shards.took(todo, {key: self.under(key) for key in todo.keys}, 0.0)
            if shards.is_settled:
                break

    def assert_all_see_their_group(self) -> None:
        """Every peer of some knows all of its group, of those whose record has been there for two looks."""
        everybody = [shards.own for shards in self.peers.values()]
        for shards in list(self.peers.values())[:: max(len(self.peers) // 20, 1)]:
            self.look(shards)
            known = {found.peer_id for found in shards.known(self.now)}
            assert {peer for peer in everybody if shards.in_group(peer)} <= known

    def bits(self) -> Counter[int]:
        return Counter(shards.bits for shards in self.peers.values())


def swarm_of(count: int, at_once: int = 20) -> Swarm:
    """A swarm that has grown to its size and come to rest."""
    swarm = Swarm()
    while len(swarm.peers) < count:
        swarm.join(min(max(at_once, len(swarm.peers)), count - len(swarm.peers)))
        swarm.run(2 * LOOK_SECONDS)
    swarm.run(3 * LOOK_SECONDS)
    return swarm


# --- keys ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, MAX_BITS - 1))
def test_the_shards_of_one_more_bit_are_the_halves(number: int, bits: int) -> None:
    peer = PeerId(f"peer {number}")
    assert prefix_of(BASE, peer, bits + 1) >> 1 == prefix_of(BASE, peer, bits)
    assert 0 <= prefix_of(BASE, peer, bits) < 2**bits


def test_a_record_belongs_under_its_base_and_its_own_shards_only() -> None:
    peer, other = PeerId("peer"), b"o" * 20
    keys = keys_of(BASE, peer)
    assert len(set(keys)) == 1 + MAX_BITS
    assert all(belongs_under(key, BASE, peer) and len(key) == len(BASE) for key in keys)
    for bits in range(1, MAX_BITS + 1):
        for prefix in range(2**bits):
            key = shard_key(BASE, bits, prefix)
            assert belongs_under(key, BASE, peer) == (prefix == prefix_of(BASE, peer, bits))
    assert not any(belongs_under(key, other, peer) for key in keys)


def test_peers_are_spread_evenly() -> None:
    shares = Counter(prefix_of(BASE, PeerId(f"peer {i}"), 5) for i in range(6400))
    assert len(shares) == 32
    assert max(shares.values()) < 2 * min(shares.values())


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_the_keys_of_shards_lie_at_even_distances(bits: int) -> None:
    """Each has another beginning of that many bits, so that no node is near many of them by chance."""
    beginnings = {int.from_bytes(shard_key(BASE, bits, prefix)[:2], "big") >> (16 - bits) for prefix in range(2**bits)}
    assert len(beginnings) == 2**bits
    assert shard_key(BASE, bits, 0) != shard_key(b"o" * 20, bits, 0)


# --- the number of shards --------------------------------------------------------------------------------------------


@given(st.integers(0, 10**7), st.integers(0, MAX_BITS))
def test_the_number_of_shards_is_bounded_and_comes_to_rest(peers: int, before: int) -> None:
    bits = bits_for(peers, before)
    assert 0 <= bits <= MAX_BITS
    assert bits_for(peers, bits) == bits
    assert peers / 2**bits <= MOST_PER_SHARD or bits == MAX_BITS
    assert peers / 2**bits >= LEAST_PER_SHARD or bits == 0


@given(st.integers(0, 10**6), st.floats(0.75, 1.3))
def test_a_swarm_that_is_counted_a_little_wrong_does_not_go_to_and_fro(peers: int, error: float) -> None:
    bits = bits_for(peers, 0)
    once = bits_for(peers * error, bits)
    assert bits_for(peers, once) == once
    assert abs(once - bits) <= 1


@given(st.integers(0, 10**6), st.integers(0, MAX_BITS - 1))
def test_a_peer_that_is_in_the_sample_of_a_large_swarm_is_in_that_of_a_smaller_one(number: int, bits: int) -> None:
    peer = PeerId(f"peer {number}")
    assert in_sample(BASE, peer, bits) or not in_sample(BASE, peer, bits + 1)
    assert in_sample(BASE, peer, min(bits, SAMPLE_BITS))


@pytest.mark.parametrize("count", [0, 1, 25, 300, 5000])
def test_the_sample_tells_how_large_a_swarm_is(count: int) -> None:
    bits = bits_for(count, 0)
    sample = [peer for i in range(count) if in_sample(BASE, peer := PeerId(f"peer {i}"), bits)]
    assert len(sample) <= 2**SAMPLE_BITS * 1.5 * MOST_PER_SHARD
    assert count <= size_of_sample(BASE, sample) * 2
    assert size_of_sample(BASE, sample) <= 2 * count


# --- swarms ----------------------------------------------------------------------------------------------------------


def test_a_founder_is_alone_until_somebody_comes() -> None:
    swarm = Swarm()
    swarm.join(1)
    swarm.run(200)
    assert [shards.bits for shards in swarm.peers.values()] == [0]
    assert set(swarm.keys_read) == {BASE}
    swarm.join(1)
    swarm.run(LOOK_SECONDS)
    swarm.assert_all_see_their_group()


def test_in_a_small_swarm_the_base_key_is_all_there_is() -> None:
    swarm = swarm_of(MOST_PER_SHARD, at_once=1)
    assert {key for key in swarm.kept if swarm.under(key)} == {BASE}
    assert set(swarm.bits()) == {0}
    swarm.assert_all_see_their_group()


def test_a_record_that_was_there_and_is_not_is_not_found_where_the_base_key_has_all() -> None:
    swarm = swarm_of(5, at_once=1)
    del swarm.kept[BASE][record(3).peer_id]
    swarm.look(swarm.peers[0])
    assert len(swarm.peers[0].known(swarm.now)) == 4


@pytest.mark.parametrize("count", [21, 60, pytest.param(150, marks=pytest.mark.long)])
def test_peers_agree_about_the_number_of_shards_and_each_finds_all_others(count: int) -> None:
    swarm = swarm_of(count)
    assert max(swarm.bits()) - min(swarm.bits()) <= 1
    assert all(2**shards.bits * LEAST_PER_SHARD <= count for shards in swarm.peers.values())
    assert all(2**shards.bits * MOST_PER_SHARD >= count for shards in swarm.peers.values())
    swarm.assert_all_see_their_group()
    shards = swarm.peers[0]
    assert len(shards.known(swarm.now)) == count == shards.peers


def test_of_many_a_peer_knows_its_group_and_an_attacker_of_one_shard_moves_it_little() -> None:
    """Ids are free and can be chosen by their shard; the group that is flooded is one of several that are counted."""
    swarm = Swarm()
    for number in range(2000):
        swarm.peers[number] = Shards(BASE, record(number).peer_id, swarm.rng, LONGEST_REST_SECONDS)
        swarm.peers[number].bits = 7
        swarm.write(number)
    victim = Shards(BASE, record(5000).peer_id, swarm.rng, LONGEST_REST_SECONDS)
    for _ in range(4):
        swarm.look(victim)
    group = [peer.own for peer in swarm.peers.values() if victim.in_group(peer.own)]
    assert victim.has_groups
    assert 300 < len(group) < 700
    known = {found.peer_id for found in victim.known(swarm.now)}
    assert set(group) < known
    assert len(known) <= MAX_KNOWN
    assert 1400 < victim.peers < 2800
    assert victim.bits == 7
    before, prefix = victim.bits, prefix_of(BASE, victim.own, victim.bits)
    for number in range(300):
        fake = SignedRecord(BASE, PeerId(f"fake {number}"), b"", swarm.now + 1000, b"")
        swarm.kept[shard_key(BASE, before, prefix)][fake.peer_id] = fake
    for _ in range(4):
        swarm.look(victim)
        assert abs(victim.bits - before) <= 1


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda swarm: swarm.join(len(swarm.peers)), id="twice as many at once"),
        pytest.param(lambda swarm: swarm.leave(len(swarm.peers) * 3 // 5), id="less than half at once"),
    ],
)
def test_nobody_becomes_invisible_while_a_swarm_changes_its_size(change: Callable[[Swarm], None]) -> None:
    """Looks of every peer in the quarter of an hour after the change: those that were there find each other."""
    swarm = swarm_of(60)
    change(swarm)
    swarm.run(2 * LOOK_SECONDS)
    for _ in range(10):
        swarm.run(LOOK_SECONDS)
        swarm.assert_all_see_their_group()
    assert max(swarm.bits()) - min(swarm.bits()) <= 1


def test_two_parts_that_grew_apart_and_have_no_shards_of_near_numbers_meet_by_the_base_key() -> None:
    """10 peers read the keys of 0 to 2 bits and 40 those of 2 to 4: neither would count the other ever."""
    swarm = Swarm()
    for number in range(50):
        shards = swarm.peers[number] = Shards(BASE, record(number).peer_id, swarm.rng, LONGEST_REST_SECONDS)
        shards.bits = 1 if number < 10 else 3
        swarm.write(number)
    swarm.run((BASE_EVERY + 4) * LOOK_SECONDS)
    assert max(swarm.bits()) - min(swarm.bits()) <= 1
    swarm.assert_all_see_their_group()


@pytest.mark.long
def test_a_newcomer_reads_and_writes_where_the_others_do_after_its_first_look() -> None:
    swarm = swarm_of(150)
    (usual,) = swarm.bits()
    for number in range(10_000, 10_020):
        shards = Shards(BASE, record(number).peer_id, random.Random(number), LONGEST_REST_SECONDS)
        swarm.look(shards)
        assert abs(shards.bits - usual) <= 1
        assert 100 < shards.peers < 230
        group = {peer.own for peer in swarm.peers.values() if shards.in_group(peer.own)}
        assert group <= {found.peer_id for found in shards.known(swarm.now)}


def test_a_newcomer_does_not_take_a_small_sample_for_all_there_are() -> None:
    """Shards of 5 to 6 leave some twenty under the base key: as many as a swarm without shards may have."""
    swarm = Swarm()
    for number in range(168):
        swarm.peers[number] = Shards(BASE, record(number).peer_id, swarm.rng, LONGEST_REST_SECONDS)
        swarm.peers[number].bits = 5
        swarm.write(number)
    for peer in list(swarm.kept[BASE])[MOST_PER_SHARD - 2 :]:
        del swarm.kept[BASE][peer]
    newcomer = Shards(BASE, PeerId("newcomer"), swarm.rng, LONGEST_REST_SECONDS)
    swarm.look(newcomer)
    assert len(newcomer.known(swarm.now)) == 168


@pytest.mark.parametrize("count", range(1, 13))
def test_few_peers_stay_with_the_base_key_also_if_they_look_like_a_sample(count: int) -> None:
    ids = [number for number in range(10_000) if in_sample(BASE, record(number).peer_id, SAMPLE_BITS + 5)][:count]
    swarm = Swarm()
    for number in ids:
        swarm.peers[number] = Shards(BASE, record(number).peer_id, swarm.rng, LONGEST_REST_SECONDS)
    for _ in range(8):
        swarm.run(LOOK_SECONDS)
        assert set(swarm.bits()) == {0}
    swarm.assert_all_see_their_group()


def test_a_peer_writes_where_others_look_for_it_for_a_while_after_a_change() -> None:
    swarm = swarm_of(40)
    shards, before = swarm.peers[0], swarm.peers[0].keys_to_write()
    swarm.join(100)
    swarm.look(shards)
    assert set(shards.keys_to_write()) > set(before)
    for _ in range(OVERLAP_ANNOUNCEMENTS - 1):
        assert set(before) <= set(shards.keys_to_write())
    assert len(shards.keys_to_write()) <= 2


# --- pace ------------------------------------------------------------------------------------------------------------


def test_many_records_are_followed_by_a_rest() -> None:
    shards = Shards(BASE, PeerId("me"), random.Random(1), LONGEST_REST_SECONDS)
    many = [record(number) for number in range(PACED + 1)]
    shards.received(10**6)
    shards.took(shards.next_look(), {BASE: many[:PACED]}, 100.0)
    assert shards.is_due(100.0)
    shards.received(200_000)
    shards.took(shards.next_look(), {BASE: many}, 100.0)
    assert not shards.is_due(119.9)
    assert shards.is_due(120.1)
    shards.received(10**9)
    shards.took(shards.next_look(), {BASE: many}, 200.0)
    left = RECORD_LIFETIME_SECONDS - RECORD_REFRESH_SECONDS * (1 + RECORD_REFRESH_JITTER)
    assert shards.is_due(200.0 + left - 5.0), "no record that is renewed in time is over before it is read again"


def test_it_is_known_whose_records_were_under_a_key_and_whether_these_are_many() -> None:
    shards = Shards(BASE, PeerId("me"), random.Random(1), LONGEST_REST_SECONDS)
    assert not shards.has_few(BASE)
    assert not shards.has_many(BASE)
    some = tuple(record(number) for number in range(3))
    shards.took(shards.next_look(), {BASE: some}, 0.0)
    assert shards.has_few(BASE)
    assert shards.under(BASE) == some
    shards.took(shards.next_look(), {BASE: [record(number) for number in range(MANY + 1)]}, 0.0)
    assert shards.has_many(BASE)


def test_records_that_are_over_are_forgotten() -> None:
    shards = Shards(BASE, PeerId("me"), random.Random(1), LONGEST_REST_SECONDS)
    shards.took(shards.next_look(), {BASE: [record(1, NOW + 5), record(2, NOW + 50)]}, 0.0)
    assert [found.peer_id for found in shards.known(NOW + 6)] == ["peer 2"]


def test_a_strangers_names_do_not_displace_a_nodes_own() -> None:
    names = ShardsByName(PeerId("me"), LONGEST_REST_SECONDS)
    own = names.of(BASE)
    names.own = frozenset({BASE})
    first = names.of(b"0" * 20)
    for number in range(1, 1 + MAX_NAMES):
        names.of(bytes([number]) * 20)
    assert names.of(BASE) is own
    assert names.of(b"0" * 20) is not first
