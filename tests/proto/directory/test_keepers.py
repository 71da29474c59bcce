"""The nodes that keep a key are remembered for a while, asked in turns, and not for ever if they hide records."""

from __future__ import annotations

import random

from blockswarm.proto.directory.keepers import (
    FAVOURITES,
    MAX_KEYS,
    Keepers,
    fresh_owners,
    those_that_left_out,
)
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.routing.swarm import PeerId
from hypothesis import given
from hypothesis import strategies as st

REMEMBERED_SECONDS, DISTRUSTED_SECONDS = 600.0, 300.0
KEY, NODES = b"k" * 20, ("a", "b", "c", "d", "e")


def keepers(seed: int = 1) -> Keepers[str]:
    known = Keepers[str](random.Random(seed), REMEMBERED_SECONDS, DISTRUSTED_SECONDS)
    known.found(KEY, NODES, 100.0)
    return known


@given(st.integers())
def test_two_nodes_are_asked_in_turns_and_all_readers_spread_over_the_five(seed: int) -> None:
    known = keepers(seed)
    orders = [known.of(KEY, 100.0) for _ in range(20)]
    assert len({frozenset(order[:FAVOURITES]) for order in orders}) == 1
    assert all(sorted(order) == sorted(NODES) for order in orders)


def test_readers_spread_over_the_five() -> None:
    first = [keepers(seed).of(KEY, 100.0)[0] for seed in range(500)]
    assert all(first.count(node) > 60 for node in NODES)


def test_after_a_while_they_are_sought_again_and_keys_are_bounded() -> None:
    known = keepers()
    assert known.of(KEY, 100.0 + REMEMBERED_SECONDS - 1.0)
    assert not known.of(KEY, 100.0 + REMEMBERED_SECONDS)
    known = keepers()
    for number in range(MAX_KEYS):
        known.found(number.to_bytes(20, "big"), NODES, 100.0)
    assert not known.of(KEY, 100.0)


def test_silent_nodes_are_left_out_until_few_are_left() -> None:
    known = keepers()
    for node in NODES[:3]:
        known.is_silent(KEY, node)
    assert sorted(known.of(KEY, 100.0)) == ["d", "e"]
    known.is_silent(KEY, "d")
    assert not known.of(KEY, 100.0)


@given(st.sampled_from(NODES), st.integers())
def test_a_node_that_hides_records_is_asked_last_for_a_while_also_if_a_walk_finds_it_again(
    node: str, seed: int
) -> None:
    known = keepers(seed)
    known.left_out(node, 100.0)
    known.forget(KEY)
    known.found(KEY, NODES, 200.0)
    assert known.of(KEY, 200.0)[-1] == node
    known.found(KEY, NODES, 100.0 + DISTRUSTED_SECONDS)
    assert sorted(known.of(KEY, 100.0 + DISTRUSTED_SECONDS)) == sorted(NODES)


_OWNERS = st.frozensets(st.sampled_from([PeerId(name) for name in "uvwxyz"]))


@given(st.dictionaries(st.sampled_from(NODES), _OWNERS), _OWNERS)
def test_a_node_has_left_out_what_was_there_and_another_still_has(
    answers: dict[str, frozenset[PeerId]], expected: frozenset[PeerId]
) -> None:
    blamed = those_that_left_out(answers, expected)
    for node, owners in answers.items():
        others = {owner for other in answers if other != node for owner in answers[other]}
        assert (node in blamed) == bool((others - owners) & expected)


def test_records_that_were_not_renewed_are_not_fresh() -> None:
    def until(name: str, expires_at: float) -> SignedRecord:
        return SignedRecord(KEY, PeerId(name), b"", expires_at, b"")

    least = 60 - 1.5 * 20
    assert fresh_owners([until("new", 1000 + least), until("old", 999 + least)], 1000.0) == {"new"}
