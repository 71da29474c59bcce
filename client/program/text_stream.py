"""Decodes text as its tokens come; at the end it equals what the tokenizer makes of all tokens at once.

CleanUp       text in, text out, without the blanks that some tokenizers remove; holds back undecided text
TextStream    tokens in, text out; holds back incomplete characters
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from transformers.generation.streamers import BaseStreamer

_UNDECIDED = re.compile(r" [ 'nvr]*\Z")


def cleans_up(tokenizer: Any) -> bool:
    """Return whether `decode` removes blanks from the text: transformers' own rule, which it does not expose."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return type(model).__name__ != "BPE" or forced


class CleanUp:
    """Cleans up text that comes in pieces.

    A tokenizer's `clean_up_tokenization` only removes blanks: those before . ? ! , n't 'm 's 've and 're, and those
    around a single apostrophe.  The first character after a blank that is none of " 'nvr" decides about it: every
    pattern ends there or before, even one that only the removal of other blanks has joined.
    """

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next text; return what no later text changes."""
        held = self._held + text
        undecided = _UNDECIDED.search(held)
        cut = undecided.start() if undecided else len(held)
        self._held = held[cut:]
        return self._clean(held[:cut])

    def end(self) -> str:
        """Return the text that was held back, at the end of the text."""
        held, self._held = self._held, ""
        return self._clean(held)


class TextStream(BaseStreamer):
    """Writes text as its tokens come; an incomplete character waits for its remaining tokens."""

    def __init__(
        self,
        tokenizer: Any,
        write: Callable[[str], object],
        clock: Callable[[], float],
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """`shown`: special tokens that are part of the text; other special tokens are left out."""
        self.token_ids: list[int] = []
        self.text = ""
        self.first_at: float | None = None
        self._tokenizer = tokenizer
        self._write = write
        self._clock = clock
        self._hidden = set(tokenizer.all_special_ids) - shown if shown else None
        """The tokens to leave out; None: the tokenizer decides."""
        self._clean_up = CleanUp(tokenizer.clean_up_tokenization) if cleans_up(tokenizer) else None
        self._prompt_seen = False
        self._window_start = 0
        """Tokens from here on are decoded again with every new one: the text of some depends on the token before."""
        self._written = 0
        """The number of tokens whose text was written."""

    def put(self, value: Any) -> None:
        """Take new tokens; the first call has the prompt, which is skipped."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        if self.first_at is None:
            self.first_at = self._clock()
        self.token_ids += value.flatten().tolist()
        self._flush(whole_characters=True)

    def end(self) -> None:
        self._flush(whole_characters=False)
        if self._clean_up is not None:
            self._pass_on(self._clean_up.end())

    def _flush(self, whole_characters: bool) -> None:
        known = self._decode(self._window_start, self._written)
        text = self._decode(self._window_start, len(self.token_ids))
        if len(text) <= len(known) or (whole_characters and text.endswith("\N{REPLACEMENT CHARACTER}")):
            return
        new = text[len(known) :]
        self._window_start, self._written = self._written, len(self.token_ids)
        self._pass_on(new if self._clean_up is None else self._clean_up.push(new))

    def _pass_on(self, text: str) -> None:
        if text:
            self.text += text
            self._write(text)

    def _decode(self, start: int, stop: int) -> str:
        tokens = self.token_ids[start:stop]
        if self._hidden is not None:
            tokens = [token for token in tokens if token not in self._hidden]
        options = {} if self._clean_up is None else {"clean_up_tokenization_spaces": False}
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=self._hidden is None, **options)
        return text
