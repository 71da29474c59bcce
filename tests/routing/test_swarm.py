"""The vocabulary refuses what means nothing, once, so that no decision has to check it."""

from __future__ import annotations

import math

import pytest
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    Coordinate,
    ModelSpec,
    PeerId,
    PeerSpec,
    Placement,
    RequestSpec,
    Swarm,
)

MODEL = ModelSpec(6, 1e6, 100.0)
A, B = PeerId("a"), PeerId("b")


def peer(name: PeerId, blocks: BlockRange | None = None, **fields: object) -> PeerSpec:
    return PeerSpec(name, blocks, ComputeCost(1e-3), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "3:3", "4:3", "-1:2", "1:2:3", "a:b", "1.0:2", "\u00b2:3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="block range"):
        BlockRange.parse(text)


def test_a_range_is_half_open() -> None:
    blocks = BlockRange.parse("2:5")
    assert (list(blocks), len(blocks), str(blocks)) == ([2, 3, 4], 3, "2:5")
    assert [block in blocks for block in (1, 2, 4, 5)] == [False, True, True, False]
    assert blocks.covers(BlockRange(2, 5))
    assert not blocks.covers(BlockRange(1, 3))
    assert not blocks.covers(BlockRange(4, 6))


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_sizes_and_times_are_finite_and_not_negative(wrong: float) -> None:
    for make in (lambda: ModelSpec(1, wrong, 1.0), lambda: ModelSpec(1, 1.0, wrong), lambda: ComputeCost(0.0, wrong)):
        with pytest.raises(ValueError, match="finite"):
            make()


def test_a_step_costs_what_its_rows_and_contexts_cost() -> None:
    cost = ComputeCost(1.0, 0.1, 0.01, prefill_fixed=2.0, prefill_per_token=0.5)
    assert cost.decode_seconds(rows=3, context_tokens=20) == pytest.approx(1.5)
    assert cost.prefill_seconds(4) == pytest.approx(4.0)


def test_a_round_trip_is_the_distance_and_both_heights() -> None:
    here, there = Coordinate((0.0, 0.0), 0.01), Coordinate((0.03, 0.04), 0.02)
    assert here.rtt_seconds(there) == there.rtt_seconds(here) == pytest.approx(0.08)


def test_a_peer_has_a_hash_for_every_block() -> None:
    peer(A, BlockRange(0, 2), block_hashes=(b"1", b"2"))
    with pytest.raises(ValueError, match="1 block hashes for 2 blocks"):
        peer(A, BlockRange(0, 2), block_hashes=(b"1",))


@pytest.mark.parametrize("peers", [(peer(B), peer(A)), (peer(A), peer(A)), (peer(A, BlockRange(5, 7)),)])
def test_a_snapshot_is_in_order_and_within_its_model(peers: tuple[PeerSpec, ...]) -> None:
    with pytest.raises(ValueError, match="peer"):
        Swarm(MODEL, peers)


def test_a_peer_that_has_not_measured_its_visit_is_taken_with_the_median_of_the_others() -> None:
    visits = {"c": 0.0, "a": 0.004, "e": 0.001, "b": 0.1, "d": 0.0}
    peers = [PeerSpec(PeerId(name), None, ComputeCost(0.02, visit=visit)) for name, visit in visits.items()]
    swarm = Swarm.of_announced(MODEL, peers, 7.0)
    assert [spec.cost.visit for spec in swarm.peers] == [0.004, 0.1, 0.004, 0.004, 0.001]
    assert all(spec.cost.decode_fixed == 0.02 for spec in swarm.peers)
    assert swarm.now_seconds == 7.0
    nobody = [peer(PeerId(name)) for name in "ba"]
    assert [spec.cost.visit for spec in Swarm.of_announced(MODEL, nobody).peers] == [0.0, 0.0], "nothing is invented"


def test_a_peer_is_found_by_its_id() -> None:
    swarm = Swarm(MODEL, (peer(A), peer(B)))
    assert swarm.peer(B) is swarm.peers[1]
    with pytest.raises(KeyError):
        swarm.peer(PeerId("c"))


def test_a_request_reserves_its_rows_in_full_unless_it_says_otherwise() -> None:
    request = RequestSpec(100, 20, rows=3)
    assert request.kv_tokens_per_block == 360
    assert request.mean_context_tokens == pytest.approx(330)
    assert RequestSpec(100, 20, rows=3, kv_tokens=64).kv_tokens_per_block == 64
    for wrong in ({"rows": 0}, {"kv_tokens": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            RequestSpec(1, 1, **wrong)


def test_the_blocks_that_nobody_hosts_are_named() -> None:
    placement = Placement({A: BlockRange(1, 3), B: BlockRange(2, 4)})
    assert placement.missing_blocks(6) == (0, 4, 5)
