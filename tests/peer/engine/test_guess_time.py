"""Time for guesses, in made-up steps of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from blockswarm.peer.engine.guess_time import CROWDED_SHARE, DELAYED_SHARE, EngineStep, GuessTime


class Session:
    """Any hashable object is one."""


def texts(sessions: Sequence[Session], seconds: float, ended_at: float) -> EngineStep:
    """A step with one token of each text."""
    return EngineStep(sessions, {}, len(sessions), ended_at - seconds, ended_at, {})


def guesses_of(session: Session, seconds: float, ended_at: float, waiting: Mapping[Session, float]) -> EngineStep:
    """A step with guesses only, during which the texts of other sessions arrived."""
    return EngineStep((), {session: 8}, 8, ended_at - seconds, ended_at, waiting)


def test_what_others_take_is_a_share_of_the_time() -> None:
    """Two sessions that share steps of 10 ms, one every 40 ms, are computed for a quarter of the time each."""
    time, mine, other = GuessTime(), Session(), Session()
    for number in range(200):
        time.note(texts([mine, other], 0.01, 0.04 * number))
    assert time.others(mine, 8.0) == pytest.approx(0.25, rel=0.1)
    assert time.others(Session(), 8.0) == pytest.approx(0.5, rel=0.1)
    assert not time.is_lacking(mine, 8.0)


def test_a_session_that_is_alone_always_has_time_for_guesses() -> None:
    time, mine = GuessTime(), Session()
    for number in range(100):
        time.note(texts([mine], 0.1, 0.1 * number))
        time.note(guesses_of(mine, 0.05, 0.1 * number, {mine: 0.1 * number - 0.04}))
        assert not time.is_lacking(mine, 0.1 * number)
    assert time.is_lacking(Session(), 10.0)
    assert time.others(Session(), 10.0) > CROWDED_SHARE


def test_crowds_are_forgotten_when_they_go() -> None:
    time, mine = GuessTime(), Session()
    for number in range(100):
        time.note(texts([Session()], 0.1, 0.1 * number))
    assert time.is_lacking(mine, 10.0)
    assert not time.is_lacking(mine, 13.0)


def test_steps_of_guesses_only_change_no_share() -> None:
    time, mine = GuessTime(), Session()
    time.note(guesses_of(Session(), 100.0, 1.0, {}))
    assert time.others(mine, 1.0) == 0.0


def test_guesses_pause_while_the_text_of_another_session_waits_for_them_too_long_and_come_back() -> None:
    """Its text is computed for 5 ms of every 50 and waits for guesses for 4 of them: 8 %, more than the promise."""
    time, mine, other = GuessTime(), Session(), Session()
    for number in range(100):
        now = 0.05 * number
        time.note(texts([other], 0.005, now))
        if not time.is_lacking(mine, now):
            time.note(guesses_of(mine, 0.010, now + 0.045, {other: now + 0.041}))
        assert time.most_delayed(mine, now + 0.05) < 2 * DELAYED_SHARE
        assert time.others(mine, now) < CROWDED_SHARE
    assert time.most_delayed(mine, 5.0) > DELAYED_SHARE / 2, "guesses come as long as nobody waits too long for them"
    assert not time.is_lacking(mine, 20.0)


def test_a_session_that_guesses_bears_the_guesses_of_others() -> None:
    time, mine, other = GuessTime(), Session(), Session()
    time.note(guesses_of(other, 0.010, 0.5, {}))
    time.note(guesses_of(mine, 1.0, 2.0, {other: 1.0}))
    assert not time.is_lacking(mine, 2.0)
    time.note(guesses_of(mine, 1.0, 3.0, {Session(): 2.0}))
    assert not time.is_lacking(mine, 3.0), "a session that nobody holds is forgotten"


def test_a_session_that_tries_a_guess_now_and_then_bears_none() -> None:
    """As clients do whose guesses do not pay: a single guess is no reason to wait for those of others ever after."""
    time, mine, other = GuessTime(), Session(), Session()
    for number in range(40):
        time.note(texts([other], 0.005, 0.05 * number))
    time.note(EngineStep([other], {other: 1}, 2, 2.0, 2.006, {}))
    time.note(guesses_of(mine, 1.0, 4.0, {other: 3.0}))
    assert time.is_lacking(mine, 4.0)


def test_a_session_that_has_to_pause_still_makes_guesses() -> None:
    """Else two that wait for each other's guesses would have each other pause again and again."""
    time, mine, other = GuessTime(), Session(), Session()
    time.note(guesses_of(mine, 0.01, 0.1, {}))
    time.note(texts([Session()], 10.0, 10.0))
    assert time.is_lacking(mine, 10.0)
    for number in range(100):
        time.note(texts([mine], 0.005, 10.0 + 0.05 * number))
    time.note(guesses_of(other, 1.0, 20.0, {mine: 19.0}))
    assert not time.is_lacking(other, 20.0)
    for number in range(100):
        assert not time.is_lacking(mine, 20.0 + 0.05 * number)
        time.note(texts([mine], 0.005, 20.0 + 0.05 * number))
    time.note(guesses_of(other, 1.0, 30.0, {mine: 29.0}))
    assert time.is_lacking(other, 30.0), "it could have made some, and did not"


def test_a_text_in_a_step_with_guesses_of_another_waits_for_their_share_of_it() -> None:
    """A step takes 10 ms, with 8 guesses 18; what guesses add is told from what the step takes anyway."""
    time, mine, other = GuessTime(), Session(), Session()
    for number in range(100):
        time.note(texts([mine, other], 0.010, 0.1 * number))
    time.note(EngineStep([mine, other], {mine: 8}, 10, 10.0, 10.018, {}))
    assert time.most_delayed(mine, 10.018) == pytest.approx(0.2 * 0.008, rel=0.01)
    late = Session()
    time.note(EngineStep([mine], {mine: 8}, 9, 12.0, 12.018, {late: 12.015}))
    assert time.most_delayed(other, 12.018) == pytest.approx(0.2 * 0.003, rel=0.01), "it came at the end"
