"""The cost of one guessing session to others at a peer, in virtual time: no other load of a machine is in it.

The decisions are the peer's own (`plan_step`, `TextTime`); a step of its engine takes a time for itself and a time for
each row, and a session's next token comes a round trip after the answer to the one before.  The guessing session sends
K guesses with each of its own tokens, and K more half a trip later, unless the answer before said that the peer is
crowded.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .intervals import interval

if TYPE_CHECKING:
    from blockswarm.peer.engine.guess_time import EngineStep
    from blockswarm.peer.engine.scheduler import StepChoice

GUESSES = 8
CHUNK_TOKENS = 64
VIRTUAL_SECONDS = 30.0
CASES = (
    (8, 0.050, 0.008, 0.001),  # the demo model, all of it on one busy core
    (8, 0.050, 0.060, 0.003),
    (8, 0.050, 0.300, 0.010),
    (8, 0.000, 0.008, 0.001),
    (8, 0.200, 0.020, 0.004),
    (8, 0.050, 0.002, 0.0002),
    (2, 0.050, 0.008, 0.001),
    (1, 0.050, 0.060, 0.003),
)
"""Sessions without guesses, round trip, time of a step of the engine, time of a row in it, in seconds."""
RULES = ("no guesses", "no rules", "rules")


@dataclass(eq=False)
class Session:
    """A client that decodes."""

    guesses: int = 0
    answered_at: float = 0.0
    crowded: bool = False
    at_work: bool = False
    queue: list[Job] = field(default_factory=list)
    token_seconds: list[float] = field(default_factory=list)
    guessing_texts: int = 0
    """Tokens with which guesses travelled."""


@dataclass(eq=False)
class Job:
    """A step of one row."""

    session: Session
    text: int
    """Tokens of the text: 1 or 0."""
    left: int
    guesses: int
    deferred: int = 0


@dataclass
class Peer:
    """One engine, and the sessions that use it."""

    rtt_seconds: float
    step_seconds: float
    row_seconds: float
    rules: bool
    rng: random.Random
    now: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    arrivals: list[tuple[float, int, Job]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, sessions: list[Session]) -> None:
        """Compute until the time is over."""
        from blockswarm.peer.engine.guess_time import GuessTime
        from blockswarm.peer.engine.scheduler import MOST_DEFERRALS, plan_step

        guess_time = GuessTime()
        for session in sessions:
            self.send_text(session, self.rng.random() * (self.rtt_seconds + self.step_seconds))
        while self.now < VIRTUAL_SECONDS:
            self.accept()
            left = [[job.left] for job in self.jobs]
            guesses = {at: min(job.guesses, job.left) for at, job in enumerate(self.jobs) if job.guesses}
            waiting = {at: count for at, count in guesses.items() if self.jobs[at].deferred < MOST_DEFERRALS}
            choice = plan_step(left, CHUNK_TOKENS, waiting if self.rules else {})
            seconds = self.step_seconds + self.row_seconds * sum(take.count for take in choice.takes)
            texts = [
                self.jobs[take.job].session
                for take in choice.takes
                if self.jobs[take.job].left > guesses.get(take.job, 0)
            ]
            for at in choice.deferred:
                self.jobs[at].deferred += 1
            self.now += seconds
            step = self.step(choice, guesses, texts, self.now - seconds)
            guess_time.note(step)
            for take in choice.takes:
                self.jobs[take.job].left -= take.count
            order, self.jobs = [self.jobs[at] for at in choice.order], []
            for job in order:
                if job.left:
                    self.jobs.append(job)
                else:
                    self.answer(job, self.rules and guess_time.is_lacking(job.session, self.now))

    def step(self, choice: StepChoice, guesses: Mapping[int, int], texts: list[Session], began_at: float) -> EngineStep:
        """The step that ends now, as the peer notes it."""
        from blockswarm.peer.engine.guess_time import EngineStep

        taken = [
            (self.jobs[take.job], take.count - self.jobs[take.job].left + guesses.get(take.job, 0))
            for take in choice.takes
        ]
        guessed = {job.session: count for job, count in taken if count > 0}
        arrived = {job.session: at for at, _, job in self.arrivals if job.text and at < self.now}
        return EngineStep(texts, guessed, sum(take.count for take in choice.takes), began_at, self.now, arrived)

    def accept(self) -> None:
        """Take what has arrived; wait for it if there is nothing to do."""
        if not self.jobs:
            self.now = max(self.now, self.arrivals[0][0])
        while self.arrivals and self.arrivals[0][0] <= self.now:
            self.enqueue(heapq.heappop(self.arrivals)[2])

    def enqueue(self, job: Job) -> None:
        """A session has one step at a time in the engine."""
        if job.session.at_work:
            job.session.queue.append(job)
        else:
            job.session.at_work = True
            self.jobs.append(job)

    def answer(self, job: Job, crowded: bool) -> None:
        """The session's next token follows a round trip later, from its text's answers only."""
        session = job.session
        session.at_work = False
        if session.queue:
            self.enqueue(session.queue.pop(0))
        if job.text:
            session.token_seconds.append(self.now - session.answered_at)
            session.answered_at, session.crowded = self.now, crowded
            self.send_text(session, self.now + self.rtt_seconds * self.rng.uniform(0.95, 1.05) + 0.001)

    def send_text(self, session: Session, at: float) -> None:
        guesses = 0 if session.crowded else session.guesses
        session.guessing_texts += guesses > 0
        self.send(Job(session, 1, 1 + guesses, guesses), at)
        if guesses:
            self.send(Job(session, 0, guesses, guesses), at + self.rtt_seconds / 2)

    def send(self, job: Job, at: float) -> None:
        heapq.heappush(self.arrivals, (at, next(self.numbers), job))


def run(case: tuple[int, float, float, float], rules: str, seed: int) -> tuple[float, float]:
    """The mean time of a token of the others, and the share of the guessing session's tokens with guesses."""
    count, *times = case
    others = [Session() for _ in range(count)]
    guessing = Session(guesses=0 if rules == "no guesses" else GUESSES)
    Peer(*times, rules == "rules", random.Random(seed)).run([*others, guessing])
    seconds = statistics.mean(seconds for session in others for seconds in session.token_seconds[1:])
    return seconds, guessing.guessing_texts / len(guessing.token_seconds)


def crowd_model(runs: int) -> list[dict[str, Any]]:
    """The cost to the others with the peer's rules, and if guesses were rows like any others; over as many seeds."""
    rows = []
    for case in CASES:
        found = {rules: [run(case, rules, seed) for seed in range(runs)] for rules in RULES}
        costs = {
            rules: [
                100 * (after / before - 1)
                for (before, _), (after, _) in zip(found["no guesses"], found[rules], strict=True)
            ]
            for rules in RULES
        }
        count, rtt_seconds, step_seconds, row_seconds = case
        rows.append(
            {
                "clients": count,
                "rtt_ms": 1000 * rtt_seconds,
                "step_ms": 1000 * step_seconds,
                "row_ms": 1000 * row_seconds,
                "token_ms": 1000 * statistics.median(seconds for seconds, _ in found["no guesses"]),
                "cost_percent": statistics.median(costs["rules"]),
                "interval": interval(costs["rules"]),
                "guessing_percent": 100 * statistics.median(share for _, share in found["rules"]),
                "percent_without_rules": statistics.median(costs["no rules"]),
            }
        )
    return rows
