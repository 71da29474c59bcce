"""Guessing ahead changes nothing, whatever a user does, the network does, and the drafters say.

The machine of `support/session_machine.py`, with a guesser between user and session: rules, peers, faults
and the truth are the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from blockswarm.client.model.guess.drafter import Guess
from blockswarm.client.model.guess.guesser import Feed, Guesser
from blockswarm.client.report import Trip
from blockswarm.proto.wire.steps import RowSlice, RowTable, StepPlan
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from support.pending import Late
from support.session_machine import SessionMachine
from support.toy_engine import pack, unpack


class Oracle:
    """Knows which token the user will feed next; `mood` says what it makes of it."""

    name = "oracle"

    def __init__(self, machine: GuessingMachine) -> None:
        self._machine = machine
        self._thought = False

    @property
    def thinking(self) -> bool:
        return self._machine.mood == "slow" and not self._thought

    def call_when_ready(self, wake: Callable[[], object]) -> None:
        pass

    def note(self, start: int, tokens: Sequence[int]) -> None:
        self._thought = False
        if self._machine.mood == "broken":
            raise ValueError("broken")

    def draft(self, most: int, behind: Sequence[int]) -> Any:
        comes = range(self._machine.next_token + len(behind), self._machine.next_token + len(behind) + most)
        match self._machine.mood:
            case "right":
                return [Guess(token) for token in comes]
            case "wrong":
                return [Guess(token + 1000) for token in comes]
            case "half right":
                return [Guess(token + (1000 if index > most // 2 else 0)) for index, token in enumerate(comes)]
            case "random":  # any number of tokens, each the right one or not
                numbers = self._machine.numbers
                return [Guess(token + numbers.choice([0, 0, 1, 1000])) for token in comes[: numbers.randint(0, most)]]
            case "nonsense":
                return [Guess(comes[0]), Guess(-5), None]
            case "slow":  # has no guess when the step leaves, and two a little later
                thought, self._thought = self._thought, True
                return [Guess(token) for token in comes[:2]] if thought else []
        return None


MOODS = ("right", "wrong", "half right", "random", "nonsense", "slow")


class ToyRunner:
    """The session, for a guesser; hidden states are numbers."""

    def __init__(self, machine: GuessingMachine) -> None:
        self._machine = machine

    def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> Late:
        machine = self._machine
        machine.actual = machine.actual.after(plan)
        loop, session, data = machine.loop, machine.session, pack(hidden[:, 0].tolist())
        step = loop.create_task(session.run(plan, data, guessed=guessed))
        step.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may ask for a guess's

        def compute() -> torch.Tensor:
            answers = unpack(loop.run(step))
            return torch.tensor([[answer - (1 << 63)] for answer in answers], dtype=torch.int64).view(-1, 1)

        return Late(compute, patience=3)

    def last_trip(self) -> Trip | None:
        return self._machine.session.last_trip


class GuessingMachine(SessionMachine):
    mood = "right"
    guess = 1
    patience_seconds = 600.0  # whether a session survives what the world does to it is not the question here

    @initialize(guess=st.sampled_from([1, 3, 8, 64]), numbers=st.randoms(use_true_random=False))
    def begin_to_guess(self, guess: int, numbers: random.Random) -> None:
        self.guess, self.numbers = guess, numbers
        self.begin_to_guess_anew()

    def begin_to_guess_anew(self) -> None:
        self.guesser = Guesser(self.guess, [Oracle(self)])
        self.actual = RowTable()

    @rule(mood=st.sampled_from(MOODS))
    def change_the_drafters_mood(self, mood: str) -> None:
        self.mood = mood

    @rule()
    def break_the_drafter(self) -> None:
        """It is asked no more; the next session has a new one."""
        self.mood = "broken"

    @precondition(lambda self: self.truth.table.lengths and sum(self.truth.table.lengths) < 1400)
    @rule(row=st.integers(0, 4), count=st.integers(1, 12), answers=st.integers(0, 1))
    def decode(self, row: int, count: int, answers: int) -> None:
        """Token by token, as `generate` does."""
        row %= len(self.truth.table.lengths)
        for _ in range(count):
            self.check(StepPlan((RowSlice(row, self.truth.table.lengths[row], 1, answers),)))

    def compute(self, plan: StepPlan, tokens: list[int]) -> list[int]:
        feed = None
        if len(plan.rows) == 1:
            room = 1800 - self.truth.table.after(plan).tokens
            before = [-1] * plan.rows[0].start
            feed = Feed(tokens, lambda: before, room, 1 << 40, lambda guesses, behind: torch.tensor(guesses)[:, None])
        hidden = torch.tensor(tokens, dtype=torch.int64)[:, None]
        first = not self.truth.table.lengths
        answers = self.guesser.compute(ToyRunner(self), plan, hidden, feed, first=first)
        return [answer + (1 << 63) for answer in answers[:, 0].tolist()]

    def close_session(self) -> None:
        self.loop.run(self.session.close(self.truth.table.lengths))
        self.begin_to_guess_anew()

    @invariant()
    def peers_hold_what_is_confirmed_and_guesses_behind_it(self) -> None:
        if hasattr(self, "truth") and self.truth.table.lengths:
            confirmed, actual = self.truth.table.lengths, self.actual.lengths
            assert len(confirmed) == len(actual)
            assert all(sure <= held for sure, held in zip(confirmed, actual, strict=True))


@pytest.mark.long
def test_a_session_with_guesses_gives_what_one_cache_gives() -> None:
    run_state_machine_as_test(
        GuessingMachine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )
