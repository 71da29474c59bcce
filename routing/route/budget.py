"""The budget of time and memory for a search, and the meter that tracks it while the search runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


class OverBudgetError(Exception):
    """The search has used up its time, would need too much memory, or was stopped; the message says which."""


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """The most that a search may take before it settles for the best chain so far."""

    seconds: float = math.inf
    nbytes: float = math.inf
    """Peak memory; applies to the search and, separately, to the arrays that are compiled for it."""


class Meter:
    """The budget of one search while it runs; `stop` may be called from another thread."""

    def __init__(self, budget: SearchBudget, clock: Callable[[], float]) -> None:
        """Start the clock."""
        self.budget = budget
        self._clock = clock
        self._deadline = clock() + budget.seconds
        self._stopped = False

    def extend(self, share: float) -> None:
        """Set the deadline to that share of the budget's time from now."""
        self._deadline = self._clock() + share * self.budget.seconds

    def stop(self) -> None:
        """End the search at its next check, because nobody waits for the result any more."""
        self._stopped = True

    def check(self) -> None:
        """Raise OverBudgetError if the time is over or the search was stopped."""
        if self._stopped:
            raise OverBudgetError("the search was stopped")
        if self._clock() > self._deadline:
            raise OverBudgetError(f"the search took more than {self.budget.seconds} s")

    def check_bytes(self, nbytes: float) -> None:
        """Raise OverBudgetError if that is more memory than the search may hold; call this before allocating it."""
        if nbytes > self.budget.nbytes:
            raise OverBudgetError(f"the search would need {nbytes / 2**20:.0f} MiB")


UNLIMITED = Meter(SearchBudget(), lambda: 0.0)
"""For searches that end by themselves: small swarms, simulations."""
