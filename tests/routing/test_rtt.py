"""Round trips between peers: measurements where there are some, else coordinates, else a guess."""

from __future__ import annotations

import pytest
from blockswarm.routing.rtt import RttTable
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
