"""A chain's report: where the time of the steps went."""

from __future__ import annotations

from typing import Any

import pytest
from blockswarm.client.chain.machine.events import HopChoice
from blockswarm.client.chain.timing_log import TimingLog
from blockswarm.client.model.guess.policy import as_short
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.frames import HopTiming, WireStep
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange, PeerId
from blockswarm.routing.trust import Evidence


def choice(name: str, blocks: BlockRange, **facts: Any) -> HopChoice:
    return HopChoice(PeerAddress(PeerId(name), "10.0.0.1:1"), blocks, b"", **facts)


def wire_step(seq: int, epoch: int, acked_seq: int = 0) -> WireStep:
    return WireStep(epoch, seq, StepPlan((RowSlice(0, seq, 1, 1),)), b"", acked_seq, 60.0)


def test_a_report_names_what_each_hop_computes_in_and_why_it_is_believed() -> None:
    log = TimingLog()
    chain = (
        choice("a", BlockRange(0, 2), numeric_format="float32", weights=Evidence.PROVEN),
        choice("b", BlockRange(2, 4), numeric_format="int8", weights=Evidence.UNDECIDED),
    )
    log.add(0.0, 1.0, tuple(HopTiming(name, 0.2, 0.3, 0.4) for name in "ab"))
    report = log.report(chain, lambda peer: 0.0)
    assert [hop.numeric_format for hop in report.hops] == ["float32", "int8"]
    assert [hop.weights for hop in report.hops] == [Evidence.PROVEN, Evidence.UNDECIDED]


def test_the_last_trip_says_what_a_further_token_costs() -> None:
    """Which is its share of what makes a step of some tokens longer, the step of one being another kind."""
    log = TimingLog()
    assert log.last_trip(lambda tokens: 1.0) is None
    log.add(10.0, 10.5, (HopTiming("a", 3.0, 3.1, 3.3), HopTiming("b", 7.0, 7.0, 7.05)), tokens=17)
    trip = log.last_trip(lambda tokens: 0.2 if tokens == 1 else 0.2 + 0.16 + 0.01 * (tokens - 1))
    assert trip is not None
    assert (trip.tokens, trip.seconds) == (17, 0.5)
    assert trip.queue_seconds == pytest.approx(0.1)
    assert trip.compute_seconds == pytest.approx(0.25)
    assert trip.network_seconds == pytest.approx(0.15)
    assert trip.row_seconds == pytest.approx(0.02)
    assert trip.predicted_seconds == 0.2
    cheaper = log.last_trip(lambda tokens: 1.0 / tokens)
    assert cheaper is not None
    assert cheaper.row_seconds == 0.0


@pytest.mark.parametrize("lie", [1e12, -1e12])
def test_no_peer_has_spent_more_than_the_trip_took(lie: float) -> None:
    """Believed, a trip of ages would have the client wait for guesses longer than any clock can say."""
    log = TimingLog()
    log.add(10.0, 10.5, (HopTiming("a", 3.0, 3.0 + lie, 3.1), HopTiming("b", 7.0, 7.0, 7.0 + lie)), tokens=100)
    trip = log.last_trip(lambda tokens: 0.1)
    assert trip is not None
    assert 0.0 <= trip.queue_seconds <= trip.seconds
    assert 0.0 <= trip.compute_seconds <= trip.seconds
    assert as_short(trip).seconds <= trip.seconds


def test_a_step_of_guesses_is_no_trip_of_the_text() -> None:
    log = TimingLog()
    log.add(10.0, 10.5, (HopTiming("a", 3.0, 3.1, 3.3),))
    log.add(10.1, 11.5, (HopTiming("a", 3.0, 4.1, 4.3),), tokens=9, guessed=True)
    trip = log.last_trip(lambda tokens: 1.0)
    assert trip is not None
    assert (trip.tokens, trip.seconds) == (1, 0.5)
    assert log.answered_steps == 2


def test_a_trip_was_crowded_if_any_of_its_peers_was() -> None:
    log = TimingLog()
    for crowded in (True, False):
        log.add(10.0, 10.5, (HopTiming("a", 3.0, 3.1, 3.3), HopTiming("b", 7.0, 7.0, 7.05, crowded)))
        trip = log.last_trip(lambda tokens: 0.0)
        assert trip is not None
        assert trip.crowded == crowded


def test_a_step_that_is_sent_again_counts_once_and_from_its_latest_sending() -> None:
    log = TimingLog()
    for seq in (1, 2):
        log.sent(wire_step(seq, epoch=1), 10.0)
    log.answered(wire_step(1, epoch=1), 11.0, guessed=False)
    for seq in (1, 2):
        log.sent(wire_step(seq, epoch=2), 20.0)
    log.answered(wire_step(1, epoch=2), 20.1, guessed=False)
    log.answered(wire_step(2, epoch=1), 20.2, guessed=False)  # of the chain before, so not an answer to what was sent
    assert log.answered_steps == 1
    log.answered(wire_step(2, epoch=2), 23.0, guessed=False)
    log.sent(wire_step(3, epoch=2, acked_seq=2), 30.0)
    log.answered(wire_step(2, epoch=2), 30.1, guessed=False)
    assert log.answered_steps == 2
    trip = log.last_trip(lambda tokens: 0.0)
    assert trip is not None
    assert trip.seconds == 3.0
