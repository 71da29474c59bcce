"""The map against brute force: who serves a block, how much room it has, and which block is the weakest."""

from __future__ import annotations

from blockswarm.client.dashboard.board.coverage import SESSION_TOKENS, CoverageMap, coverage_map
from blockswarm.client.dashboard.board.peers import PeerRow, peer_rows
from blockswarm.routing.swarm import PeerState
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sightings import FACTS, known, sighting


def rows_of(*peers: object, **options: object) -> tuple[PeerRow, ...]:
    return peer_rows(FACTS, sighting(peers, **options), {})  # type: ignore[arg-type]


def map_of(*peers: object, **options: object) -> CoverageMap:
    return coverage_map(FACTS.num_blocks, rows_of(*peers, **options))


PEERS = st.lists(
    st.tuples(
        st.integers(0, 7), st.integers(1, 8), st.integers(0, 40_000), st.sampled_from(PeerState), st.booleans()
    ),
    max_size=8,
)  # fmt: skip


@given(PEERS)
@settings(max_examples=60, deadline=None)
def test_servers_and_room_of_each_block_are_those_of_the_peers_that_serve_it(peers: list[tuple]) -> None:
    made = [
        (known(f"{start}:{min(start + size, 8)}", state=state, kv_free=free), answers)
        for start, size, free, state, answers in peers
    ]
    shown = map_of(*(p for p, answers in made if answers), silent=[p for p, answers in made if not answers])
    serving = [p.record.spec for p, answers in made if answers and p.record.spec.state is PeerState.SERVING]
    for column in shown.columns:
        hosts = [spec for spec in serving if column.block in spec.blocks]
        assert column.servers == len(hosts)
        assert column.kv_tokens_free == sum(spec.kv_tokens_free // len(spec.blocks) for spec in hosts)
        sessions = sum(spec.kv_tokens_free // len(spec.blocks) // SESSION_TOKENS for spec in hosts)
        assert column.free_sessions == sessions
        assert (column.block in shown.missing) == (not hosts)
    assert shown.weakest.servers == min(column.servers for column in shown.columns)
    assert shown.free_sessions == min(column.free_sessions for column in shown.columns)
    assert len(shown.rows) == len(made)


def test_of_equally_served_blocks_the_one_with_least_room_is_the_weakest() -> None:
    shown = map_of(known("0:4", kv_free=8192), known("4:8", kv_free=400))
    assert (shown.weakest.block, shown.weakest.servers, shown.weakest.kv_tokens_free) == (4, 1, 100)
    assert shown.complete


def test_peers_that_reach_beyond_the_model_serve_nobody_and_are_cut_on_the_map() -> None:
    shown = map_of(known("6:12"), known("9:12"), known("0:8"))
    assert [(row.start, row.stop, row.serves) for row in shown.rows] == [(0, 8, True), (6, 8, False)]
    assert [column.servers for column in shown.columns] == [1] * 8


def test_a_swarm_without_peers_misses_every_block() -> None:
    shown = map_of()
    assert shown.missing == tuple(range(8))
    assert shown.free_sessions == 0
    assert shown.rows == ()
