"""Failures are remembered by run: each one longer, and all of them not for ever."""

from __future__ import annotations

import pytest
from blockswarm.client.swarm.bans import MOST_RUNS, Bans
from blockswarm.client.timing import ClientTiming
from blockswarm.proto.errors import DeadlineExceeded, PeerBusy, PeerUnavailable, RemoteProtocolError
from blockswarm.routing.swarm import PeerId

TIMING = ClientTiming(ban_seconds=10.0, max_ban_seconds=60.0, forget_failures_seconds=100.0)
UNIX = 1_800_000_000.0
RUN = PeerId("a"), 1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def bans_at(clock: Clock) -> Bans:
    return Bans(lambda: UNIX + clock.now, clock, TIMING)


def banned_seconds(bans: Bans, clock: Clock) -> float:
    """How long the run is banned from now on, to the second."""
    seconds = 0.0
    while bans.is_banned(RUN):
        clock.now += 1.0
        seconds += 1.0
    return seconds


def test_each_failure_is_remembered_longer_than_the_one_before_up_to_a_ceiling() -> None:
    clock = Clock()
    bans = bans_at(clock)
    lengths = []
    for _ in range(5):
        bans.note(RUN, PeerUnavailable("gone"))
        lengths.append(banned_seconds(bans, clock))
    assert lengths == [10.0, 20.0, 40.0, 60.0, 60.0]
    assert bans.failures(RUN) == 5


def test_a_run_that_has_not_failed_for_long_begins_anew() -> None:
    clock = Clock()
    bans = bans_at(clock)
    bans.note(RUN, PeerUnavailable("gone"))
    clock.now += 111.0
    assert bans.failures(RUN) == 0
    bans.note(RUN, PeerUnavailable("gone"))
    assert banned_seconds(bans, clock) == 10.0


def test_another_start_is_another_chance() -> None:
    bans = bans_at(Clock())
    bans.note(RUN, PeerUnavailable("gone"))
    assert bans.is_banned(RUN)
    assert not bans.is_banned((RUN[0], 2))


def test_a_full_peer_has_not_failed() -> None:
    clock = Clock()
    bans = bans_at(clock)
    bans.note(RUN, PeerBusy(5.0))
    assert bans.full_until(RUN) == UNIX + 1005.0
    assert not bans.is_banned(RUN)
    assert bans.failures(RUN) == 0
    clock.now += 5.0
    assert bans.full_until(RUN) is None


def test_silence_is_excused_once_and_other_failures_are_not() -> None:
    clock = Clock()
    bans = bans_at(clock)
    bans.note(RUN, RemoteProtocolError("nonsense"))
    assert not bans.excusable()
    bans.note(RUN, DeadlineExceeded("silent"))
    assert bans.excusable() == {RUN}
    bans.excuse(RUN)
    assert not bans.is_banned(RUN)
    assert bans.failures(RUN) == 2
    bans.note(RUN, DeadlineExceeded("silent"))
    assert bans.is_banned(RUN)
    assert not bans.excusable()


def test_a_run_that_was_pardoned_while_it_was_asked_needs_no_excuse() -> None:
    bans = bans_at(Clock())
    bans.note(RUN, DeadlineExceeded("silent"))
    (run,) = bans.excusable()
    bans.pardon([RUN[0]])
    bans.excuse(run)
    assert bans.failures(RUN) == 0


def test_a_clock_that_is_set_back_keeps_nobody_banned() -> None:
    unix, clock = Clock(), Clock()
    bans = Bans(unix, clock, TIMING)
    bans.note(RUN, PeerUnavailable("gone"))
    unix.now -= 3600.0
    clock.now += 11.0
    assert not bans.is_banned(RUN)


def test_the_innocent_are_pardoned_as_if_nothing_had_been() -> None:
    bans = bans_at(Clock())
    bans.note(RUN, PeerUnavailable("gone"))
    bans.note((PeerId("b"), 1), PeerUnavailable("gone"))
    bans.pardon([RUN[0]])
    assert not bans.is_banned(RUN)
    assert bans.failures(RUN) == 0
    assert bans.is_banned((PeerId("b"), 1))


@pytest.mark.long
def test_what_is_remembered_is_bounded() -> None:
    bans = bans_at(Clock())
    for incarnation in range(MOST_RUNS + 10):
        bans.note((RUN[0], incarnation), PeerUnavailable("gone"))
    assert len(bans.excusable()) <= MOST_RUNS
    assert bans.is_banned((RUN[0], MOST_RUNS + 9))
