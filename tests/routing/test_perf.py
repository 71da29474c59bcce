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
        0.1, decode_per_row=0.01, decode_per_context_token=0.001, prefill_fixed=1.0, prefill_per_token=0.1, visit=0.03
    )
    peers = (PeerSpec(PeerId("a"), None, cost, memory_bytes=7.0, max_blocks=2),)
    request = RequestSpec(prompt_tokens=10, new_tokens=4, rows=2)
    built = PerfModel.of_swarm(
        Swarm(ModelSpec(3, 1.0, 0.5), peers), request=request, client_rtt_seconds=np.array([[0.2]])
    )
    assert built.session_bytes.tolist() == [2 * 14 * 0.5]
    assert built.decode_seconds[0] == pytest.approx(0.1 + 2 * 0.01 + 2 * (10 + 4 / 2) * 0.001)
    assert built.prefill_seconds[0] == pytest.approx(1.0 + 20 * 0.1)
    assert built.block_limit.tolist() == [2]
    assert built.rtt_seconds.tolist() == built.prefill_rtt_seconds.tolist() == [[0.2 + 0.03]], "a visit is paid once"


def test_every_peer_is_counted_in_its_own_format() -> None:
    """As in a swarm of that format alone, whatever the others hold; a peer that says nothing has the model's bytes."""
    cost, request = ComputeCost(0.1), RequestSpec(prompt_tokens=3, new_tokens=1)
    formats = {"a": (4.0, 1.0), "b": (1.0, 0.5), "c": (0.0, 0.0)}
    peers = tuple(
        PeerSpec(PeerId(name), None, cost, memory_bytes=40.0, block_bytes=blocks, kv_bytes_per_token=kv)
        for name, (blocks, kv) in formats.items()
    )
    sizes = np.array([2, 3, 4])

    def built(model: ModelSpec, *members: PeerSpec) -> PerfModel:
        rtt = np.full((1, len(members)), 0.1)
        return PerfModel.of_swarm(Swarm(model, members), request=request, client_rtt_seconds=rtt)

    mixed = built(ModelSpec(9, 2.0, 3.0), *peers)
    for index, (peer, (blocks, kv)) in enumerate(zip(peers, formats.values(), strict=True)):
        alone = built(ModelSpec(9, blocks or 2.0, kv or 3.0), replace(peer, block_bytes=0.0, kv_bytes_per_token=0.0))
        assert mixed.full_sessions(sizes)[index] == alone.full_sessions(sizes[[index]])[0]
        assert mixed.cache_slots(sizes)[index] == alone.cache_slots(sizes[[index]])[0]
    assert mixed.full_sessions(sizes).tolist() == [4, 6, 0]
    grown = mixed.with_another(1)
    assert grown.cache_slots(np.append(sizes, 3)).tolist() == [*mixed.cache_slots(sizes), mixed.cache_slots(sizes)[1]]
    unknown = built(ModelSpec(9, 0.0, 0.0), *peers)
    assert unknown.full_sessions(sizes).tolist() == [4, 6, 0], "nothing is planned on a peer of unknown format"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_blocks", 0),
        ("session_bytes", 0.0),
        ("block_bytes", float("nan")),
        ("block_bytes", np.array([1.0, 1.0, 0.0])),
        ("session_bytes", np.array([1.0, 1.0])),
        ("memory_bytes", np.array([1.0, -1.0, 1.0])),
        ("rtt_seconds", np.array([[np.inf, 1.0, 1.0], [1.0, 1.0, 1.0]])),
        ("decode_seconds", np.array([1.0])),
    ],
)
def test_absurd_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        model(**{field: value})
