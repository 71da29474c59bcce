"""Round trips between peers: measurements where there are some, else coordinates, else a guess."""

from __future__ import annotations

import pytest
from blockswarm.routing.rtt import RttTable, contradicts
from blockswarm.routing.swarm import BlockRange, ComputeCost, Coordinate, ModelSpec, PeerId, PeerSpec, Swarm


def peer(name: str, coordinate: Coordinate | None = None) -> PeerSpec:
    return PeerSpec(PeerId(name), BlockRange(0, 4), ComputeCost(0.01), coordinate=coordinate)


def test_the_rtt_table_prefers_measurements_and_falls_back_to_coordinates() -> None:
    near, far = Coordinate((0.0, 0.0), 0.01), Coordinate((0.3, 0.4), 0.02)
    peers = (peer("a", near), peer("b", far), peer("c"))
    a, b, c = (p.id for p in peers)
    swarm = Swarm(ModelSpec(4, 1.0, 1.0), peers, rtt_seconds={(a, c): 0.7})
    table = RttTable(swarm, unknown_seconds=0.2)
    assert table(a, b) == pytest.approx(near.rtt_seconds(far))
    assert (table(a, c), table(c, a), table(b, c)) == (0.7, 0.7, 0.2)
    assert table.matrix([b, a])[0, 1] == table(b, a)


def test_coordinates_of_different_dimensions_are_not_compared() -> None:
    flat, deep = Coordinate((0.0, 0.0)), Coordinate((0.3, 0.4, 0.5))
    table = RttTable(Swarm(ModelSpec(4, 1.0, 1.0), (peer("a", flat), peer("b", deep))), unknown_seconds=0.2)
    assert table(PeerId("a"), PeerId("b")) == 0.2


HERE = Coordinate((0.0, 0.0, 0.0), 0.01, 0.1)
A, B = Coordinate((0.1, 0.0, 0.0), 0.01), Coordinate((0.0, 0.1, 0.0), 0.01)


def between(rtts: dict[str, float], client: Coordinate | None = HERE) -> float:
    """The round trip of two peers at A and B, for a client that measured those to itself."""
    swarm = Swarm(ModelSpec(4), (peer("a", A), peer("b", B)))
    measured = {PeerId(name): seconds for name, seconds in rtts.items()}
    return RttTable(swarm, client_rtt_seconds=measured, client=client)(PeerId("a"), PeerId("b"))


def test_what_the_client_measured_bounds_what_coordinates_predict() -> None:
    predicted = A.rtt_seconds(B)
    assert between({"a": 0.12, "b": 0.12}) == pytest.approx(predicted)
    assert between({"a": 0.07, "b": 0.07}) == pytest.approx(0.14)  # no longer than over the client
    assert between({"a": 0.065, "b": 0.235}) == pytest.approx(0.17)  # no shorter than the difference
    assert between({"a": 0.07}) == pytest.approx(predicted)  # nothing is known of the other one


def test_a_peer_that_predicts_its_own_round_trip_wrong_by_2x_is_not_where_it_says() -> None:
    """It says that it is 120 ms away, and is 250: the larger round trip to the client counts instead."""
    assert between({"a": 0.25, "b": 0.12}) == pytest.approx(0.25)
    assert between({"a": 0.05, "b": 0.12}) == pytest.approx(0.12)
    assert between({"a": 0.23, "b": 0.12}) == pytest.approx(A.rtt_seconds(B))  # less than 2x


def test_a_client_that_does_not_know_where_it_is_judges_nobody() -> None:
    lost = Coordinate(HERE.vector, HERE.height, 0.8)
    assert between({"a": 0.25, "b": 0.24}, lost) == pytest.approx(A.rtt_seconds(B))
    assert between({"a": 0.25, "b": 0.24}, None) == pytest.approx(A.rtt_seconds(B))


def test_a_few_milliseconds_contradict_nobody() -> None:
    """Twice as far in a LAN is nothing that matters."""
    near = Coordinate((0.001, 0.0, 0.0), 0.001)
    assert not contradicts(near, Coordinate((0.0, 0.0, 0.0), 0.001, 0.1), 0.0005)
