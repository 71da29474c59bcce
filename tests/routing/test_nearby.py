"""The hosts that a node is told of: every block covered first, the nearest first, and not the same for all."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from blockswarm.routing.nearby import SPREAD, Asker, HostTable, cover
from blockswarm.routing.swarm import BlockRange, ComputeCost, Coordinate, PeerId, PeerSpec, PeerState
from hypothesis import given
from hypothesis import strategies as st

HERE = Coordinate((0.0, 0.0, 0.0), 0.001, 0.1)
BLOCKS = 12


def host(name: str, start: int, stop: int, away: float | None = 0.0, seconds: float = 0.001) -> PeerSpec:
    place = None if away is None else Coordinate((away, 0.0, 0.0), 0.001, 0.1)
    return PeerSpec(PeerId(name), BlockRange(start, stop), ComputeCost(seconds), coordinate=place)


def best(
    specs: list[PeerSpec], name: str = "me", place: Coordinate | None = HERE, hosts: int = 1, most: int = 99
) -> list[PeerId]:
    return [specs[i].id for i in HostTable.of(specs, BLOCKS).best(Asker(name, place), hosts, most)]


ranges = st.lists(
    st.tuples(st.integers(0, BLOCKS + 2), st.integers(1, 5)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=20
)


@given(ranges, st.integers(1, 4), st.integers(0, 25))
def test_every_block_has_as_many_hosts_as_it_can(taken_from: list[tuple[int, int]], wanted: int, most: int) -> None:
    """Against a count, block by block; and no range is taken that adds nothing to what came before it."""
    taken = cover(taken_from, BLOCKS, wanted, most)
    assert len(taken) == len(set(taken)) <= most
    hosts: Counter[int] = Counter()
    for index in taken:
        inside = [block for block in range(*taken_from[index]) if block < BLOCKS]
        assert any(hosts[block] < wanted for block in inside)
        hosts.update(inside)
    if len(taken) < most:
        for block in range(BLOCKS):
            possible = sum(start <= block < stop for start, stop in taken_from)
            assert hosts[block] >= min(wanted, possible)


def test_a_first_host_for_every_block_comes_before_a_second_one_for_any() -> None:
    near = [host(f"near {i}", 0, 6, 0.01) for i in range(5)]
    far = [host(f"far {i}", 6, 12, 0.2) for i in range(5)]
    told = best([*near, *far], hosts=3)
    assert [name.split()[0] for name in told] == ["near", "far"] * 3


def test_what_counts_is_the_computation_and_a_share_of_the_round_trip() -> None:
    assert best([host("few", 0, 2, 0.05), host("many", 0, 12, 0.1)])[0] == "many"
    assert best([host("slow", 0, 12, 0.01, seconds=0.1), host("fast", 0, 12, 0.05)])[0] == "fast"


def test_a_host_that_is_much_better_comes_first_for_everybody_and_equals_take_turns() -> None:
    """Nodes of one city must not all go to one host there."""
    equals = [host(f"equal {i}", 0, 12, 0.05) for i in range(8)]
    near = host("near", 0, 12, 0.0)
    assert all(best([*equals, near], f"client {i}")[0] == "near" for i in range(100))
    first = Counter(best(equals, f"client {i}")[0] for i in range(400))
    assert len(first) == 8
    assert max(first.values()) < 3 * min(first.values())


def test_equal_questions_get_equal_answers_whatever_the_order_of_the_records() -> None:
    rng = random.Random(1)
    specs = [host(f"peer {i}", start := rng.randrange(10), start + 2, rng.random() / 10) for i in range(60)]
    told = best(specs, hosts=3)
    assert told == best(rng.sample(specs, 60), hosts=3)
    assert told != best(specs, "another", hosts=3)


def test_costs_are_lengthened_by_no_more_than_the_spread() -> None:
    base, longer = host("base", 0, 12, None), host("longer", 0, 12, None, seconds=0.001 + SPREAD * 0.011)
    assert all(best([base, longer], f"client {i}")[0] == "base" for i in range(200))


def test_peers_that_leave_or_join_are_no_hosts_and_draining_ones_the_last_choice() -> None:
    states = {state: replace(host(state.value, 0, 6), state=state) for state in PeerState}
    assert best(list(states.values()), hosts=5) == ["serving", "draining"]
    assert best([replace(states[PeerState.DRAINING], blocks=BlockRange(6, 12)), states[PeerState.SERVING]]) == [
        "serving", "draining",
    ]  # fmt: skip


def test_impossible_places_and_blocks_that_the_model_has_not_are_nothing_to_win_by() -> None:
    nowhere = replace(host("nowhere", 0, 12), coordinate=Coordinate((1e3, 0.0, 0.0), 0.0))
    flat = replace(host("flat", 0, 12), coordinate=Coordinate((0.0,), 0.0))
    beyond = host("beyond", 12, 15)
    honest = host("honest", 0, 12, 0.01)
    assert best([nowhere, flat, beyond, honest], hosts=2)[0] == "honest"
    assert "beyond" not in best([nowhere, flat, beyond, honest], hosts=9)


@pytest.mark.parametrize("place", [None, HERE])
def test_nobody_is_left_out_by_a_place_that_is_not_known(place: Coordinate | None) -> None:
    specs = [host("a", 0, 6, None), host("b", 6, 12, 0.1)]
    assert sorted(best(specs, place=place)) == ["a", "b"]
    assert best([], place=place) == []
