"""Separates a model's reasoning from its answer: the text between two marks at the beginning.

Models that reason write `<think>...</think>` and then the answer; some templates write the first mark at the end of the
prompt.  A pair of marks is used only if the model's own tokenizer or template has it.  If each mark is one token, it
may be a special token that decoding leaves out; and only then can an answer that must keep to a schema be separated
from the reasoning before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..pieces import Piece, ScoredToken

PAIRS = (("<think>", "</think>"), ("<seed:think>", "</seed:think>"), ("[THINK]", "[/THINK]"))
"""The marks of Qwen, DeepSeek, GLM and others; of Seed-OSS; of Magistral."""
TAIL_TOKENS = 16
"""How many tokens at the prompt's end are searched for the first mark."""


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """The texts around a model's reasoning."""

    begin: str
    end: str
    tokens: tuple[int, int] | None = None
    """The marks as token ids, if each is one token."""
    shown: frozenset[int] = frozenset()
    """Those that are special tokens, which decoding would leave out."""

    def begun_by(self, tokenizer: Any, prompt: Sequence[int]) -> bool:
        """Return whether the prompt ends with the first mark, so that the answer begins with reasoning."""
        text: str = tokenizer.decode(list(prompt[-TAIL_TOKENS:]), skip_special_tokens=False)
        return text.rstrip().endswith(self.begin)


def reasoning_marks(tokenizer: Any) -> ReasoningMarks | None:
    """Return the marks in the model's tokenizer or template, if there are any."""
    known = tokenizer.get_added_vocab()
    special = set(tokenizer.all_special_ids)
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for begin, end in PAIRS:
        if begin in known and end in known:
            tokens = known[begin], known[end]
            return ReasoningMarks(begin, end, tokens, frozenset(special.intersection(tokens)))
        if end in known or end in template:
            return ReasoningMarks(begin, end)
    return None


@dataclass(frozen=True, slots=True)
class ReasoningTokens:
    """The tokens that separate an answer's reasoning from its content."""

    begin: int
    end: int
    begun: bool
    """Whether the prompt has the first mark."""

    def content_start(self, answer: Sequence[int]) -> int | None:
        """Return the index at which an answer's content begins; None: not yet."""
        if not self.begun and (not answer or answer[0] != self.begin):
            return 0
        return answer.index(self.end) + 1 if self.end in answer else None


class ReasoningReader:
    """Splits one answer into reasoning and content. Holds back only text that is blank or may be part of a mark."""

    def __init__(self, marks: ReasoningMarks, begun: bool) -> None:
        """`begun`: the prompt has the first mark."""
        self._marks = marks
        self._held = ""
        self._taken = 0
        """The number of characters of the answer before the held ones."""
        self._scores: list[ScoredToken] = []
        """The scores of tokens that may be reasoning or content."""
        self._read = self._after_begin if begun else self._before

    def read(self, piece: Piece) -> Piece:
        """Return the piece with its content and reasoning separated; its scores are those of the content's tokens."""
        self._held += piece.text
        self._scores += piece.scores
        reasoning, text = self._read(piece.finish is not None)
        return replace(piece, text=text, reasoning=reasoning, scores=self._settled())

    def _settled(self) -> tuple[ScoredToken, ...]:
        if self._read == self._before or self._read == self._after_end:
            return ()
        scores, self._scores = self._scores, []
        return tuple(scores) if self._read == self._content else ()

    # The states of the reader: each takes what it can from the held text, and returns (reasoning, content).

    def _before(self, is_last: bool) -> tuple[str, str]:
        begun = self._held.lstrip()
        if begun.startswith(self._marks.begin):
            self._take(self._held.index(self._marks.begin) + len(self._marks.begin))
            return self._go_on(self._after_begin, is_last)
        if self._marks.begin.startswith(begun) and not is_last:
            return "", ""
        return self._go_on(self._content, is_last)

    def _after_begin(self, is_last: bool) -> tuple[str, str]:
        self._take(len(self._held) - len(self._held.lstrip()))
        return self._go_on(self._inside, is_last) if self._held else ("", "")

    def _inside(self, is_last: bool) -> tuple[str, str]:
        end = self._marks.end
        at = self._held.find(end)
        if at < 0:
            keep = 0 if is_last else overlap(self._held, end)
            return self._take(len(self._held) - keep), ""
        reasoning = self._take(at)
        self._take(len(end))
        return reasoning, self._go_on(self._after_end, is_last)[1]

    def _after_end(self, is_last: bool) -> tuple[str, str]:
        self._take(len(self._held) - len(self._held.lstrip()))
        if not self._held:
            return "", ""
        self._scores = [score for score in self._scores if score.offset >= self._taken]
        return self._go_on(self._content, is_last)

    def _content(self, is_last: bool) -> tuple[str, str]:
        return "", self._take(len(self._held))

    def _go_on(self, read: Any, is_last: bool) -> tuple[str, str]:
        self._read = read
        found: tuple[str, str] = read(is_last)
        return found

    def _take(self, chars: int) -> str:
        text, self._held = self._held[:chars], self._held[chars:]
        self._taken += chars
        return text


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `mark`."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
