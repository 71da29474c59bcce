"""Guesses for one session: drafters propose, the rule says how many are worth it, and what came of them is counted.

It stands between the cache of `generate` and the session with the peers, and neither knows of the other's view: the
cache asks for the answers to the tokens that it really feeds, the session gets steps with a few tokens more.  The
bookkeeping between the two is in `ahead.py`.  Guesses are made for one sequence at a time; a batch gets none.

Guesses that are there when a step leaves go with it.  Those that come while the text waits for it, or when many are
used up, follow in steps of their own, a few at a time: no real step waits for a guess.
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
"""Where trips are short, their times are looked at once in this many."""
MOST_WINDOWS = 3
"""Steps of guesses only that may be under way behind a step of the text..."""
MOST_WINDOWS_IN_ALL = 6
"""...and with those behind the step before it. A peer takes a few more, so no step of the text waits for them."""
MOST_STEPS_ON_END = 32
"""After this many steps with one always under way no guesses follow, until none is: then a chain can be mended."""
PATIENCE_SHARE = 0.1
"""How long a few guesses wait for more of a drafter that thinks, as a share of a trip."""


class PendingAnswers(Protocol):
    """The answers to a step that is under way."""

    def done(self) -> bool:
        """Whether `result` returns, or raises, at once."""

    def call_when_done(self, wake: Callable[[], object]) -> None:
        """Have `wake` called, in any thread; now if they are here."""

    def result(self) -> torch.Tensor:
        """(plan.answers, H), packed in the order of `plan.rows`; blocks. Raises SwarmError."""


class TripRunner(Protocol):
    """The session with the peers, as a guesser needs it."""

    def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> PendingAnswers:
        """Send a step, (plan.tokens, H), behind those under way, and do not wait for it.

        `guessed`: it has no token of the text, so nobody waits for it.
        """

    def last_trip(self) -> Trip | None:
        """The times of the last step of the text that came back; None if they are not known."""


class FrontPart(Protocol):
    """Computes what guessed tokens would feed to the first block."""

    def __call__(self, tokens: Sequence[int], behind: int) -> torch.Tensor:
        """(T, H), for tokens that stand `behind` others behind the forward."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One forward of one sequence, and what may be guessed behind it."""

    tokens: Sequence[int]
    """The ids that it feeds; -1 where they are not known."""
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
    """Steps of guesses only behind the last step of the text."""
    stale: list[PendingAnswers] = field(default_factory=list)
    """Those behind the step before it, as far as they are under way."""
    on_end: int = 0
    """Steps since none was under way."""

    def begin_anew(self) -> None:
        """A step of the text goes, all guesses before it are dropped."""
        self.stale = [step for step in (*self.stale, *self.windows) if not step.done()]
        self.windows, self.sent = [], []
        self.on_end = self.on_end + 1 if self.stale else 0

    def add_window(self, step: PendingAnswers) -> None:
        self.windows.append(step)
        self.on_end += 1

    def is_full(self) -> bool:
        """Whether no further step of guesses should go now."""
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
        """With each step go the guesses of `drafters` that promise most; `known` is what earlier texts have taught."""
        self.setting = checked_setting(setting)
        self._timing = timing or GuessTiming()
        self._wake = threading.Event()
        self._panel = DraftPanel(drafters, known if known is not None else {}, self._wake.set)
        self._ahead: Ahead[_Answer] = Ahead()
        self._way = _Way()
        self._costs = TripCosts()
        self._look_in = 0
        self._failed = False
        self._counts = _Counts()

    def report(self) -> GuessReport:
        """The trips since `begin_use`, and what guessing has brought."""
        counts, drafts = self._counts, self._panel.reports()
        return GuessReport(str(self.setting), counts.trips, counts.tokens, counts.forwards, drafts, counts.guess_steps)

    def begin_use(self) -> None:
        """Count anew; what was learnt of the text and of the chain stays."""
        self._counts = _Counts()
        self._panel.begin_use(self._way.sent)

    def compute(
        self, runner: TripRunner, plan: StepPlan, hidden: torch.Tensor, feed: Feed | None, *, first: bool
    ) -> torch.Tensor:
        """(plan.tokens, H) -> (plan.answers, H): from what was guessed before, or by a trip that may carry guesses.

        `feed` is None for a batch, which gets no guesses. `first`: the session has no rows yet; peers name the pages
        of its first step by what it feeds, so that has none either. Raises what the session raises.
        """
        self._counts.forwards += 1
        self._counts.tokens += plan.tokens
        if feed is not None and self.setting != OFF:
            self._panel.note(plan.rows[0].start, feed.tokens)
        left = self._ahead.remainder_of(plan, lambda: _bytes_of(hidden))
        self._note_outcomes(left)
        self._ahead = left.ahead
        guessing = None if first else feed
        began = time.monotonic()
        if left.plan is None:
            self._follow(runner, guessing, began)
            return self._collected(left.held, runner, guessing, began) if left.held else hidden[:0]
        return self._trip(runner, left, hidden[left.hits :], guessing, began)

    def _trip(
        self,
        runner: TripRunner,
        left: Remainder[_Answer],
        hidden: torch.Tensor,
        feed: Feed | None,
        began: float,
    ) -> torch.Tensor:
        """Send what was not guessed, and whatever is guessed behind it."""
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
        """The guesses that were hit were right; the next one was wrong if another token came in its place."""
        hits, rest = self._way.sent[: left.hits], self._way.sent[left.hits :]
        for guess in hits:
            self._panel.note_outcome(guess, right=True)
        if rest and left.plan is not None and left.plan.rows[0].start == self._ahead.start + left.hits:
            self._panel.note_outcome(rest[0], right=False)
        self._way.sent = rest

    # --- guesses in steps of their own ---

    def _follow(self, runner: TripRunner, feed: Feed | None, began: float) -> None:
        """Send a step of further guesses, if there are enough of them."""
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
        """The answers to a step; while it is under way, guesses follow it as drafters find them."""
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
        """(len(held), H): the answers to tokens that were guessed."""
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
        """The guesses that should travel behind those on their way."""
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
        """(K, H): what the guessed tokens feed to the first block; None if the family's code fails on them."""
        assert feed is not None
        try:
            with others_code():
                return feed.front([guess.token for guess in offer.guesses], len(self._way.sent))
        except CannotGuessError as error:
            logger.warning("guessing ahead ends: the model's front part failed on guessed tokens", exc_info=error)
            self._failed = True
            return None

    def _note_sent(self, offer: Offer, guesses: torch.Tensor, step: PendingAnswers, behind: int) -> None:
        """`guesses` travel in `step`, behind that many other answers of it."""
        self._panel.note_sent(offer)
        self._way.sent += offer.guesses
        answers = [_Answer(step, behind + index) for index in range(len(guesses))]
        self._ahead = self._ahead.extended(_bytes_of(guesses), answers)

    # --- what trips take ---

    def _look_at_trip(self, runner: TripRunner, tokens: int, here_seconds: float) -> None:
        """Note the times of the trip that ended, if the rule needs them now; the text had `tokens` tokens in it.

        `here_seconds`: the time that this machine took before it left, most of it for guesses.
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
        near = self._costs.weight > 0.0 and not is_far(self._costs, self._timing)
        self._look_in = LOOK_AGAIN_TRIPS if near else 1


def _bytes_of(rows: torch.Tensor) -> list[bytes]:
    """(T, H) -> for each row its content, comparable; as bytes, because numpy has no bfloat16."""
    flat = rows.detach().cpu().contiguous().view(len(rows), -1).view(torch.uint8).numpy()
    return [row.tobytes() for row in flat]
