"""The record of one step of the engine, for its listeners: the online cost estimate, the metrics, the governor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One forward pass of the engine over the tokens of several sessions."""

    sessions: int
    rows: int
    """Rows of all sessions that were part of the step."""
    decode_rows: int
    """Rows with a single new token."""
    prefill_tokens: int
    """New tokens of the rows with more."""
    context_tokens: int
    """Cached tokens that the rows attended to, the new ones included, summed over the rows."""
    blocks: float
    """Blocks computed, as a mean over the step's tokens: sessions may use a part of what is hosted."""
    seconds: float
    longest_wait_seconds: float
    """The longest time that a session's step of these waited before it began."""


StepListener = Callable[[StepRecord], None]
"""Is called in the engine's thread after every step, and must return at once."""
