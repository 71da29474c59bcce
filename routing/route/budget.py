"""The time and the memory that a search may take, and what is left of them while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


class OverBudgetError(Exception):
    """The search has used up its time, or would need more memory; the message says which."""


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """The most that a search may take before it is content with the best chain so far."""

    seconds: float = math.inf
    nbytes: float = math.inf
    """Memory held at one moment, by the search and again by what is compiled for it."""


class Meter:
    """The budget of one search while it runs; `stop` may be called from another thread."""

    def __init__(self, budget: SearchBudget, clock: Callable[[], float]) -> None:
        """The time runs from now on."""
        self.budget = budget
        self._clock = clock
        self._deadline = clock() + budget.seconds
        self._stopped = False

    def extend(self, share: float) -> None:
        """Allow that share of the time again, from now on."""
        self._deadline = self._clock() + share * self.budget.seconds

    def stop(self) -> None:
        """Nobody waits for the result any more: have the search end at its next step."""
        self._stopped = True

    def check(self) -> None:
        """Raises OverBudgetError when the time is over."""
        if self._stopped:
            raise OverBudgetError("the search was stopped")
        if self._clock() > self._deadline:
            raise OverBudgetError(f"the search took more than {self.budget.seconds} s")

    def check_bytes(self, nbytes: float) -> None:
        """Raises OverBudgetError if that is more memory than the search may hold. Asked before it is allocated."""
        if nbytes > self.budget.nbytes:
            raise OverBudgetError(f"the search would need {nbytes / 2**20:.0f} MiB")


UNLIMITED = Meter(SearchBudget(), lambda: 0.0)
"""For searches that end by themselves: small swarms, simulations."""
