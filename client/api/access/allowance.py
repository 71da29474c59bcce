"""The limits of an API key: requests per minute and tokens per day, both refilled steadily (token buckets).

A request takes the most tokens that it may need in advance, and gives back what it did not use at its end; so
concurrent requests share one budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..openai.errors import RATE_LIMIT, ApiError

MINUTE = 60.0
DAY = 86400.0


class Budget:
    """An amount that is refilled evenly up to its size; the last request may overdraw it."""

    def __init__(self, size: float, period_seconds: float, clock: Callable[[], float]) -> None:
        self._size = size
        self._per_second = size / period_seconds
        self._clock = clock
        self._left = size
        self._at = clock()

    def left(self) -> float:
        now = self._clock()
        self._left = min(self._size, self._left + (now - self._at) * self._per_second)
        self._at = now
        return self._left

    def take(self, amount: float) -> None:
        """Take `amount`; a negative one gives it back."""
        self._left = self.left() - amount

    def seconds_until(self, amount: float) -> float:
        """Return the seconds until this much is left; 0 if it is now."""
        return max(0.0, (amount - self.left()) / self._per_second)


class Spending:
    """The tokens that one request has reserved and used. Made by `Allowance.spending`."""

    def __init__(self) -> None:
        self.reserved = 0
        self.used = 0

    def reserve(self, tokens: int) -> None:
        """Take the most tokens that the request may need. Raises ApiError if other requests have left none."""
        self.reserved = tokens

    def use(self, tokens: int) -> None:
        self.used += tokens


class _Counted(Spending):
    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self._budget = budget

    def reserve(self, tokens: int) -> None:
        _require_tokens(self._budget)
        super().reserve(tokens)
        self._budget.take(tokens)


class Allowance:
    """The budgets of one key; a limit of None is no limit."""

    def __init__(self, requests_per_minute: int | None, tokens_per_day: int | None, clock: Callable[[], float]) -> None:
        self._requests = None if requests_per_minute is None else Budget(requests_per_minute, MINUTE, clock)
        self._tokens = None if tokens_per_day is None else Budget(tokens_per_day, DAY, clock)

    @contextmanager
    def spending(self) -> Iterator[Spending]:
        """Yield the spending of one request, and refund unused tokens. Raises ApiError with a time if none are left."""
        if self._requests is not None and (seconds := self._requests.seconds_until(1)) > 0:
            raise _exhausted("too many requests with this key", "rate_limit_exceeded", seconds)
        if self._tokens is not None:
            _require_tokens(self._tokens)
        if self._requests is not None:
            self._requests.take(1)
        spending = Spending() if self._tokens is None else _Counted(self._tokens)
        try:
            yield spending
        finally:
            if self._tokens is not None:
                self._tokens.take(spending.used - spending.reserved)


def _require_tokens(budget: Budget) -> None:
    """Raise ApiError if nothing is left."""
    if (seconds := budget.seconds_until(1)) > 0:
        raise _exhausted("the tokens of this key are used up", "insufficient_quota", seconds)


def _exhausted(message: str, code: str, seconds: float) -> ApiError:
    return ApiError(429, message, kind=RATE_LIMIT, code=code, retry_after_seconds=seconds)
