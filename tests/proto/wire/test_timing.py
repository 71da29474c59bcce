"""How the times of the protocol depend on each other: a change of one shows here what else it breaks."""

from __future__ import annotations

import math

import pytest
from blockswarm.client.timing import ChainTiming
from blockswarm.proto.wire import timing
from blockswarm.proto.wire.timing import (
    ANSWER_SECONDS,
    CAPABILITY_SECONDS,
    CLAIM_LIFETIME_SECONDS,
    CLOCK_TOLERANCE_SECONDS,
    DRAIN_SECONDS,
    HANDSHAKE_SECONDS,
    HELLO_CLOCK_SKEW_SECONDS,
    KEEPALIVE_ANSWER_SECONDS,
    KEEPALIVE_SECONDS,
    LEAF_LIFETIME_SECONDS,
    LEASE_SECONDS,
    MAX_CAPABILITY_SECONDS,
    MAX_RECORD_LIFETIME_SECONDS,
    MAX_STEP_SECONDS,
    MAX_WAIT_SECONDS,
    MIN_KEEPALIVE_SECONDS,
    PEER_MEMORY_SECONDS,
    PREVIOUS_STREAM_SECONDS,
    PUSH_CONNECT_SECONDS,
    RANK_MEMORY_SECONDS,
    RECORD_LIFETIME_SECONDS,
    RECORD_REFRESH_JITTER,
    RECORD_REFRESH_SECONDS,
    RELAY_ACCEPT_SECONDS,
    RELAY_IDLE_SECONDS,
    ROOT_LIFETIME_SECONDS,
    TRANSFER_SILENCE_SECONDS,
    UNFED_ROOM_SECONDS,
    UNUSED_ROOM_SECONDS,
)
from blockswarm.routing.timing import MAX_FORECAST_SECONDS

LONGEST_REFRESH_SECONDS = RECORD_REFRESH_SECONDS * (1 + RECORD_REFRESH_JITTER)


@pytest.mark.parametrize("name", timing.__all__)
def test_times_are_positive_and_finite(name: str):
    value = getattr(timing, name)
    assert isinstance(value, float)
    assert 0 < value < math.inf


def test_a_peer_stays_visible_when_one_announcement_is_lost():
    assert 2 * LONGEST_REFRESH_SECONDS < RECORD_LIFETIME_SECONDS


def test_a_peer_that_may_open_sessions_stays_visible_whatever_its_clock():
    """A clock that is behind shortens the life of its records, one that is ahead lengthens it."""
    assert LONGEST_REFRESH_SECONDS + HELLO_CLOCK_SKEW_SECONDS < RECORD_LIFETIME_SECONDS
    longest_life = MAX_RECORD_LIFETIME_SECONDS + CLOCK_TOLERANCE_SECONDS
    assert longest_life >= RECORD_LIFETIME_SECONDS + HELLO_CLOCK_SKEW_SECONDS


def test_a_renewed_record_is_accepted_after_a_restart():
    """The new record ends later than one that was issued a moment ago, and still within bounds."""
    assert RECORD_LIFETIME_SECONDS < MAX_RECORD_LIFETIME_SECONDS


def test_no_session_lasts_longer_than_room_is_forecast():
    assert MAX_FORECAST_SECONDS >= MAX_CAPABILITY_SECONDS


def test_planning_remembers_a_peer_longer_than_its_record_lives():
    assert RECORD_LIFETIME_SECONDS + LONGEST_REFRESH_SECONDS < PEER_MEMORY_SECONDS


def test_a_claim_can_be_confirmed_by_records_that_were_issued_after_it():
    """By the time it is judged a record that is later by any clock can be there; it lives for several judgements."""
    assert CLOCK_TOLERANCE_SECONDS < RECORD_REFRESH_SECONDS
    assert CLAIM_LIFETIME_SECONDS > RECORD_LIFETIME_SECONDS + 2 * LONGEST_REFRESH_SECONDS


def test_a_draining_peer_tells_of_itself_before_it_goes():
    assert DRAIN_SECONDS > 2 * LONGEST_REFRESH_SECONDS


def test_a_capability_is_accepted_by_a_peer_whose_clock_is_behind():
    assert CAPABILITY_SECONDS + HELLO_CLOCK_SKEW_SECONDS < MAX_CAPABILITY_SECONDS


def test_a_capability_outlives_the_wait_for_room_and_a_step():
    assert CAPABILITY_SECONDS > MAX_WAIT_SECONDS + MAX_STEP_SECONDS + HELLO_CLOCK_SKEW_SECONDS


def test_certificates_are_valid_for_every_clock_that_may_open_sessions():
    """They have no begin, and half of their life left."""
    assert HELLO_CLOCK_SKEW_SECONDS < LEAF_LIFETIME_SECONDS / 2


def test_a_session_outlives_no_certificate():
    """A leaf has at least half of its life left when a connection is made; a root is made for the connection."""
    assert CAPABILITY_SECONDS < LEAF_LIFETIME_SECONDS / 2 < ROOT_LIFETIME_SECONDS


def test_a_session_that_comes_again_is_answered_before_its_client_gives_up():
    """The peer may have to wait for the previous stream to close first."""
    assert PREVIOUS_STREAM_SECONDS < ANSWER_SECONDS


@pytest.mark.parametrize("dialler_seconds", [ANSWER_SECONDS, PUSH_CONNECT_SECONDS])
def test_the_dialling_side_gives_up_before_the_listening_one(dialler_seconds: float):
    """So the side that can choose another way is the one that learns of it, with the reason."""
    assert dialler_seconds < HANDSHAKE_SECONDS


def test_a_lease_ends_before_the_peer_takes_the_room_back():
    """The last peer's answer may take its time, and the first step has to cross the network."""
    assert LEASE_SECONDS + ANSWER_SECONDS < UNUSED_ROOM_SECONDS


def test_a_session_that_is_fed_by_a_peer_has_time_for_the_peers_before_it():
    """All of them compute the first step first, and its client may have held a lease before it began."""
    assert LEASE_SECONDS + 2 * UNUSED_ROOM_SECONDS < UNFED_ROOM_SECONDS


def test_a_session_keeps_its_rank_over_the_end_of_a_lease():
    """It gives its room back and joins again, perhaps after some refusals."""
    assert 2 * LEASE_SECONDS < RANK_MEMORY_SECONDS
    assert UNUSED_ROOM_SECONDS < RANK_MEMORY_SECONDS


def test_a_client_waits_for_a_last_part_while_some_that_stand_still_lose_their_turns():
    assert ChainTiming().last_part_seconds > 3 * TRANSFER_SILENCE_SECONDS


def test_pings_are_never_faster_than_a_server_allows():
    assert MIN_KEEPALIVE_SECONDS < KEEPALIVE_SECONDS


def test_a_dead_connection_is_found_before_the_record_of_its_peer_is_over():
    assert KEEPALIVE_SECONDS + KEEPALIVE_ANSWER_SECONDS < RECORD_LIFETIME_SECONDS


def test_a_relayed_connection_that_lives_is_never_idle():
    """Both ends ping each other through it, and a ping may be answered late."""
    assert KEEPALIVE_SECONDS + KEEPALIVE_ANSWER_SECONDS < RELAY_IDLE_SECONDS


def test_a_relay_gives_up_on_a_silent_peer_before_its_own_caller_is_dropped():
    assert RELAY_ACCEPT_SECONDS < HANDSHAKE_SECONDS
