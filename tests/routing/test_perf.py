"""The performance model against the formulas written out, and its checks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blockswarm.routing.perf import PerfModel, decimal_floor
from blockswarm.routing.swarm import BlockRange, ComputeCost, ModelSpec, PeerId, PeerSpec, RequestSpec, Swarm


def model(**fields: object) -> PerfModel:
    """Two clients, three peers, four blocks; times in plain seconds."""
    base = PerfModel(
        num_blocks=4,
        block_bytes=2.0,
        session_bytes=0.5,
        new_tokens=3,
        memory_bytes=np.array([9.0, 5.0, 1.0]),
        block_limit=np.array([4, 4, 4]),
        decode_seconds=np.array([1.0, 2.0, 4.0]),
        prefill_seconds=np.array([10.0, 20.0, 40.0]),
        rtt_seconds=np.array([[0.1, 0.2, 0.4], [0.3, 0.3, 0.3]]),
        prefill_rtt_seconds=np.array([[0.5, 0.6, 0.8], [0.7, 0.7, 0.7]]),
    )
    return replace(base, **fields)  # type: ignore[arg-type]


CHAIN = ((0, BlockRange(0, 3)), (1, BlockRange(3, 4)))


def test_a_request_on_a_hub_chain_is_prefill_plus_the_remaining_tokens() -> None:
    prefill = (0.5 + 3 * 10) + (0.6 + 1 * 20)
    decode = (0.1 + 3 * 1) + (0.2 + 1 * 2)
    assert model().first_token_seconds(0, CHAIN) == pytest.approx(prefill)
    assert model().request_seconds(0, CHAIN) == pytest.approx(prefill + 2 * decode)


def test_the_hop_form_of_the_cost_adds_up_to_the_same() -> None:
    visit, per_block = model().request_hop_seconds(1)
    hops = sum(visit[j] + per_block[j] * len(blocks) for j, blocks in CHAIN)
    assert hops == pytest.approx(model().request_seconds(1, CHAIN))
    assert model().request_hop_seconds(0)[0] != pytest.approx(model().mean_request_hop_seconds()[0])


def test_push_pays_one_way_delays_once_around() -> None:
    between = np.array([[0, 8.0, 0], [0, 0, 0], [0, 0, 0]])
    prefill = (0.5 + 8 + 0.6) / 2 + 3 * 10 + 20
    decode = (0.1 + 8 + 0.2) / 2 + 3 * 1 + 2
    assert model().push_request_seconds(0, CHAIN, between) == pytest.approx(prefill + 2 * decode)


def test_slots_and_sessions_are_what_fits_beside_the_weights() -> None:
    sizes = np.array([3, 2, 0])
    assert model().cache_slots(sizes).tolist() == [6, 2, 0]
    assert model().full_sessions(sizes).tolist() == [2, 1, 0]
    assert model().used_bytes(sizes, [CHAIN, CHAIN]).tolist() == [9.0, 5.0, 0.0]


def test_floors_are_of_decimals() -> None:
    assert decimal_floor(0.7 / 0.1) == 7
    assert decimal_floor(6.99) == 6


def test_a_snapshot_gives_the_same_model() -> None:
    cost = ComputeCost(
        0.1, decode_per_row=0.01, decode_per_context_token=0.001, prefill_fixed=1.0, prefill_per_token=0.1
    )
    peers = (PeerSpec(PeerId("a"), None, cost, memory_bytes=7.0, max_blocks=2),)
    request = RequestSpec(prompt_tokens=10, new_tokens=4, rows=2)
    built = PerfModel.of_swarm(
        Swarm(ModelSpec(3, 1.0, 0.5), peers), request=request, client_rtt_seconds=np.array([[0.2]])
    )
    assert built.session_bytes == 2 * 14 * 0.5
    assert built.decode_seconds[0] == pytest.approx(0.1 + 2 * 0.01 + 2 * (10 + 4 / 2) * 0.001)
    assert built.prefill_seconds[0] == pytest.approx(1.0 + 20 * 0.1)
    assert built.block_limit.tolist() == [2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_blocks", 0),
        ("session_bytes", 0.0),
        ("block_bytes", float("nan")),
        ("memory_bytes", np.array([1.0, -1.0, 1.0])),
        ("rtt_seconds", np.array([[np.inf, 1.0, 1.0], [1.0, 1.0, 1.0]])),
        ("decode_seconds", np.array([1.0])),
    ],
)
def test_absurd_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        model(**{field: value})
