"""Demand, as the rule reads it from a snapshot: where clients are and how many sessions there will be."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from blockswarm.routing.place import cgbp
from blockswarm.routing.place.demand import CONCURRENCY_STEPS, clients_of
from blockswarm.routing.place.rule import decide
from blockswarm.routing.place.view import PlanningView
from blockswarm.routing.swarm import Coordinate
from support.placement import POLICY, peer, random_swarm, settle, swarm


def test_clients_are_centroids_or_else_the_peers_themselves():
    lonely = swarm(peer("a", "0:4", x=0.1), peer("b", "4:8", x=0.1), peer("c", "8:12", x=0.3))
    assert [place.vector[0] for place in clients_of(lonely).places] == pytest.approx([0.1, 0.3])
    assert clients_of(lonely).weights == (2.0, 1.0)
    centroid = Coordinate((0.7, 0.0, 0.0), 0.01)
    busy = swarm(peer("a", "0:4", client_centroids=(centroid,), concurrency=2.0), peer("b", "4:12"))
    assert [place.vector[0] for place in clients_of(busy).places] == pytest.approx([0.7])


def test_a_coordinate_of_other_dimensions_is_left_out():
    """One odd record must not stop everybody's planning."""
    odd = peer("b", "4:8", coordinate=Coordinate((0.0,) * 7), client_centroids=(Coordinate((0.1,)),))
    snapshot = swarm(peer("a", "0:4"), odd, peer("c"))
    assert len(clients_of(snapshot).places) == 1
    assert decide(snapshot) is not None


def test_small_changes_of_load_and_place_change_no_decision():
    """V_c and R are quantised: jitter of coordinates below a cell and of load within a step is not seen."""
    rng = random.Random(1)
    snapshot, _ = settle(random_swarm(rng, 16))
    centred = tuple(
        replace(member, coordinate=Coordinate((0.04, 0.0, 0.0), 0.01), concurrency=1.0) for member in snapshot.peers
    )
    snapshot, _ = settle(replace(snapshot, peers=centred))
    jittered = tuple(
        replace(
            member,
            coordinate=Coordinate(tuple(x + rng.uniform(-0.0009, 0.0009) for x in member.coordinate.vector), 0.01),
            concurrency=member.concurrency + rng.uniform(-0.05, 0.05),
        )
        for member in snapshot.peers
    )
    assert decide(replace(snapshot, peers=jittered)) is None


def test_concurrency_never_falls_below_the_sessions_seen():
    """R covers observed sessions where memory allows, and is one of the steps."""
    for sessions in (0.0, 1.0, 7.0, 40.0, 1e6):
        peers = [peer(f"p{i}", f"{4 * i}:{4 * i + 4}", gigabytes=8, concurrency=sessions) for i in range(3)]
        view = PlanningView.of(swarm(*peers), POLICY)
        assert view.concurrency in CONCURRENCY_STEPS
        largest = cgbp.largest_feasible_concurrency(view.model)
        assert view.concurrency <= largest
        above = [step for step in CONCURRENCY_STEPS if step > view.concurrency]
        assert view.concurrency >= sessions or above[0] > largest
