"""The record of one step of the engine, for its listeners: the online cost estimate, the metrics, the governor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One forward pass of the engine over the tokens of several sessions."""

    sessions: int
    """Sessions whose part was computed; all that is counted here is theirs."""
    rows: int
    """Rows in the step, of all sessions."""
    decode_rows: int
    """Rows with a single new token."""
    prefill_tokens: int
    """New tokens of the rows with more than one."""
    context_tokens: int
    """Tokens that the rows attended to, including the new ones, summed over the rows."""
    blocks: float
    """Blocks computed, as a mean over the step's tokens: sessions may use a part of the hosted blocks."""
    seconds: float
    """The time of the step, with that of parts that failed."""
    longest_wait_seconds: float
    """The longest wait of a session's step before its first part was computed here; 0 if none began."""
    failed_sessions: int = 0
    """Sessions whose part failed; if there are any, the others were computed again, each in a pass of its own."""


StepListener = Callable[[StepRecord], None]
"""Called in the engine's thread after every step of which some part was computed; must return at once."""
