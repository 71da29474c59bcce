"""The pieces of an answer as `generate` makes them: text with its probabilities, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

STOP = "stop"
"""The model ended its answer, or a stop string came."""
CALLS = "tool_calls"
"""The answer is calls of tools, and ended as with STOP."""
LENGTH = "length"
"""The answer has as many tokens as it may have."""


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token, and the logarithm of its probability."""

    text: str
    utf8: tuple[int, ...] | None
    """Its bytes, of which half a character may have come with another token; None: not known."""
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the answer, and the likeliest ones in its place."""

    token: LikelyToken
    likeliest: tuple[LikelyToken, ...]
    offset: int
    """Characters of the answer before it."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model asks for."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it: of an answer that was cut it may be a part."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The next text of one answer."""

    choice: int
    """The number of the answer."""
    text: str = ""
    scores: tuple[ScoredToken, ...] = ()
    tokens: int = 0
    """Tokens of the answer since its piece before; also those whose text is held back."""
    finish: str | None = None
    """STOP, LENGTH or CALLS with the answer's last piece."""
    reasoning: str = ""
    """The next text that the model wrote before the answer's own text."""
    calls: tuple[ToolCall, ...] = ()
    """All calls of the answer, with its last piece."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The tokens of a request, over all its answers."""

    prompt: int
    completion: int
