"""Why a chain: the times of the other chains are those of the router, and every unused peer has its true reason."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from blockswarm.client.program.render import describe_explanation, explanation_as_json
from blockswarm.client.survey.explain import (
    MOST_LISTED,
    MOST_PLACES,
    Explanation,
    Unmet,
    WhyUnused,
    explain,
    unused_peers,
)
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.snapshot import CurrentSwarm, PreparedSwarm
from blockswarm.client.swarm.weights import WeightTrust
from blockswarm.routing.route.budget import Meter, SearchBudget
from blockswarm.routing.route.predict import predict_step
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec, PeerState, RequestSpec
from support.known_peers import known_peer

REQUEST = RequestSpec(10, 50)
WHOLE = BlockRange(0, 4)


def peer(name: str, start: int, stop: int, seconds: float = 0.01, **fields: object) -> PeerSpec:
    settings = {"kv_tokens_total": 1000, "kv_tokens_free": 1000, **fields}
    return PeerSpec(PeerId(name), BlockRange(start, stop), ComputeCost(seconds), **settings)  # type: ignore[arg-type]


def known(spec: PeerSpec, rtt_seconds: float = 0.05) -> KnownPeer:
    there = known_peer(spec)
    record = SimpleNamespace(spec=spec, incarnation=1, public_name=f"name of {spec.id}")
    return replace(there, record=record, rtt_seconds=rtt_seconds)  # type: ignore[arg-type]


def meter() -> Meter:
    return Meter(SearchBudget(), lambda: 0.0)


def explained(
    *peers: KnownPeer,
    banned: tuple[str, ...] = (),
    unmet: dict[PeerId, Unmet] | None = None,
    push: bool = False,
    allowed: frozenset[PeerId] | None = None,
) -> Explanation:
    met = {each.record.spec.id: each for each in peers}
    prepared = PreparedSwarm.of(met, 4, push, WeightTrust(dict.fromkeys(range(4), b"r" * 8)), allowed)
    current = CurrentSwarm(prepared, 0.0, [PeerId(name) for name in banned], {}, {}, 1.0, 20.0)
    chosen = current.choose(WHOLE, frozenset(), REQUEST, None, meter(), settle=True)
    return explain(current, unmet or {}, chosen, REQUEST, push, meter)


def reasons(told: Explanation) -> dict[str, WhyUnused]:
    return {each.peer: each.reason for each in told.unused}


def test_each_unused_peer_has_its_reason() -> None:
    wrong = peer("wrong", 0, 4, block_hashes=(b"w" * 8,) * 4)
    full = peer("full", 0, 4, kv_tokens_free=10)
    joins = replace(peer("joins", 0, 4), state=PeerState.JOINING, blocks=None)
    unmet = {
        PeerId(name): Unmet(SimpleNamespace(spec=peer(name, 0, 4), public_name=""), asked)  # type: ignore[arg-type]
        for name, asked in {"silent": True, "unasked": False}.items()
    }
    others = [
        peer("slow", 0, 4, 0.1), peer("banned", 0, 4, 0.001), wrong, full, joins, peer("beyond", 0, 9),
        replace(peer("drains", 0, 4), state=PeerState.DRAINING),
    ]  # fmt: skip
    told = explained(*map(known, [peer("best", 0, 4), *others]), banned=("banned",), unmet=unmet)
    assert [hop.peer for hop in told.chain.hops] == ["best"]
    assert reasons(told) == {
        "slow": WhyUnused.SLOWER,
        "full": WhyUnused.NO_ROOM,
        "banned": WhyUnused.FAILED,
        "wrong": WhyUnused.DOUBTED,
        "drains": WhyUnused.LEAVES,
        "joins": WhyUnused.JOINS,
        "beyond": WhyUnused.FOREIGN,
        "silent": WhyUnused.SILENT,
        "unasked": WhyUnused.NOT_ASKED,
    }
    assert told.counts == dict.fromkeys(reasons(told).values(), 1)


def test_a_peer_that_the_user_has_not_allowed_says_so() -> None:
    told = explained(known(peer("a", 0, 4)), known(peer("b", 0, 4, 0.001)), allowed=frozenset({PeerId("a")}))
    assert reasons(told) == {"b": WhyUnused.NOT_ALLOWED}


def test_what_a_peer_would_cost_more_is_told_by_network_and_computation() -> None:
    """By hand: a hub, 4 blocks; the far one computes 2 ms a block less and is 100 ms farther away."""
    told = explained(known(peer("near", 0, 4)), known(peer("far", 0, 4, 0.008), 0.15))
    (far,) = told.unused
    assert (far.network_seconds, far.compute_seconds) == (pytest.approx(0.1), pytest.approx(-0.008))
    assert told.runner_up is not None
    assert told.runner_up.step_seconds == pytest.approx(told.chain.step_seconds + 0.092)


def test_a_peer_for_a_part_of_the_chain_is_tried_in_each_of_its_places() -> None:
    """Blocks 1 to 3 in the middle of one hop do not fit: that hop would come twice. In two hops they do."""
    whole = explained(known(peer("whole", 0, 4)), known(peer("middle", 1, 3)))
    assert [(each.reason, each.network_seconds) for each in whole.unused] == [(WhyUnused.SLOWER, None)]
    halves = explained(known(peer("left", 0, 2)), known(peer("right", 2, 4)), known(peer("middle", 1, 3)))
    (middle,) = halves.unused
    assert middle.network_seconds == pytest.approx(0.05)  # another visit, by the hub
    assert middle.compute_seconds == pytest.approx(0.0)


@pytest.mark.parametrize("push", [False, True])
def test_the_times_are_those_of_whole_chains(push: bool) -> None:
    """Four hops, each far from here by its own number; each other peer in every place, by predictions of the whole."""
    hops = [known(peer(f"hop{n}", n, n + 1, 0.001), 0.02 + 0.01 * n) for n in range(4)]
    others = [known(peer(f"{a}:{b}", a, b, 0.1), 0.3 - a / 50) for a, b in itertools.combinations(range(5), 2)]
    present = [(each.record.spec, BlockRange(n, n + 1)) for n, each in enumerate(hops)]
    met = {each.record.spec.id: each for each in (*hops, *others)}
    rtts = {name: each.rtt_seconds for name, each in met.items()}
    between = PreparedSwarm.of(met, 4, push, WeightTrust(dict.fromkeys(range(4), b"r" * 8))).rtts

    def seconds(chain: list[tuple[PeerSpec, BlockRange]]) -> float:
        return predict_step(
            chain, tokens=1, client_rtt_seconds=rtts, peer_rtt_seconds=between if push else None
        ).step_seconds

    def placed(spec: PeerSpec, start: int, stop: int) -> float:
        chain = list(present)
        chain[start:stop] = [(spec, BlockRange(start, stop))]
        return seconds(chain)

    told = explained(*hops, *others, push=push)
    assert [hop.peer for hop in told.chain.hops] == [spec.id for spec, _ in present]
    assert len(told.unused) == len(others)
    for each in told.unused:
        assert each.blocks is not None
        assert each.network_seconds is not None
        assert each.compute_seconds is not None
        spec = next(other.record.spec for other in others if other.record.spec.id == each.peer)
        spans = {(each.blocks.start, each.blocks.stop), *((n, n + 1) for n in each.blocks)}
        best = min(placed(spec, *span) for span in spans)
        assert each.network_seconds + each.compute_seconds == pytest.approx(best - seconds(present))


def test_the_work_for_a_peer_does_not_grow_with_the_chain() -> None:
    """Eighty hops of a block each, and peers that have all blocks; each prediction asks for the ways of its hops."""
    blocks, others = 80, 50
    hops = [known(peer(f"hop{n:02}", n, n + 1, 0.001), 0.001) for n in range(blocks)]
    wide = [
        known(peer(f"wide{n:02}", 0, blocks, 1.0, kv_tokens_total=80_000, kv_tokens_free=80_000)) for n in range(others)
    ]
    met = {each.record.spec.id: each for each in (*hops, *wide)}
    prepared = PreparedSwarm.of(met, blocks, True, WeightTrust(dict.fromkeys(range(blocks), b"r" * 8)))
    current = CurrentSwarm(prepared, 0.0, [], {}, {}, 1.0, 20.0)
    chosen = current.choose(BlockRange(0, blocks), frozenset(), REQUEST, None, meter(), settle=True)
    assert len(chosen) == blocks
    asked = []

    def between(a: PeerId, b: PeerId) -> float:
        asked.append((a, b))
        return prepared.rtts(a, b)

    counted = replace(current, prepared=replace(prepared, rtts=between))  # type: ignore[arg-type]
    assert len(unused_peers(counted, {}, chosen, REQUEST, push=True)) == others
    assert len(asked) <= 4 * blocks + others * 2 * MOST_PLACES


def test_the_best_other_chain_is_the_best_of_those_without_one_of_the_peers() -> None:
    told = explained(
        known(peer("a", 0, 2)), known(peer("b", 2, 4)), known(peer("a2", 0, 2, 0.02)), known(peer("b2", 2, 4, 0.03))
    )
    assert told.runner_up is not None
    assert [hop.peer for hop in told.runner_up.hops] == ["a2", "b"]


def test_what_is_told_is_bounded_and_readable_by_programs() -> None:
    peers = [known(peer(f"peer {number:03}", 0, 4, 0.01 + number / 1000)) for number in range(MOST_LISTED + 20)]
    told = explained(*peers)
    assert len(told.unused) == MOST_LISTED
    assert told.counts == {WhyUnused.SLOWER: MOST_LISTED + 19}
    assert [each.peer for each in told.unused[:2]] == ["peer 001", "peer 002"]  # those that come nearest first
    text = describe_explanation(told)
    assert f"and 19 more; all: {MOST_LISTED + 19} {WhyUnused.SLOWER.value}" in text
    assert "runner-up:" in text
    data = json.loads(json.dumps(explanation_as_json(told), allow_nan=False))
    assert data["hops"][0]["wait_seconds"] == 0
    assert data["not_used"][0] == {
        "peer": "peer 001", "name": "name of peer 001", "blocks": [0, 4], "reason": "slower",
        "network_seconds_more": 0.0, "compute_seconds_more": pytest.approx(0.004),
    }  # fmt: skip
    assert data["not_used_counts"] == {"slower": MOST_LISTED + 19}
