"""The text of one answer as its tokens come: whole characters only, up to the first stop string.

    StopText    text in, text out, up to the first stop string; holds back text that may be the start of one
    RowText     tokens in, pieces out, with the log-probabilities of the tokens whose text was passed on

Nothing here ends `generate`: an ended answer only says so (`RowText.finish`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from ...program.text_stream import TextStream
from ..pieces import LENGTH, STOP, Piece, ScoredToken
from .reasoning import overlap


class StopText:
    """Passes text on up to the first stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take the next text; return the text that can no longer be part of a stop string."""
        if self.stopped:
            return ""
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return held[: min(found)]
        keep = max((overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def would_stop(self, following: Callable[[], str]) -> bool:
        """Return whether the text that `following` returns, if it came next, would end the answer."""
        if not self._stops:
            return False
        text = self._held + following()
        return any(stop in text for stop in self._stops)

    def end(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


class RowText:
    """The text of one answer in a batch of `generate`. Only the model's tokens decide where it ends."""

    def __init__(
        self,
        choice: int,
        tokenizer: Any,
        stops: Sequence[str],
        end_tokens: Collection[int],
        max_tokens: int,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """The answer ends with a token of `end_tokens`, a stop string, or `max_tokens` tokens.

        `shown`: special tokens whose text is part of the answer.
        """
        self.tokens = 0
        """The number of tokens so far, including the one that ended the answer."""
        self.finish: str | None = None
        self._choice = choice
        self._counted = 0
        """The number of tokens up to the last piece."""
        self._end_tokens = end_tokens
        self._max_tokens = max_tokens
        self._stop = StopText(stops)
        self._decoder = TextStream(tokenizer, self._pass_on, lambda: 0.0, shown)
        self._decoder.put(None)  # the prompt, which it skips
        self._released: list[str] = []
        self._released_chars = 0
        self._scores: deque[ScoredToken] = deque()
        """The scores of tokens whose text is held back or incomplete."""
        self._ended = False
        """Whether the last piece was returned."""

    @property
    def decoded_chars(self) -> int:
        """The number of characters so far, including those held back."""
        return len(self._decoder.text)

    def take(self, token: int, score: ScoredToken | None = None) -> None:
        """Add the next token of an answer that has not ended."""
        assert self.finish is None
        self.tokens += 1
        if token in self._end_tokens:
            self._end(STOP)
            return
        if score is not None:
            self._scores.append(score)
        self._decoder.put(torch.tensor([token]))
        if self._stop.stopped:
            self.finish = STOP
        elif self._stop.would_stop(self._decoder.preview):
            self._end(STOP)
        elif self.tokens >= self._max_tokens:
            self._end(LENGTH)

    def piece(self) -> Piece | None:
        """Return text and log-probabilities since the last call; None if there are none, or after the last piece."""
        if self._ended:
            return None
        self._ended = self.finish is not None
        text = "".join(self._released)
        self._released.clear()
        scores = []
        whole = self.finish is not None and not self._stop.stopped
        while self._scores and (whole or self._scores[0].offset < self._released_chars):
            scores.append(self._scores.popleft())
        if not text and not scores and self.finish is None:
            return None
        tokens, self._counted = self.tokens - self._counted, self.tokens
        return Piece(self._choice, text, tuple(scores), tokens, self.finish)

    def _end(self, finish: str) -> None:
        self._decoder.end()
        self._pass_on_rest()
        self.finish = STOP if self._stop.stopped else finish

    def _pass_on(self, text: str) -> None:
        self._release(self._stop.push(text))

    def _pass_on_rest(self) -> None:
        self._release(self._stop.end())

    def _release(self, text: str) -> None:
        self._released.append(text)
        self._released_chars += len(text)
