"""Whether there is time for guesses: they only save waits for the network, and texts of other sessions wait for them.

Two things rule them out.  If the texts of others take much of the engine's time, every guessed row delays some of them.
And if they do not, a text may still arrive during a step of guesses, which cannot be stopped: the time that the texts
of each session have waited for such steps is measured, and kept to a small share of the session's time.  A session that
makes guesses itself has to bear those of others, since all of them gain; not so one that tries a guess now and then, as
clients do whose guesses do not pay.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

TEXT_FADING = 1.0
"""The rate, per second, at which computing time fades: after a second it counts for about a third."""
CROWDED_SHARE = 0.5
"""If the texts of others are in the engine for more than this share of the time, guesses keep too many waiting.

The share is added up over sessions: it is the number of their steps that one step of the same length overlaps.
"""
DELAY_FADING = 0.2
"""The rate, per second, at which waits for guesses fade: a single wait may exceed what one second allows."""
DELAYED_SHARE = 0.015
"""Guesses pause if the texts of a session that makes none have waited for them for more than this share of the time.

The promise is 3 %; the rest is for the cost of guesses outside the engine, and for waits that began before the pause.
"""

GUESSING_SHARE = 0.25
"""A session makes guesses if this share of its steps carry some; steps do not count while it is told to make none."""
_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class EngineStep:
    """The tokens of a step of the engine, and the texts that arrived meanwhile."""

    texts: Collection[Any]
    """Sessions with text tokens in the step."""
    guesses: Mapping[Any, int]
    """Guessed tokens in the step, by session."""
    tokens: int
    """All tokens of the step."""
    began_at: float
    ended_at: float
    waiting: Mapping[Any, float]
    """Sessions whose texts arrived meanwhile -> the time of arrival."""


class GuessTime:
    """The use of the engine by texts and guesses, newer times counting more.

    Sessions are any hashable objects, held by weak references. Times are in seconds of any monotonic clock.
    """

    def __init__(self) -> None:
        self._all = _Share(TEXT_FADING)
        self._own: WeakKeyDictionary[Any, _Share] = WeakKeyDictionary()
        self._delays: WeakKeyDictionary[Any, _Share] = WeakKeyDictionary()
        """Waits of sessions that make no guesses; faded ones are dropped."""
        self._habits: WeakKeyDictionary[Any, _Habit] = WeakKeyDictionary()
        self._paused: WeakSet[Any] = WeakSet()
        """Sessions that were told that there is no time for guesses: whether they would make some is not known."""
        self._usual_seconds = 0.0
        """The time of a step with one token of each text, smoothed."""

    def note(self, step: EngineStep) -> None:
        """Note a step of the engine that has ended. O(sessions in it, and sessions that wait)."""
        seconds, now = step.ended_at - step.began_at, step.ended_at
        self._all.add(seconds * len(step.texts), now)
        for session in step.texts:
            self._own.setdefault(session, _Share(TEXT_FADING)).add(seconds, now)
        self._note_guessing(step)
        if not step.guesses:
            if step.tokens == len(step.texts):
                self._usual_seconds += _SMOOTHING * (seconds - self._usual_seconds)
            return
        longer = self._longer_by_guesses(step)
        waited = {session: min(longer, now - at) for session, at in step.waiting.items()}
        for session, extra in (dict.fromkeys(step.texts, longer) | waited).items():
            if extra > 0.0 and session not in step.guesses and not self._is_guessing(session):
                self._delays.setdefault(session, _Share(DELAY_FADING)).add(extra, now)

    def _note_guessing(self, step: EngineStep) -> None:
        for session in step.guesses.keys() | set(step.texts):
            if session in step.guesses or session not in self._paused:
                self._habits.setdefault(session, _Habit()).note(session in step.guesses)
            if self._is_guessing(session):
                self._delays.pop(session, None)

    def _is_guessing(self, session: Any) -> bool:
        habit = self._habits.get(session)
        return habit is not None and habit.share >= GUESSING_SHARE

    def _longer_by_guesses(self, step: EngineStep) -> float:
        """Estimate by how many seconds guesses made a step longer: the lower of two estimates that are too high."""
        seconds = step.ended_at - step.began_at
        if not step.texts:
            return seconds
        share = sum(step.guesses.values()) / step.tokens
        return max(0.0, min(seconds * share, seconds - self._usual_seconds))

    def others(self, session: Any, now: float) -> float:
        """The sum of the shares of all sessions but this one; it exceeds 1 if they share steps. O(1)."""
        own = self._own.get(session)
        return max(0.0, self._all.at(now) - (own.at(now) if own is not None else 0.0))

    def most_delayed(self, session: Any, now: float) -> float:
        """The largest share of its time that another session's text waited for guesses. O(sessions that waited)."""
        shares = {other: share.at(now) for other, share in self._delays.items() if other is not session}
        for other in [other for other, share in shares.items() if share < DELAYED_SHARE / 100]:
            del self._delays[other]
        return max(shares.values(), default=0.0)

    def is_lacking(self, session: Any, now: float) -> bool:
        """Tell a session whether there is no time for its guesses, and remember what it was told."""
        lacking = self.others(session, now) > CROWDED_SHARE or self.most_delayed(session, now) > DELAYED_SHARE
        (self._paused.add if lacking else self._paused.discard)(session)
        return lacking


class _Habit:
    """The share of a session's steps that carry guesses, newer ones counting more."""

    def __init__(self) -> None:
        self.share = 0.0
        self._steps = 0

    def note(self, guesses: bool) -> None:
        self._steps += 1
        self.share += max(_SMOOTHING, 1 / self._steps) * (guesses - self.share)


class _Share:
    """A share of the time, fading."""

    def __init__(self, fading: float) -> None:
        self._fading = fading
        self._value = 0.0
        self._at = 0.0

    def at(self, now: float) -> float:
        return self._value * math.exp(-self._fading * max(0.0, now - self._at))

    def add(self, seconds: float, now: float) -> None:
        self._value = self.at(now) + self._fading * seconds
        self._at = now
