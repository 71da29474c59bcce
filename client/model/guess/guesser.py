"""Guesses for one session: drafters propose tokens, a rule decides how many to send, and outcomes are counted.

The guesser sits between the cache of `generate` and the session with the peers: the cache asks for the answers to the
tokens that it really feeds, the session gets steps with a few more tokens.  The bookkeeping between the two is in
`ahead.py`.  Guesses are made for a single sequence only; a batch gets none.

Guesses that exist when a step leaves travel in it.  Guesses that are made while the text waits for the step, or when
many are used up, follow in steps of their own, a few at a time: no step of the text waits for them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from ....proto.wire.steps import StepPlan
from ....proto.wire.tensors import all_finite, finite_rows
from ...report import GuessReport, Trip
from ...timing import GuessTiming
from .ahead import Ahead, Remainder, guesses_only, with_guesses
from .drafter import Drafter
from .panel import CannotGuessError, DraftPanel, KnownKinds, Offer, Sent, others_code
from .policy import (
    AUTO,
    MOST_AHEAD,
    MOST_GUESSES,
    OFF,
    TripCosts,
    as_short,
    checked_setting,
    guesses_worth,
    is_far,
    pays,
)

logger = logging.getLogger(__name__)

LOOK_AGAIN_TRIPS = 16
"""Where trips are too short for guessing, measure one in this many."""
MOST_WINDOWS = 3
"""The most guess-only steps under way after a step of the text..."""
MOST_WINDOWS_IN_ALL = 6
"""...and including those before it. Peers accept a few more steps, so no step of the text waits for credits."""
MOST_STEPS_ON_END = 32
"""Send no more guesses after this many steps during which one was always under way, until none is: only then can the
chain be changed."""
PATIENCE_SHARE = 0.1
"""How long guesses wait for more from a drafter that is thinking, as a share of a trip's time."""


class PendingAnswers(Protocol):
    """The pending answers to a step that is under way."""

    def done(self) -> bool:
        """Return whether `result` returns or raises without blocking."""

    def call_when_done(self, wake: Callable[[], object]) -> None:
        """Call `wake` when the step is done, in any thread; at once if it is already."""

    def result(self) -> torch.Tensor:
        """Wait for the answers: (plan.answers, H), packed in the order of `plan.rows`. Raises SwarmError."""


class TripRunner(Protocol):
    """The session with the peers, as a guesser needs it."""

    def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> PendingAnswers:
        """Send a step, (plan.tokens, H), after those under way, without waiting for it.

        `guessed`: it carries no token of the text, so nothing waits for it.
        """

    def last_trip(self) -> Trip | None:
        """Return the times of the last answered step of the text; None if they are not known."""


class FrontPart(Protocol):
    """Computes the input of the first block for guessed tokens."""

    def __call__(self, tokens: Sequence[int], behind: int) -> torch.Tensor:
        """Return (T, H) for tokens that come `behind` other tokens after the forward."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One forward of one sequence, with what is needed for guessing after it."""

    tokens: Sequence[int]
    """The ids that it feeds; -1 where unknown."""
    before: Callable[[], Sequence[int]]
    """Returns the ids of the text before it, likewise; called if the drafters were not told of them."""
    room: int
    """The number of further tokens that fit into the session and into the text."""
    vocabulary: int
    """Ids are below this."""
    front: FrontPart


@dataclass(slots=True)
class _Counts:
    trips: int = 0
    forwards: int = 0
    tokens: int = 0
    guess_steps: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer to one guess: a row of a step's answers, which may be under way."""

    step: PendingAnswers
    row: int


@dataclass(slots=True)
class _Way:
    """The guesses that are ahead of the text, and their steps."""

    sent: list[Sent] = field(default_factory=list)
    """In the order of `Ahead`."""
    windows: list[PendingAnswers] = field(default_factory=list)
    """Guess-only steps after the last step of the text."""
    stale: list[PendingAnswers] = field(default_factory=list)
    """Guess-only steps from before the last step of the text that are still under way."""
    on_end: int = 0
    """The number of steps sent since none was under way."""

    def begin_anew(self) -> None:
        """Drop all guesses, because a step of the text is about to be sent."""
        self.stale = [step for step in (*self.stale, *self.windows) if not step.done()]
        self.windows, self.sent = [], []
        self.on_end = self.on_end + 1 if self.stale else 0

    def add_window(self, step: PendingAnswers) -> None:
        self.windows.append(step)
        self.on_end += 1

    def is_full(self) -> bool:
        """Return whether no further guess-only step should be sent now."""
        self.windows = [step for step in self.windows if not step.done()]
        self.stale = [step for step in self.stale if not step.done()]
        many = len(self.windows) >= MOST_WINDOWS or len(self.windows) + len(self.stale) >= MOST_WINDOWS_IN_ALL
        return many or self.on_end >= MOST_STEPS_ON_END


class Guesser:
    """The guesses of one session. Used by one thread at a time; `report` by any."""

    def __init__(
        self,
        setting: str | int,
        drafters: Sequence[Drafter],
        timing: GuessTiming | None = None,
        known: KnownKinds | None = None,
    ) -> None:
        """The most promising guesses of `drafters` travel with each step; `known`: acceptance in earlier texts."""
        self.setting = checked_setting(setting)
        self._timing = timing or GuessTiming()
        self._wake = threading.Event()
        self._panel = DraftPanel(drafters, known if known is not None else {}, self._wake.set)
        self._ahead: Ahead[_Answer] = Ahead()
        self._way = _Way()
        self._costs = TripCosts()
        self._told = 0
        """The drafters know the text up to this position. A batch, or steps before this guesser, are not told."""
        self._look_in = 0
        self._failed = False
        self._counts = _Counts()

    def report(self) -> GuessReport:
        """Report the trips since `begin_use`, and how well guessing did."""
        counts, drafts = self._counts, self._panel.reports()
        return GuessReport(str(self.setting), counts.trips, counts.tokens, counts.forwards, drafts, counts.guess_steps)

    def begin_use(self) -> None:
        """Reset the counts; keep what was learnt of the text and of the chain."""
        self._counts = _Counts()
        self._panel.begin_use(self._way.sent)

    def stop(self) -> None:
        """Release the drafters when the text has ended; from any thread, also during `compute`."""
        self._panel.stop()

    def compute(
        self, runner: TripRunner, plan: StepPlan, hidden: torch.Tensor, feed: Feed | None, *, first: bool
    ) -> torch.Tensor:
        """Compute a step, from earlier guesses or by a trip: `hidden` (plan.tokens, H) -> (plan.answers, H).

        `feed` is None for a batch, which gets no guesses. `first`: the session has no rows yet; its first step carries
        no guesses either, because prefix pages are named by its inputs. A guess that the peers lost is a miss, so that
        nothing of the text is computed behind it. Raises what the session raises.
        """
        self._counts.forwards += 1
        self._counts.tokens += plan.tokens
        self._tell(plan, feed)
        ahead, sent = self._ahead, self._way.sent
        left = used = ahead.remainder_of(plan, lambda: _bytes_of(hidden))
        here, lost = _answered(ahead.answers[: left.hits])
        if here < left.hits and (lost or left.plan is not None):  # a step that is sent anyway takes those on the way
            used = ahead.remainder_of(plan, lambda: _bytes_of(hidden), most_hits=here)
        self._note_outcomes(used if lost else left)
        self._ahead = used.ahead
        guessing = None if first else feed
        began = time.monotonic()
        if used.plan is None:
            self._follow(runner, guessing, began)
            answers = self._collected(ahead.answers[: used.hits], runner, guessing, began)
            sound = finite_rows(answers)
            if sound == used.hits:
                return answers[used.hits - plan.answers :]
            self._panel.note_outcome(sent[sound], right=False)  # the right token, but lost
            used = ahead.remainder_of(plan, lambda: _bytes_of(hidden), most_hits=sound)
        return self._trip(runner, used, hidden[used.hits :], guessing, began)

    def _tell(self, plan: StepPlan, feed: Feed | None) -> None:
        """Tell the drafters the text up to the end of a step; what they have missed, too."""
        if feed is None or self.setting == OFF:
            self._told = 0
            return
        piece = plan.rows[0]
        if piece.start > self._told:
            self._panel.note(0, feed.before())
        self._panel.note(piece.start, feed.tokens)
        self._told = piece.stop

    def _trip(
        self,
        runner: TripRunner,
        left: Remainder[_Answer],
        hidden: torch.Tensor,
        feed: Feed | None,
        began: float,
    ) -> torch.Tensor:
        """Send the part of a step that was not guessed, with guesses after it."""
        plan = left.plan
        assert plan is not None
        self._panel.note_trip()
        self._way.begin_anew()
        self._counts.trips += 1
        piece = plan.rows[0]
        self._ahead = Ahead(piece.row, piece.stop)
        offer = self._offer(feed)
        guesses = self._front(offer, feed) if offer.guesses and not offer.waits else None
        if guesses is None:
            step = runner.begin(plan, hidden)
        else:
            step = runner.begin(with_guesses(plan, len(guesses)), torch.cat([hidden, guesses]))
            self._note_sent(offer, guesses, step, behind=plan.answers)
        here_seconds = time.monotonic() - began
        answers = self._waited(step, runner, feed, began)[: plan.answers]
        self._look_at_trip(runner, plan.tokens, here_seconds)
        if not left.held:
            return answers
        return torch.cat([self._collected(left.held, runner, feed, began), answers])

    def _note_outcomes(self, left: Remainder[_Answer]) -> None:
        """Record hits as right; record the next guess as wrong if another token came in its place."""
        hits, rest = self._way.sent[: left.hits], self._way.sent[left.hits :]
        for guess in hits:
            self._panel.note_outcome(guess, right=True)
        if rest and left.plan is not None and left.plan.rows[0].start == self._ahead.start + left.hits:
            self._panel.note_outcome(rest[0], right=False)
        self._way.sent = rest

    # --- guesses in steps of their own ---

    def _follow(self, runner: TripRunner, feed: Feed | None, began: float) -> None:
        """Send a guess-only step if there are enough new guesses."""
        if feed is None or self._way.is_full():
            return
        offer = self._offer(feed)
        ahead, more = len(self._way.sent), len(offer.guesses)
        if not more or 2 * more < ahead + more:
            return
        if offer.waits and time.monotonic() - began < self._patience_seconds:
            return
        guesses = self._front(offer, feed)
        if guesses is not None:
            step = runner.begin(guesses_only(self._ahead, more), guesses, guessed=True)
            self._counts.guess_steps += 1
            self._way.add_window(step)
            self._note_sent(offer, guesses, step, behind=0)

    @property
    def _patience_seconds(self) -> float:
        return PATIENCE_SHARE * self._costs.trip_seconds()

    def _waited(self, step: PendingAnswers, runner: TripRunner, feed: Feed | None, began: float) -> torch.Tensor:
        """Wait for the answers to a step, and send guesses after it meanwhile, as drafters make them."""
        if feed is None or not self._guesses_now:
            return step.result()
        step.call_when_done(self._wake.set)
        while not step.done():
            patience = self._patience_seconds - (time.monotonic() - began)
            woken = self._wake.wait(patience if patience > 0 else None)
            self._wake.clear()
            if not step.done() and (woken or patience > 0):
                self._follow(runner, feed, began)
        return step.result()

    def _collected(self, held: Sequence[_Answer], runner: TripRunner, feed: Feed | None, began: float) -> torch.Tensor:
        """Wait for the answers to guessed tokens: (len(held), H)."""
        steps = {id(answer.step): answer.step for answer in held}
        found = {key: self._waited(step, runner, feed, began) for key, step in steps.items()}
        return torch.stack([found[id(answer.step)][answer.row] for answer in held])

    # --- the drafters ---

    @property
    def _guesses_now(self) -> bool:
        if self._failed or self.setting == OFF or self._costs.crowded:
            return False
        return self.setting != AUTO or pays(self._costs, self._timing)

    def _offer(self, feed: Feed | None) -> Offer:
        """Return the guesses to send after those under way."""
        if feed is None or not self._guesses_now:
            return Offer()
        sent = self._way.sent
        limit = self.setting if isinstance(self.setting, int) else MOST_AHEAD
        most = min(feed.room - len(sent), limit - len(sent), MOST_GUESSES)
        if most < 1:
            return Offer()
        return self._panel.offer(most, sent, feed.vocabulary, self._worth)

    def _worth(self, chances: Sequence[float]) -> int:
        if self.setting != AUTO:
            return len(chances)
        return guesses_worth(chances, self._costs, self._panel.chances(self._way.sent))

    def _front(self, offer: Offer, feed: Feed | None) -> torch.Tensor | None:
        """Return the first block's inputs for the guessed tokens, (K, H); None if there are none that can be sent."""
        assert feed is not None
        try:
            with others_code():
                hidden = feed.front([guess.token for guess in offer.guesses], len(self._way.sent))
        except CannotGuessError as error:
            logger.warning("guessing ahead ends: the model's front part failed on guessed tokens", exc_info=error)
            self._failed = True
            return None
        # Peers refuse a step with other numbers; an id that the tokenizer never makes may have any row in a checkpoint.
        return hidden if bool(torch.isfinite(hidden).all()) else None

    def _note_sent(self, offer: Offer, guesses: torch.Tensor, step: PendingAnswers, behind: int) -> None:
        """Record that `guesses` travel in `step`, whose answers have `behind` others before theirs."""
        self._panel.note_sent(offer)
        self._way.sent += offer.guesses
        answers = [_Answer(step, behind + index) for index in range(len(guesses))]
        self._ahead = self._ahead.extended(_bytes_of(guesses), answers)

    # --- what trips take ---

    def _look_at_trip(self, runner: TripRunner, tokens: int, here_seconds: float) -> None:
        """Record the times of the trip that ended, if the rule needs them now; it carried `tokens` tokens of the text.

        `here_seconds`: the time that this machine worked before the trip, mostly on guesses.
        """
        if self.setting == OFF:
            return
        self._look_in -= 1
        if self._look_in > 0:
            return
        trip = runner.last_trip()
        if trip is not None and self.setting != AUTO:
            self._costs = replace(self._costs, crowded=trip.crowded)
        elif trip is not None:
            if tokens <= MOST_GUESSES:
                self._costs = self._costs.after(trip, here_seconds)
            elif self._costs.weight == 0.0:  # a prompt: its steps have waited for each other at the peers
                self._costs = self._costs.after(as_short(trip))
        maybe_far = trip is not None and trip.network_seconds >= self._timing.least_network_seconds
        near = self._costs.weight > 0.0 and not is_far(self._costs, self._timing)
        self._look_in = LOOK_AGAIN_TRIPS if near and not maybe_far else 1


def _answered(answers: Sequence[_Answer]) -> tuple[int, bool]:
    """Return how many leading answers are here and usable, and whether the next one is here but lost (NaN)."""
    for count, answer in enumerate(answers):
        if not answer.step.done():
            return count, False
        if not all_finite(answer.step.result()[answer.row]):
            return count, True
    return len(answers), False


def _bytes_of(rows: torch.Tensor) -> list[bytes]:
    """Return each row's content, (T, H) -> T values, for comparisons; as bytes, because numpy has no bfloat16."""
    flat = rows.detach().cpu().contiguous().view(len(rows), -1).view(torch.uint8).numpy()
    return [row.tobytes() for row in flat]
