"""The records that a peer tells a node of: near hosts, their relays, and some by chance that nobody can crowd out."""

from __future__ import annotations

import random

from blockswarm.peer.offer.nearest import BY_CHANCE, NearestHosts
from blockswarm.proto.directory.records import PeerRecord, open_peer_record, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord, sign_record
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.identity import Identity
from blockswarm.routing.nearby import Asker
from blockswarm.routing.swarm import BlockRange, ComputeCost, Coordinate, PeerId, PeerSpec

DIGEST = "ab" * 32
BLOCKS = 8
HERE = Asker("client", Coordinate((0.0, 0.0, 0.0), 0.001))


def record(
    away: float, start: int = 0, stop: int = BLOCKS, relays: tuple[PeerId, ...] = (), key: SwarmKey | None = None
) -> SignedRecord:
    identity = Identity.generate()
    spec = PeerSpec(
        identity.peer_id, BlockRange(start, stop), ComputeCost(0.001), block_hashes=(b"8" * 8,) * (stop - start),
        coordinate=Coordinate((away, 0.0, 0.0), 0.001, 0.1),
    )  # fmt: skip
    said = PeerRecord(DIGEST, spec, addresses=() if relays else ("192.0.2.1:1",), relays=relays)
    return sign_peer_record(identity, said, key, 2e9)


def told(hosts: NearestHosts, records: tuple[SignedRecord, ...], most: int) -> list[SignedRecord]:
    return hosts.choose(records, HERE, most, random.Random(1))


def test_three_of_four_are_near_and_the_fourth_is_anybody() -> None:
    near, far = ([record(away, i % 8, i % 8 + 1) for i in range(n)] for away, n in ((0.001, 40), (0.5, 360)))
    chosen = told(NearestHosts(BLOCKS, None), (*far, *near), 40)
    assert len(chosen) == len(set(chosen)) == 40
    by_chance = sum(each in far for each in chosen)
    assert 0.7 * 40 / BY_CHANCE <= by_chance <= 40 / BY_CHANCE


def test_records_that_say_the_best_of_themselves_do_not_crowd_out_the_others() -> None:
    """Three quarters of the answer are the attacker's, and its share of the rest."""
    liars = {record(0.0) for _ in range(90)}
    honest = [record(0.2) for _ in range(30)]
    hosts, seen = NearestHosts(BLOCKS, None), set[SignedRecord]()
    records = (*liars, *honest)
    for seed in range(40):
        seen |= set(hosts.choose(records, HERE, 40, random.Random(seed)))
    assert len(seen - liars) > 20


def test_a_chain_of_all_blocks_is_told_first() -> None:
    crowd = [record(0.001, 0, 4) for _ in range(50)]
    rare = record(0.9, 4, 8)
    assert rare in told(NearestHosts(BLOCKS, None), (*crowd, rare), 4)[:2]


def test_a_peer_behind_a_relay_comes_with_the_record_of_the_relay() -> None:
    relay = record(0.9, 0, 4)
    behind = record(0.001, relays=(relay.peer_id,))
    others = [record(0.3, 0, 4) for _ in range(50)]
    chosen = told(NearestHosts(BLOCKS, None), (relay, *others, behind), 5)
    assert chosen[:2] == [behind, relay]


def test_records_of_a_private_swarm_are_read_and_what_cannot_be_read_is_told_by_chance_only() -> None:
    key = SwarmKey.generate()
    good = [record(0.001 * number, key=key) for number in range(3)]
    strange = sign_record(Identity.generate(), good[0].key, b"payload", 2e9)
    hosts = NearestHosts(BLOCKS, key)
    chosen = told(hosts, (strange, *good), 4)
    assert set(chosen) == {strange, *good}
    assert open_peer_record(chosen[0], key).spec.coordinate is not None


def test_a_renewed_record_takes_the_place_of_the_old_one() -> None:
    hosts = NearestHosts(BLOCKS, None)
    first, second = record(0.001), record(0.5)
    assert told(hosts, (first, second), 2)[0] == first
    nearer = record(0.0001)
    assert told(hosts, (second, nearer), 2)[0] == nearer
    assert first not in told(hosts, (second, nearer), 2)


def test_a_peer_that_knows_no_blocks_of_the_model_tells_by_chance() -> None:
    records = tuple(record(0.001) for _ in range(6))
    assert set(told(NearestHosts(0, None), records, 6)) == set(records)
