"""The protocol of drafters: what guesses the next tokens of a text.

A guess decides nothing: `generate` chooses every token itself, from the answers of the whole model.  A wrong guess
costs the peers some rows, a right one saves a trip along the chain, and neither changes a token.
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
    """How it was found, within the drafter; how often guesses are right is counted for each kind."""
    chance: float = 0.5
    """How likely it is right if those before it are, as long as nothing of this kind has been counted."""


class Drafter(Protocol):
    """Guesses the next tokens of one text, which grows, is cut and begins anew; used by one thread at a time.

    All methods are called while the text waits, so they return at once: what takes longer than a millisecond runs in a
    thread of its own, and until it has a guess there is none.
    """

    @property
    def name(self) -> str:
        """For reports."""

    @property
    def thinking(self) -> bool:
        """Whether there will soon be more guesses than `draft` returns now."""

    def note(self, start: int, tokens: Sequence[int]) -> None:
        """The text from position `start` on is `tokens`: they were fed to the model. Negative numbers: not known."""

    def draft(self, most: int, behind: Sequence[int]) -> Sequence[Guess]:
        """At most `most` tokens that may follow the text and the tokens `behind`, which are guesses themselves."""

    def call_when_ready(self, wake: Callable[[], object]) -> None:
        """Have `wake` called, in any thread, when there are guesses where there were none, or more."""
