"""Routes are those of the client's own router, and every peer that is not on one is told with a reason."""

from __future__ import annotations

import pytest
from blockswarm.client.dashboard.board.routes import RoutesBoard, measured_hops, routes_board
from blockswarm.client.dashboard.probe.messages import ProbedHop, ProbeOutcome
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.routing.swarm import PeerState
from support.sightings import NOW, known, sighting


def routes_of(
    *peers: KnownPeer, silent: tuple[KnownPeer, ...] = (), outcome: ProbeOutcome | None = None
) -> RoutesBoard:
    seen = sighting(peers, silent, proven=dict.fromkeys(range(8), b"8" * 8))
    measured = measured_hops(outcome) if outcome is not None else {}
    return routes_board(seen, measured, NOW, lambda: 0.0)


def test_the_fastest_chain_is_shown_with_what_follows_if_a_peer_fails() -> None:
    fast, slow, back = (
        known("0:4", "fast", cost=0.001),
        known("0:4", "slow", cost=0.1),
        known("4:8", "back", cost=0.002),
    )
    board = routes_of(fast, slow, back)
    assert [(hop.name, hop.blocks) for hop in board.hops] == [("fast", (0, 4)), ("back", (4, 8))]
    assert [hop.compute_seconds for hop in board.hops] == pytest.approx([0.004, 0.008])
    total = sum(hop.way_seconds + hop.compute_seconds for hop in board.hops) + board.return_seconds
    assert board.step_seconds == pytest.approx(total)
    assert board.exact
    without_fast, without_back = board.alternatives
    assert [blocks for _, blocks in without_fast.chain] == [(0, 4), (4, 8)]
    assert without_fast.step_seconds - board.step_seconds == pytest.approx(0.4 - 0.004)
    assert without_back.failure == "no peer serves blocks 4:8"
    assert without_back.step_seconds is None
    (passed,) = board.not_chosen
    assert (passed.name, passed.reason) == ("slow", "chains with it are slower")
    assert passed.network_seconds_more == pytest.approx(0)
    assert passed.compute_seconds_more == pytest.approx(0.4 - 0.004)


def test_the_times_of_the_hops_make_up_the_step_visits_included() -> None:
    """With peers that are near each other the visits are a third of the step: nobody could tell where they went."""
    board = routes_of(known("0:4", cost=0.001, visit=0.003), known("4:8", cost=0.002, visit=0.005))
    assert [hop.visit_seconds for hop in board.hops] == pytest.approx([0.003, 0.005])
    at_hops = sum(hop.way_seconds + hop.visit_seconds + hop.compute_seconds for hop in board.hops)
    assert at_hops + board.return_seconds == pytest.approx(board.step_seconds)


def test_every_other_peer_has_its_reason() -> None:
    peers = [
        known("0:8", "used", cost=0.0001), known("0:8", "full", kv_free=0), known("0:8", "liar", hashes=b"x" * 8),
        known("6:12", "beyond"), known(None, "joins", state=PeerState.JOINING),
        known("0:8", "drains", state=PeerState.DRAINING),
    ]  # fmt: skip
    board = routes_of(*peers, silent=(known("0:8", "mute"),))
    assert {passed.name: passed.reason for passed in board.not_chosen} == {
        "full": "it has no room for the request now",
        "liar": "its weights are not believed",
        "beyond": "it has blocks that the model does not have",
        "joins": "it serves no blocks yet",
        "drains": "it leaves",
        "mute": "it does not answer",
    }


def test_without_a_chain_the_reason_is_told() -> None:
    board = routes_of(known("0:3"), known("5:8"))
    assert (board.hops, board.failure) == ((), "no peer serves blocks 3:5")
    assert {passed.reason for passed in board.not_chosen} == {"no chain is complete, with it or without"}
    assert routes_of(known("0:8", kv_free=0)).failure


def test_measurements_stand_beside_predictions() -> None:
    peer = known("0:8")
    hop = ProbedHop(peer.record.spec.id, 0, 8, 0.1, 0.25, 0.5)
    board = routes_of(peer, outcome=ProbeOutcome("", 1.0, 0.5, 5.0, (hop,)))
    assert (board.hops[0].measured_queue_seconds, board.hops[0].measured_compute_seconds) == (0.25, 0.5)
    assert routes_of(peer).hops[0].measured_compute_seconds is None
