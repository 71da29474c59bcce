"""The pieces of an answer as `generate` makes them: text with its log-probabilities, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

STOP = "stop"
"""The model ended its answer, or a stop string came."""
CALLS = "tool_calls"
"""The answer consists of tool calls, and ended as with STOP."""
LENGTH = "length"
"""The answer has reached its limit of tokens."""


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token and its log-probability."""

    text: str
    utf8: tuple[int, ...] | None
    """Its bytes, which may be a part of a character; None: not known."""
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the answer, and the likeliest alternatives."""

    token: LikelyToken
    likeliest: tuple[LikelyToken, ...]
    offset: int
    """The number of characters of the answer before it."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that the model asks for."""

    id: str
    name: str
    arguments: str
    """JSON as the model wrote it; incomplete if the answer was cut off."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The next text of one answer."""

    choice: int
    """The index of the answer."""
    text: str = ""
    scores: tuple[ScoredToken, ...] = ()
    tokens: int = 0
    """The number of tokens since the answer's previous piece, including those whose text is held back."""
    finish: str | None = None
    """STOP, LENGTH or CALLS in the answer's last piece, else None."""
    reasoning: str = ""
    """The next text of the model's reasoning, which comes before the answer's own text."""
    calls: tuple[ToolCall, ...] = ()
    """All tool calls of the answer, in its last piece."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The token counts of a request, over all its answers."""

    prompt: int
    completion: int
