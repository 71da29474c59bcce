"""The client's own coordinate, and the order in which peers of a large swarm are pinged."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from blockswarm.client.swarm.place import HOSTS_PER_BLOCK, PINGS_A_LOOK, RANDOM_PINGS, ClientPlace, best_hosts, rough
from blockswarm.routing.swarm import BlockRange, ComputeCost, Coordinate, PeerId, PeerSpec, PeerState
from support.known_peers import known_peer

HERE = Coordinate((0.03, 0.01, -0.02), height=0.004)
CORNERS = [Coordinate((x, y, z), 0.002, 0.1) for x in (0.0, 0.06) for y in (0.0, 0.05) for z in (0.0, 0.04)]


def peer(name: str, start: int, stop: int, coordinate: Coordinate | None = None, seconds: float = 0.001) -> PeerSpec:
    return PeerSpec(PeerId(name), BlockRange(start, stop), ComputeCost(seconds), coordinate=coordinate)


def settled() -> ClientPlace:
    """A client that has pinged eight peers."""
    place = ClientPlace(random.Random(1), lambda: 0.0)
    those = [peer(f"corner {number}", 0, 1, corner) for number, corner in enumerate(CORNERS)]
    for spec, corner in zip(those, CORNERS, strict=True):
        place.note(spec.id, HERE.rtt_seconds(corner))
    place.settle({spec.id: known_peer(spec) for spec in those})
    return place


def test_a_client_knows_where_it_is_after_a_few_pings() -> None:
    place = settled().value
    assert place is not None
    for corner in CORNERS:
        assert place.rtt_seconds(corner) == pytest.approx(HERE.rtt_seconds(corner), rel=0.05)


def test_peers_without_coordinates_tell_nothing() -> None:
    place = ClientPlace(random.Random(1), lambda: 0.0)
    place.note(PeerId("old"), 0.1)
    place.settle({PeerId("old"): known_peer(peer("old", 0, 1))})
    assert place.value is None


def test_every_block_gets_its_cheapest_host_before_any_gets_another_one() -> None:
    near = [peer(f"near {number}", 0, 2) for number in range(5)]
    far = [peer(f"far {number}", 2, 4) for number in range(5)]
    rtts = {spec.id: 0.01 for spec in near} | {spec.id: 0.2 for spec in far}
    order = best_hosts([*far, *near], rtts, 4)
    assert [name.split()[0] for name in order] == ["near", "far"] * HOSTS_PER_BLOCK


def test_a_peer_with_more_blocks_or_less_to_compute_is_worth_a_longer_way() -> None:
    large, small = peer("large", 0, 8), peer("small", 0, 2)
    assert best_hosts([small, large], {small.id: 0.05, large.id: 0.1}, 8)[0] == large.id
    slow, fast = peer("slow", 0, 2, seconds=0.1), peer("fast", 0, 2)
    assert best_hosts([slow, fast], {slow.id: 0.05, fast.id: 0.1}, 2)[0] == fast.id


def test_peers_that_do_not_serve_are_not_worth_a_ping() -> None:
    joins = replace(peer("joins", 0, 2), state=PeerState.JOINING)
    beyond = peer("beyond", 4, 9)
    assert best_hosts([joins, beyond], {joins.id: 0.1, beyond.id: 0.1}, 4) == []


def test_the_nearest_come_first_then_some_at_random_and_nobody_twice() -> None:
    rng = random.Random(3)
    specs = [peer(f"peer {number}", 0, 4, Coordinate((rng.random(), 0.0, 0.0), 0.001, 0.1)) for number in range(200)]
    liar = peer("liar", 0, 4, Coordinate((1e6, 0.0, 0.0)))  # a place outside the world
    measured = peer("measured", 0, 4, CORNERS[0])  # says that it is near, and is not
    known = {measured.id: replace(known_peer(measured), rtt_seconds=5.0)}
    order = settled().order([*specs, liar, measured], known, 4)
    assert sorted(order) == sorted(spec.id for spec in [*specs, liar, measured])
    nearest = sorted(specs, key=lambda spec: HERE.rtt_seconds(spec.coordinate))  # type: ignore[arg-type]
    assert set(order[:HOSTS_PER_BLOCK]) <= {spec.id for spec in nearest[:6]}
    assert len(order) > PINGS_A_LOOK > RANDOM_PINGS


def test_others_are_told_a_place_only_roughly() -> None:
    """As planning puts clients into cells of ten milliseconds anyway."""
    told = rough(Coordinate((0.0123, -0.0288, 0.004), 0.0061, 0.2))
    assert told is not None
    assert (*told.vector, told.height) == pytest.approx((0.01, -0.03, 0.0, 0.01))
    assert rough(None) is None
