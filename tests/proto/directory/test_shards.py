"""Thousands of records over several keys: peers find each other, agree about the number, and read a bounded part.

A DHT is a dictionary here, whose keys hold 900 records each, the first ones that came.
"""

from __future__ import annotations

import functools
import random
from collections import Counter, defaultdict

import pytest
from blockswarm.proto.directory.shards import (
    BASE_EVERY,
    FULL,
    MANY,
    MAX_BITS,
    MAX_KNOWN,
    MAX_NAMES,
    PACED,
    PATIENCE,
    Shards,
    ShardsByName,
    belongs_under,
    bits_for,
    keys_of,
    prefix_of,
    shard_key,
)
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.wire.messages.limits import MAX_RECORDS_PER_KEY
from blockswarm.routing.swarm import PeerId
from hypothesis import given
from hypothesis import strategies as st

BASE = b"b" * 20
NOW = 1e9
MAX_KEYS_A_LOOK = 14


@functools.cache
def record(number: int, expires_at: float = NOW + 60) -> SignedRecord:
    return SignedRecord(BASE, PeerId(f"peer {number}"), b"", expires_at, b"")


class Dht:
    """The records under each key, at most 900; a peer that has a place keeps it."""

    def __init__(self) -> None:
        self.kept: dict[bytes, dict[PeerId, SignedRecord]] = defaultdict(dict)
        self.read_keys: Counter[bytes] = Counter()

    @property
    def reads(self) -> int:
        return self.read_keys.total()

    def write(self, shards: Shards, said: SignedRecord) -> None:
        refused = set()
        for key in shards.keys_to_write():
            kept = self.kept[key]
            if said.peer_id in kept or len(kept) < MAX_RECORDS_PER_KEY:
                kept[said.peer_id] = said
            else:
                refused.add(key)
        shards.wrote(refused)

    def look(self, shards: Shards) -> None:
        todo = shards.next_look()
        assert len(todo.keys) <= MAX_KEYS_A_LOOK
        self.read_keys.update(todo.keys)
        shards.took(todo, {key: tuple(self.kept[key].values()) for key in todo.keys}, 0.0)


LOOKERS = 12


def swarm_of(count: int, rounds: int = 4, seed: int = 1) -> tuple[Dht, dict[PeerId, Shards]]:
    """Peers that look and announce themselves, in turn, until they agree.

    Only some look; of the others each takes one of these for its eyes.  The shards begin anew in each round.
    """
    dht, rng = Dht(), random.Random(seed)
    peers = {record(i).peer_id: Shards(BASE, record(i).peer_id, rng) for i in range(count)}
    everybody = list(peers.values())
    for turn in range(rounds):
        for looker in everybody[:LOOKERS]:
            dht.look(looker)
        for i, shards in enumerate(everybody[LOOKERS:] if turn else []):
            shards.bits = everybody[i % LOOKERS].bits
        base = dht.kept[BASE]
        dht.kept = defaultdict(dict, {BASE: base})
        for i, shards in enumerate(everybody):
            dht.write(shards, record(i))
    return dht, peers


def lookers(peers: dict[PeerId, Shards]) -> list[Shards]:
    return list(peers.values())[:LOOKERS]


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


# --- the number of shards --------------------------------------------------------------------------------------------


@given(st.integers(0, 10**7), st.integers(0, MAX_BITS))
def test_the_number_of_shards_is_bounded_and_comes_to_rest(peers: int, before: int) -> None:
    bits = bits_for(peers, before)
    assert 0 <= bits <= MAX_BITS
    assert bits_for(peers, bits) == bits
    assert peers / 2**bits <= 300 or bits == MAX_BITS
    assert peers / 2**bits >= 100 or bits == 0


@given(st.integers(0, 10**6), st.floats(0.85, 1.15))
def test_a_swarm_that_is_counted_a_little_wrong_does_not_go_to_and_fro(peers: int, error: float) -> None:
    bits = bits_for(peers, 0)
    once = bits_for(peers * error, bits)
    assert bits_for(peers, once) == once
    assert abs(once - bits) <= 1


# --- swarms ----------------------------------------------------------------------------------------------------------


def test_in_a_small_swarm_the_base_key_is_all_there_is() -> None:
    dht, peers = swarm_of(200, rounds=2)
    assert set(dht.kept) == {BASE}
    assert all(shards.bits == 0 for shards in peers.values())
    assert {len(shards.known(NOW)) for shards in lookers(peers)} == {200}
    assert dht.reads == 2 * LOOKERS
    assert all(shards.in_group(other) for shards in lookers(peers) for other in list(peers)[:3])


def test_a_record_that_was_there_and_is_not_is_not_found_where_the_base_key_has_all() -> None:
    dht, peers = swarm_of(5, rounds=1)
    shards = next(iter(peers.values()))
    dht.look(shards)
    del dht.kept[BASE][record(3).peer_id]
    dht.look(shards)
    assert len(shards.known(NOW)) == 4


@pytest.mark.long
@pytest.mark.parametrize("count", [700, 1500, 4000])
def test_peers_agree_about_the_number_of_shards_and_each_finds_its_whole_group(count: int) -> None:
    dht, peers = swarm_of(count)
    numbers = Counter(shards.bits for shards in peers.values())
    assert max(numbers) - min(numbers) <= 1, numbers
    for shards in lookers(peers)[::2]:
        for _ in range(8):
            dht.look(shards)
        assert 0.6 * count < shards.peers < 1.6 * count
        group = {peer for peer in peers if shards.in_group(peer)}
        known = {found.peer_id for found in shards.known(NOW)}
        assert group <= known
        assert len(group) <= (count if count < FULL else 900)
        assert len(known) <= MAX_KNOWN
    found = {found.peer_id for shards in lookers(peers)[::2] for found in shards.known(NOW)}
    assert len(found) > 0.8 * count, "together they know nearly all"


@pytest.mark.long
def test_peers_with_one_bit_less_or_more_are_found_by_their_group() -> None:
    dht, peers = swarm_of(1500)
    usual = Counter(shards.bits for shards in peers.values()).most_common(1)[0][0]
    names = list(peers)
    group_of = functools.partial(prefix_of, BASE, bits=usual - 1)
    odd = [peer for peer in names if peer not in dht.kept[BASE]][:20]
    for number, peer in enumerate(odd):
        for kept in dht.kept.values():
            kept.pop(peer, None)
        bits = usual + (1 if number % 2 else -1)
        dht.kept[shard_key(BASE, bits, prefix_of(BASE, peer, bits))][peer] = record(names.index(peer))
    for peer in odd:
        finder = Shards(BASE, next(n for n in names if n != peer and group_of(n) == group_of(peer)), random.Random(1))
        for _ in range(8):
            dht.look(finder)
        assert finder.bits == usual
        assert peer in {found.peer_id for found in finder.known(NOW)}


@pytest.mark.long
def test_a_newcomer_finds_the_number_of_shards_in_its_second_look() -> None:
    dht, peers = swarm_of(4000)
    usual = Counter(shards.bits for shards in peers.values())
    for number in range(10):
        shards = Shards(BASE, PeerId(f"newcomer {number}"), random.Random(number))
        dht.look(shards)
        dht.look(shards)
        assert min(usual) - 1 <= shards.bits <= max(usual) + 1


@pytest.mark.long
@pytest.mark.parametrize("count", [1300, 2600])
def test_a_newcomer_never_takes_the_swarm_for_a_small_one(count: int) -> None:
    """Also one whose shard has few records, so that it chooses one bit less than the swarm has.

    It read other groups where nobody writes, found nothing, began anew, and wrote its record where nobody reads.
    """
    dht, peers = swarm_of(count)
    usual = Counter(shards.bits for shards in peers.values())
    for number in range(60):
        shards = Shards(BASE, PeerId(f"newcomer {number}"), random.Random(number))
        dht.look(shards)
        dht.look(shards)
        for _ in range(8):
            dht.look(shards)
            assert 0.4 * count < shards.peers < 2.5 * count
            assert min(usual) - 1 <= shards.bits <= max(usual) + 1


@pytest.mark.long
def test_ids_that_crowd_into_one_group_move_the_number_of_shards_by_no_more_than_one() -> None:
    """Ids are free and can be chosen by their shard; the group that is flooded is one of several that are counted."""
    dht, peers = swarm_of(4000)
    victim = next(iter(peers.values()))
    before = victim.bits
    group = prefix_of(BASE, next(iter(peers)), before - 1)
    for bits, prefixes in ((before - 1, [group]), (before, [2 * group, 2 * group + 1])):
        for prefix in prefixes:
            kept = dht.kept[shard_key(BASE, bits, prefix)]
            kept.update({PeerId(f"fake {bits} {prefix} {i}"): record(i) for i in range(900 - len(kept))})
    for _ in range(20):
        dht.look(victim)
    assert abs(victim.bits - before) <= 1


# --- the base key at 900 ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_those_that_have_a_place_under_the_full_base_key_keep_it_and_the_others_ask_rarely() -> None:
    dht, peers = swarm_of(1500)
    there = set(dht.kept[BASE])
    assert len(there) == MAX_RECORDS_PER_KEY
    asked: Counter[bool] = Counter()
    for number in range(10_000, 10_020):
        shards = Shards(BASE, record(number).peer_id, random.Random(number))
        dht.look(shards)
        for _ in range(2 * PATIENCE):
            asked[BASE in shards.keys_to_write()] += 1
            dht.write(shards, record(number))
            dht.look(shards)
        assert (
            record(number).peer_id in dht.kept[shard_key(BASE, shards.bits, prefix_of(BASE, shards.own, shards.bits))]
        )
    assert set(dht.kept[BASE]) == there
    assert asked[True] < 0.3 * asked[False]
    for shards in lookers(peers):
        assert BASE in shards.keys_to_write()


@pytest.mark.long
def test_the_full_base_key_is_asked_as_often_by_many_peers_together_as_by_few() -> None:
    """Else each of the five nodes near it sends megabytes a second among 10,000. A smaller swarm finds it again."""
    count, looks = 3 * MAX_RECORDS_PER_KEY + 300, 10 * BASE_EVERY
    dht, _ = swarm_of(count)
    shards = Shards(BASE, record(count).peer_id, random.Random(1))

    def asked_in(looks: int) -> tuple[int, int]:
        """The looks that read the base key, and the announcements that asked it for a place."""
        reads = writes = 0
        for _ in range(looks):
            before = dht.read_keys[BASE]
            dht.look(shards)
            reads += dht.read_keys[BASE] > before
            writes += BASE in shards.keys_to_write()
            shards.wrote({BASE})
        return reads, writes

    asked_in(3)  # finds out where it is
    reads, _ = asked_in(looks)
    assert 0 < reads <= looks / BASE_EVERY / 3 + 1
    for kept in dht.kept.values():
        for number in range(FULL // 2, count):
            kept.pop(record(number).peer_id, None)
    _, writes = asked_in(3 * BASE_EVERY)
    assert writes
    assert not shards.is_full


# --- pace ------------------------------------------------------------------------------------------------------------


def test_many_records_are_read_from_fewer_nodes_and_after_a_rest() -> None:
    shards = Shards(BASE, PeerId("me"), random.Random(1))
    many = [record(number) for number in range(MANY + 1)]
    assert shards.answers_from(BASE) == 5
    shards.received(10**6)
    shards.took(shards.next_look(), {BASE: many[:PACED]}, 100.0)
    assert shards.is_due(100.0)
    shards.received(500_000)
    shards.took(shards.next_look(), {BASE: many}, 100.0)
    assert not shards.is_due(119.9)
    assert shards.is_due(120.1)
    assert shards.answers_from(BASE) == 2
    shards.received(10**9)
    shards.took(shards.next_look(), {BASE: many}, 200.0)
    assert shards.is_due(240.1), "records live for a minute"


def test_records_that_are_over_are_forgotten() -> None:
    shards = Shards(BASE, PeerId("me"), random.Random(1))
    shards.took(shards.next_look(), {BASE: [record(1, NOW + 5), record(2, NOW + 50)]}, 0.0)
    assert [found.peer_id for found in shards.known(NOW + 6)] == ["peer 2"]


def test_a_strangers_names_do_not_displace_a_nodes_own() -> None:
    names = ShardsByName(PeerId("me"))
    own = names.of(BASE)
    names.own = frozenset({BASE})
    first = names.of(b"0" * 20)
    for number in range(1, 1 + MAX_NAMES):
        names.of(bytes([number]) * 20)
    assert names.of(BASE) is own
    assert names.of(b"0" * 20) is not first
