"""Decides which peers a look at the swarm pings, in which order, and at which of their addresses; no I/O.

A record costs its owner nothing, while a silent peer costs the client a whole time-out.  So the peers that answered the
last look are pinged first, then a bounded number of the others, chosen at random.  One turn pings each peer by one of
its ways (a direct address or a relay); a peer that is silent on all of them is not pinged again for a while, which
doubles each time.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ...proto.directory.records import PeerRecord
from ...proto.network.address import Reach
from ...routing.swarm import PeerId
from ..timing import ClientTiming

MAX_OTHERS_A_LOOK = 256
"""The most peers that did not answer the last look and are pinged in one look."""


@dataclass(frozen=True, slots=True)
class Found:
    """A peer whose record was found."""

    record: PeerRecord
    encoded: bytes
    """The signed record."""
    ways: tuple[Reach, ...]
    """The ways to reach it, best first."""


@dataclass(frozen=True, slots=True)
class Question:
    """A ping to send: a peer, and the way by which to reach it."""

    peer: PeerId
    way: Reach


@dataclass
class _Silence:
    """A peer that did not answer, with what it announced then."""

    incarnation: int
    ways: tuple[Reach, ...]
    tried: int = 0
    """How many times a way was tried; the ways are tried in turn."""
    until: float = 0.0
    """It is not pinged before this time (monotonic)."""

    def is_about(self, found: Found) -> bool:
        return self.incarnation == found.record.incarnation and self.ways == found.ways

    @property
    def next_way(self) -> Reach:
        return self.ways[self.tried % len(self.ways)]


class LookOrder:
    """Remembers the silent peers from look to look."""

    def __init__(self, rng: random.Random, timing: ClientTiming) -> None:
        self._rng = rng
        self._timing = timing
        self._silent: dict[PeerId, _Silence] = {}

    def first_turn(
        self, found: Mapping[PeerId, Found], known: Mapping[PeerId, Reach], now: float
    ) -> tuple[Question, ...]:
        """Return the pings with which a look begins, most important first.

        `known`: the peers that answered the last look, and the way that worked. `now` is monotonic.
        """
        self._silent = {
            peer: silence
            for peer, silence in self._silent.items()
            if peer in found and silence.is_about(found[peer]) and peer not in known
        }
        sure = [
            Question(peer, way if way in found[peer].ways else found[peer].ways[0])
            for peer, way in known.items()
            if peer in found and found[peer].ways
        ]
        return (*sure, *self.others({peer: those for peer, those in found.items() if peer not in known}, now))

    def others(self, found: Mapping[PeerId, Found], now: float) -> tuple[Question, ...]:
        """Return pings of peers that did not answer the last look, at most `MAX_OTHERS_A_LOOK`, chosen at random."""
        others = [
            Question(peer, self._next_way(peer, those))
            for peer, those in found.items()
            if those.ways and not self._rests(peer, now)
        ]
        return tuple(self._rng.sample(others, min(MAX_OTHERS_A_LOOK, len(others))))

    def next_turn(self, found: Mapping[PeerId, Found], failed: Collection[Question]) -> tuple[Question, ...]:
        """Return pings of the peers that failed in the last turn, by ways that were not tried in this round."""
        return tuple(
            Question(question.peer, self._next_way(question.peer, found[question.peer]))
            for question in failed
            if not self._is_round_over(question.peer)
        )

    def silent(self, question: Question, found: Found, now: float, *, to_blame: bool) -> None:
        """Record that a ping was not answered; `to_blame` is false if no peer answers at all."""
        if question.peer not in self._silent:
            self._silent[question.peer] = _Silence(found.record.incarnation, found.ways)
        silence = self._silent[question.peer]
        if question.way != silence.next_way:
            return  # that was the way of the last look; it is not counted, and the ways are tried in order
        silence.tried += 1
        if to_blame and self._is_round_over(question.peer):
            rounds = silence.tried // len(silence.ways)
            pause_seconds = self._timing.silent_seconds * 2.0 ** min(rounds - 1, 32)
            silence.until = now + min(pause_seconds, self._timing.max_silent_seconds)

    def has_untried(self, found: Mapping[PeerId, Found], known: Collection[PeerId]) -> bool:
        """Return whether there are reachable peers that were not pinged in any look."""
        return any(those.ways and peer not in known and peer not in self._silent for peer, those in found.items())

    def was_silent(self, peer: PeerId) -> bool:
        """Return whether a peer was pinged and has not answered since."""
        return peer in self._silent

    def _next_way(self, peer: PeerId, found: Found) -> Reach:
        return self._silent[peer].next_way if peer in self._silent else found.ways[0]

    def _rests(self, peer: PeerId, now: float) -> bool:
        return peer in self._silent and now < self._silent[peer].until

    def _is_round_over(self, peer: PeerId) -> bool:
        silence = self._silent[peer]
        return silence.tried > 0 and silence.tried % len(silence.ways) == 0
