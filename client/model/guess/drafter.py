"""The protocol of drafters, which guess the next tokens of a text.

Guesses decide nothing: `generate` chooses every token itself, from the answers of the whole model.  A wrong guess costs
the peers some computation, a right one saves a trip along the chain, and neither changes a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that may come next."""

    token: int
    kind: str = ""
    """The drafter's own category of the guess; acceptance is counted per kind."""
    chance: float = 0.5
    """Prior probability that it is right if those before it are; used until outcomes of its kind are counted."""


class Drafter(Protocol):
    """Guesses the next tokens of one text, which grows, is cropped and begins anew; used by one thread at a time.

    All methods are called while the text waits, so they must return at once: work that takes longer than a millisecond
    belongs in a thread of its own, and until it is done there are no guesses.
    """

    @property
    def name(self) -> str:
        """The name in reports."""

    @property
    def thinking(self) -> bool:
        """Whether `draft` will soon return more guesses than now."""

    def note(self, start: int, tokens: Sequence[int]) -> None:
        """Record that the text from position `start` on is `tokens`, which were fed to the model; < 0: unknown."""

    def draft(self, most: int, behind: Sequence[int]) -> Sequence[Guess]:
        """Return at most `most` tokens that may follow the text and then `behind`, which are guesses already sent."""

    def call_when_ready(self, wake: Callable[[], object]) -> None:
        """Call `wake`, in any thread, whenever there are new guesses."""
