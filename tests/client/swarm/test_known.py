"""A client remembers which blocks were served at once: those that were never there together are no whole swarm."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from blockswarm.client.swarm.known import SeenRuns
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec, PeerState
from hypothesis import given
from hypothesis import strategies as st

COST = ComputeCost(1e-3)
BLOCKS = 8
Looks = Sequence[Sequence[tuple[int, int, str]]]
"""For each look, the first block, the end and the format of each peer."""


def seen_in(looks: Looks, state: PeerState = PeerState.SERVING) -> SeenRuns:
    seen = SeenRuns()
    for look in looks:
        seen.note(
            PeerSpec(PeerId(str(at)), BlockRange(start, stop), COST, state, numeric_format=numeric_format)
            for at, (start, stop, numeric_format) in enumerate(look)
        )
    return seen


def test_blocks_of_different_looks_make_no_whole() -> None:
    seen = seen_in([[(0, 4, "float32")], [(4, 8, "float32")]])
    assert not seen.covers(BlockRange(0, 8))
    assert seen.covers(BlockRange(4, 8))


def test_the_less_precise_peers_of_a_look_count_for_those_that_take_them_only() -> None:
    seen = seen_in([[(0, 4, "float32"), (4, 8, "int8")]])
    assert seen.covers(BlockRange(0, 8))
    assert seen.covers(BlockRange(0, 8), "int8")
    assert not seen.covers(BlockRange(0, 8), "float32")


@pytest.mark.parametrize(
    ("state", "serves"), [(PeerState.SERVING, True), (PeerState.DRAINING, True), (PeerState.JOINING, False)]
)
def test_peers_that_serve_nothing_yet_do_not_count(state: PeerState, serves: bool) -> None:
    assert seen_in([[(0, 8, "float32")]], state).covers(BlockRange(0, 8)) == serves


def test_what_was_seen_stays_seen() -> None:
    assert seen_in([[(0, 8, "float32")], [], [(0, 3, "float32")]]).covers(BlockRange(0, 8))
    assert not SeenRuns().covers(BlockRange(0, 1))


ranges = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)).filter(lambda ends: ends[0] < ends[1])
peers = st.builds(lambda ends, name: (*ends, name), ranges, st.sampled_from(["float32", "float16", "int8", "new"]))


@given(st.lists(st.lists(peers, max_size=4), max_size=4), ranges, st.sampled_from([None, "float32", "float16", "nf4"]))
def test_it_says_what_counting_block_by_block_says(
    looks: Looks, ends: tuple[int, int], min_precision: str | None
) -> None:
    enough = {
        None: {"float32", "float16", "int8", "new"}, "float32": {"float32"}, "float16": {"float32", "float16"},
        "nf4": {"float32", "float16", "int8"},
    }[min_precision]  # fmt: skip
    served = [{block for start, stop, name in look if name in enough for block in range(start, stop)} for look in looks]
    expected = any(blocks.issuperset(range(*ends)) for blocks in served)
    assert seen_in(looks).covers(BlockRange(*ends), min_precision) == expected
