"""Drafters for tests: right, wrong, random, silent, slow, broken, and talking nonsense."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from blockswarm.client.model.guess.drafter import Guess


class TestDrafter:
    """Is always ready, and hears nothing."""

    __test__ = False
    name = "test"
    thinking = False

    def note(self, start: int, tokens: Sequence[int]) -> None:
        pass

    def draft(self, most: int, behind: Sequence[int]) -> Any:
        return []

    def call_when_ready(self, wake: Callable[[], object]) -> None:
        pass


class KnowingDrafter(TestDrafter):
    """Knows how the text goes on; wrong at the positions in `wrong_at`."""

    name = "knowing"

    def __init__(self, text: Sequence[int], wrong_at: Callable[[int], bool] = lambda position: False) -> None:
        self._text = list(text)
        self._wrong_at = wrong_at
        self._length = 0

    def note(self, start: int, tokens: Sequence[int]) -> None:
        self._length = start + len(tokens)

    def draft(self, most: int, behind: Sequence[int]) -> list[Guess]:
        start = self._length + len(behind)
        return [
            Guess(self._text[position] ^ 1 if self._wrong_at(position) else self._text[position], chance=0.9)
            for position in range(start, min(len(self._text), start + most))
        ]


class SlowDrafter(KnowingDrafter):
    """The same, but what it knows comes a few tokens at a time, each time after it was asked."""

    name = "slow"

    def __init__(
        self, text: Sequence[int], wrong_at: Callable[[int], bool] = lambda position: False, at_a_time: int = 2
    ) -> None:
        super().__init__(text, wrong_at)
        self._at_a_time = at_a_time
        self._ready = 0
        self._wake: Callable[[], object] = lambda: None

    @property
    def thinking(self) -> bool:
        return self._ready < len(self._text)

    def note(self, start: int, tokens: Sequence[int]) -> None:
        super().note(start, tokens)
        self._ready = self._length

    def draft(self, most: int, behind: Sequence[int]) -> list[Guess]:
        found = super().draft(max(0, min(most, self._ready - self._length - len(behind))), behind)
        self._ready += self._at_a_time
        self._wake()
        return found

    def call_when_ready(self, wake: Callable[[], object]) -> None:
        self._wake = wake


class RandomDrafter(TestDrafter):
    """Guesses anything, any number of it, or nothing: one that is slow has no guess most of the time."""

    name = "random"

    def __init__(self, seed: int, vocabulary: int, silent_share: float = 0.3) -> None:
        self._numbers = random.Random(seed)
        self._vocabulary = vocabulary
        self._silent_share = silent_share

    @property
    def thinking(self) -> bool:
        return self._numbers.random() < 0.2

    def draft(self, most: int, behind: Sequence[int]) -> list[Guess]:
        if self._numbers.random() < self._silent_share:
            return []
        count = self._numbers.randint(0, 2 * most)  # more than was asked for, sometimes
        kind = str(self._numbers.randrange(1000))
        return [Guess(self._numbers.randrange(self._vocabulary), kind) for _ in range(count)]


class NonsenseDrafter(TestDrafter):
    """Returns what are no guesses, ids that are none, or fails."""

    name = "nonsense"

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.asked = 0

    def draft(self, most: int, behind: Sequence[int]) -> Any:
        self.asked += 1
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


NONSENSE: tuple[Any, ...] = (
    None,
    [Guess(5), Guess(-1), Guess(6)],
    [Guess(10**9)],
    [Guess("x"), Guess(None)],  # type: ignore[arg-type]
    [Guess(5.5)],  # type: ignore[arg-type]
    [Guess(5, chance=float("nan"))],
    [Guess(5, chance="likely")],  # type: ignore[arg-type]
    [Guess(5, kind=["unhashable"])],  # type: ignore[arg-type]
    [Guess(True)],
    [5, 6],
    ValueError("broken"),
)
