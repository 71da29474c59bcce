"""Decodes text as its tokens come; at the end it equals what the tokenizer makes of all tokens at once.

CleanUp       text in, text out, without the blanks that some tokenizers remove; holds back undecided text
ByteRuns      knows tokens whose text a later token may change: single bytes that follow each other
TextStream    tokens in, text out; holds back incomplete characters, and runs of such tokens
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from transformers.generation.streamers import BaseStreamer

_UNDECIDED = re.compile(r" [ 'nvr]*\Z")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""The names of tokens that are one byte each, for characters that a vocabulary lacks (*byte fallback*)."""


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

    def preview(self, text: str) -> str:
        """Return what `push` and `end` would return together, and take nothing."""
        return self._clean(self._held + text)

    def end(self) -> str:
        """Return the text that was held back, at the end of the text."""
        held, self._held = self._held, ""
        return self._clean(held)


class ByteRuns:
    """Knows up to which token the text is settled.

    Tokens that are one byte each are decoded together: if the bytes between two other tokens are not all UTF-8, each of
    them becomes a replacement character, also those that were characters before the last one came.
    """

    def __init__(self, tokenizer: Any, hidden: Collection[int] | None) -> None:
        """`hidden`: tokens that are left out before the text is decoded; None: the tokenizer's special tokens."""
        self._tokenizer = tokenizer
        self._hidden = hidden if hidden is not None else special_tokens(tokenizer)
        self._tokens = 0
        self.settled = 0
        """The number of tokens whose text no later token changes."""

    def take(self, token: int) -> None:
        """Take the next token."""
        is_open = self.settled < self._tokens
        self._tokens += 1
        name = None if token in self._hidden else self._tokenizer.convert_ids_to_tokens(token)
        goes_on = is_open if name is None else _BYTE.fullmatch(name)  # without text it neither begins nor ends a run
        if not goes_on:
            self.settled = self._tokens


def special_tokens(tokenizer: Any) -> set[int]:
    """Return the tokens that `decode` may leave out: those that the tokenizer uses, and others of its vocabulary."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}


class TextStream(BaseStreamer):
    """Writes text as its tokens come; an incomplete character waits for its remaining tokens, and a run for its end."""

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
        self._runs = ByteRuns(tokenizer, self._hidden)
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
        for token in value.flatten().tolist():
            self.token_ids.append(token)
            self._runs.take(token)
        new = self._text_up_to(self._runs.settled)
        if not new.endswith("\N{REPLACEMENT CHARACTER}"):
            self._write_out(new, self._runs.settled)

    def end(self) -> None:
        self._write_out(self._text_up_to(len(self.token_ids)), len(self.token_ids))
        if self._clean_up is not None:
            self._pass_on(self._clean_up.end())

    def decoded(self) -> str:
        """Return the text of all tokens, also if an interrupt came while a piece of it was written."""
        text = self._decode(0, len(self.token_ids))
        return text if self._clean_up is None else self._tokenizer.clean_up_tokenization(text)

    def preview(self) -> str:
        """Return what `end` would write now, if a run of single bytes waits for its end; else ""."""
        if self._runs.settled == len(self.token_ids):
            return ""
        new = self._text_up_to(len(self.token_ids))
        return new if self._clean_up is None else self._clean_up.preview(new)

    def _text_up_to(self, stop: int) -> str:
        """Return the text between the tokens that were written and token `stop`."""
        known = self._decode(self._window_start, self._written)
        return self._decode(self._window_start, stop)[len(known) :]

    def _write_out(self, new: str, stop: int) -> None:
        if new:
            self._window_start, self._written = self._written, stop
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
