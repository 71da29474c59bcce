"""The places of clients that a peer tells of: few, of the last while, each client once."""

from __future__ import annotations

import pytest
from blockswarm.peer.offer.client_places import MAX_CLIENTS, ClientPlaces
from blockswarm.routing.swarm import Coordinate, PeerId

MEMORY_SECONDS = 600.0


def at(x: float) -> Coordinate:
    return Coordinate((x, 0.0, 0.0), 0.01)


def axes(places: ClientPlaces, now: float = 1.0) -> list[float]:
    return [round(place.vector[0], 3) for place in places.centroids(now)]


def test_clients_count_once_and_where_they_were_last() -> None:
    places = ClientPlaces(MEMORY_SECONDS)
    for _ in range(50):
        places.note(PeerId("busy"), at(0.5), 0.0)
    places.note(PeerId("busy"), at(0.0), 0.5)
    places.note(PeerId("other"), at(0.1), 0.0)
    assert axes(places) == [0.0, 0.1]


def test_at_most_four_places_stand_for_all() -> None:
    places = ClientPlaces(MEMORY_SECONDS)
    for number in range(40):
        places.note(PeerId(str(number)), at((number % 8) / 10), 0.0)
    assert len(places.centroids(1.0)) == 4


def test_a_client_is_forgotten_after_a_while_and_the_oldest_of_too_many_at_once() -> None:
    places = ClientPlaces(MEMORY_SECONDS)
    places.note(PeerId("early"), at(0.9), 0.0)
    for number in range(MAX_CLIENTS):
        places.note(PeerId(str(number)), at(0.2), 1.0)
    assert axes(places, 2.0) == [0.2]
    assert axes(places, MEMORY_SECONDS + 1.5) == []


@pytest.mark.parametrize(
    "place", [Coordinate((0.0,)), Coordinate((9.0, 0.0, 0.0)), Coordinate((float("nan"), 0.0, 0.0))]
)
def test_an_impossible_place_is_left_out(place: Coordinate) -> None:
    places = ClientPlaces(MEMORY_SECONDS)
    places.note(PeerId("liar"), place, 0.0)
    assert axes(places) == []
