"""The drafters of one text: collects their guesses, checks and compares them, and counts the outcomes.

A drafter may be third-party code, and the text does not depend on it: one that fails is not asked again, and its
guesses are cut at the first invalid token.  Acceptance is counted per kind of guess and drafter; a new text starts from
the acceptance of earlier ones.
"""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ...report import DraftReport
from .drafter import Drafter, Guess
from .policy import Acceptance

logger = logging.getLogger(__name__)

MOST_KINDS = 64
"""The most kinds that are counted separately, over all drafters; further ones share one kind per drafter."""
_SMOOTHING = 0.2
_USUAL = 1.0
"""The tokens that a new drafter is expected to yield per step."""

Kind = tuple[str, str]
"""The name of a drafter, and the kind of its guess."""
KnownKinds = MutableMapping[Kind, Acceptance]


@dataclass(frozen=True, slots=True)
class Sent:
    """A guessed token that is under way, or answered and not needed yet."""

    token: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Offer:
    """Guesses that are worth sending."""

    guesses: tuple[Sent, ...] = ()
    value: float = 0.0
    """The expected number of them that are right."""
    waits: bool = False
    """Whether a drafter that is thinking will soon have more or better ones."""


@dataclass(slots=True)
class _Brought:
    """The results of the drafters of one name."""

    usual: float = _USUAL
    """Expected right guesses per step that they sent, smoothed."""
    guessed: int = 0
    right: int = 0


@dataclass(frozen=True, slots=True)
class _Seat:
    drafter: Drafter
    name: str


@dataclass(slots=True)
class _Found:
    seat: _Seat
    offer: Offer
    thinking: bool
    """Whether its drafter will soon have more guesses that are worth sending."""


class CannotGuessError(Exception):
    """A drafter or a family's front part failed; never leaves this package."""


@contextmanager
def others_code() -> Iterator[None]:
    """Run code that may be third-party and that the text does not depend on; its errors become CannotGuessError."""
    try:
        yield
    except Exception as error:
        raise CannotGuessError(str(error)) from error


def made_by(make: Callable[[], Sequence[Drafter]]) -> Sequence[Drafter]:
    """Return the drafters of a new text; none if making them fails, which is logged."""
    try:
        with others_code():
            return tuple(make())
    except CannotGuessError as error:
        logger.warning("make_drafters failed: nothing is guessed for this text", exc_info=error)
        return ()


class DraftPanel:
    """The drafters of one text. Used by one thread at a time; `reports` by any."""

    def __init__(self, drafters: Sequence[Drafter], known: KnownKinds, wake: Callable[[], object]) -> None:
        """`known` holds the acceptance in earlier texts and is updated; `wake` is called when there are new guesses."""
        self._seats: list[_Seat] = []
        self._known = known
        self._acceptance: dict[Kind, Acceptance] = {}
        self._seen: set[Kind] = set()
        """Kinds with an outcome since the last trip."""
        for drafter in drafters:
            with self._asked(drafter):
                seat = _Seat(drafter, str(drafter.name))
                drafter.call_when_ready(wake)
                self._seats.append(seat)
        self._brought = {seat.name: _Brought() for seat in self._seats}

    def stop(self) -> None:
        """Release the drafters when the text has ended; the reports stay."""
        self._seats = []

    def reports(self) -> tuple[DraftReport, ...]:
        """Return the reports of the drafters that guessed anything, by name."""
        found = sorted(self._brought.items())
        return tuple(DraftReport(name, each.guessed, each.right) for name, each in found if each.guessed)

    def begin_use(self, outstanding: Sequence[Sent]) -> None:
        """Reset the counts; guesses whose outcome is open are counted as new ones."""
        for brought in self._brought.values():
            brought.guessed = brought.right = 0
        self._count_guessed(outstanding)

    def note(self, start: int, tokens: Sequence[int]) -> None:
        """Tell all drafters that the text from position `start` on is `tokens`."""
        for seat in tuple(self._seats):
            with self._asked(seat.drafter):
                seat.drafter.note(start, tokens)

    def offer(self, most: int, sent: Sequence[Sent], vocabulary: int, worth: Callable[[Sequence[float]], int]) -> Offer:
        """Return the guesses of the drafter that promises most after those `sent`.

        `worth` takes the chances of a drafter's guesses, each if those before it are right, and returns how many of
        them are worth sending.
        """
        found: list[_Found] = []
        for seat in tuple(self._seats):
            with self._asked(seat.drafter):
                found.append(self._weighed(seat, most, sent, vocabulary, worth))
        best = max(found, key=lambda each: each.offer.value, default=None)
        if best is None:
            return Offer()
        better = max((self._brought[each.seat.name].usual for each in found if each.thinking), default=0.0)
        waits = best.thinking or better > best.offer.value
        return Offer(best.offer.guesses, best.offer.value, waits)

    def chances(self, guesses: Sequence[Sent]) -> list[float]:
        """Return the probability of each guess to be right if those before it are."""
        return [self._acceptance[guess.kind].chance for guess in guesses]

    def note_sent(self, offer: Offer) -> None:
        """Record that the guesses of an offer were sent."""
        self._count_guessed(offer.guesses)
        brought = self._brought[offer.guesses[0].kind[0]]
        brought.usual += _SMOOTHING * (offer.value - brought.usual)

    def note_outcome(self, guess: Sent, right: bool) -> None:
        """Record that a sent guess was right, or that it was the first wrong one."""
        self._seen.add(guess.kind)
        self._acceptance[guess.kind] = self._acceptance[guess.kind].after(right)
        if guess.kind in self._known:
            self._known[guess.kind] = self._known[guess.kind].after(right)
        self._brought[guess.kind[0]].right += right

    def note_trip(self) -> None:
        """Before a trip, fade the outcomes of kinds that have had none since the last trip."""
        for kind, acceptance in self._acceptance.items():
            if kind not in self._seen:
                self._acceptance[kind] = acceptance.faded()
        self._seen.clear()

    def _count_guessed(self, guesses: Sequence[Sent]) -> None:
        for guess in guesses:
            self._brought[guess.kind[0]].guessed += 1

    def _weighed(
        self,
        seat: _Seat,
        most: int,
        sent: Sequence[Sent],
        vocabulary: int,
        worth: Callable[[Sequence[float]], int],
    ) -> _Found:
        """Return a drafter's guesses, cut to those that are worth sending. Raises anything."""
        found = seat.drafter.draft(most, [guess.token for guess in sent])
        usable = _usable(itertools.islice(found, most), vocabulary)
        guesses = [Sent(guess.token, self._kind(seat, guess)) for guess in usable]
        chances = self.chances(guesses)
        count = worth(chances)
        value, reached = 0.0, 1.0
        for chance in chances[:count]:
            reached *= chance
            value += reached
        offer = Offer(tuple(guesses[:count]), value)
        return _Found(seat, offer, thinking=bool(seat.drafter.thinking) and count == len(guesses))

    def _kind(self, seat: _Seat, guess: Guess) -> Kind:
        """Return the kind of a guess, and make sure that its acceptance is being counted."""
        kind = (seat.name, guess.kind)
        if kind not in self._acceptance:
            if len(self._acceptance) >= MOST_KINDS:
                kind = (seat.name, "")
            chance = float(guess.chance)
            prior = Acceptance(chance if 0.0 <= chance <= 1.0 else 0.5)
            if len(self._known) < MOST_KINDS:
                self._known.setdefault(kind, prior)
            self._acceptance.setdefault(kind, Acceptance(self._known.get(kind, prior).chance))
        return kind

    @contextmanager
    def _asked(self, drafter: Drafter) -> Iterator[None]:
        """Call a drafter; if it fails, log that and do not ask it again."""
        try:
            with others_code():
                yield
        except CannotGuessError as error:
            logger.warning("the drafter %s failed and is not asked again", type(drafter).__name__, exc_info=error)
            self._seats = [seat for seat in self._seats if seat.drafter is not drafter]


def _usable(guesses: Iterable[object], vocabulary: int) -> list[Guess]:
    """Return the guesses before the first invalid one; any integer is a token, such as numpy's."""
    usable: list[Guess] = []
    for guess in guesses:
        if not isinstance(guess, Guess) or not isinstance(guess.kind, str):
            break
        try:
            token = operator.index(guess.token)
        except TypeError:
            break
        if not 0 <= token < vocabulary:
            break
        usable.append(Guess(token, guess.kind, guess.chance))
    return usable
