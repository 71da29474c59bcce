"""Keeps an answer to a JSON schema by masking all tokens that cannot continue it.

The grammar library reads tokens one by one.  `generate` may visit a position more than once, and discard tokens again
(speculation), so the tokens read so far are compared with the present ones, and rolled back where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits
from llguidance.hf import from_tokenizer
from transformers import LogitsProcessor

from ....proto.errors import one_line
from ..openai.errors import ApiError, invalid
from .reasoning import ReasoningTokens

WHITESPACE = r"[ \n\t]{0,16}"
"""Whitespace between JSON tokens, bounded because a model could otherwise produce it for ever."""


def grammar_tokenizer(tokenizer: Any, vocabulary_size: int, end_tokens: Sequence[int]) -> Any:
    """Convert the tokenizer for grammars, which takes up to a second. Raises ApiError if that is not possible."""
    if not end_tokens:
        raise invalid("answers of this model cannot be kept to a form: it has no token that ends one")
    try:
        return from_tokenizer(tokenizer, n_vocab=vocabulary_size, eos_token=list(end_tokens))
    except Exception as error:  # the library has no exception class of its own
        raise invalid(f"answers of this model cannot be kept to a form: {one_line(str(error))}") from None


class SchemaMask(LogitsProcessor):
    """Allows in each row of a batch only tokens that continue a JSON text of the schema.

    A model may reason before the text, with any tokens but those that end an answer.
    """

    def __init__(
        self,
        schema: str,
        tokenizer: Any,
        rows: int,
        prompt_length: int,
        param: str,
        reasoning: ReasoningTokens | None = None,
    ) -> None:
        """`tokenizer`: from `grammar_tokenizer`; `reasoning`: None if the model does not reason.

        Raises ApiError, which names `param`, for a schema that is invalid or not supported.
        """
        self._param = param
        matcher = _matcher(schema, tokenizer, param)
        self._matchers = [matcher, *(matcher.deep_copy() for _ in range(rows - 1))]
        self._read: list[list[int]] = [[] for _ in range(rows)]
        self._prompt_length = prompt_length
        self._end_tokens = frozenset(tokenizer.eos_tokens)
        self._reasoning = reasoning

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, length), (B, V) -> (B, V). Raises ApiError if no text of the schema continues an answer."""
        answers = input_ids[:, self._prompt_length :].tolist()
        return torch.stack([self._masked(row, answer, scores[row]) for row, answer in enumerate(answers)])

    def _masked(self, row: int, answer: list[int], scores: torch.Tensor) -> torch.Tensor:
        start = self._reasoning.content_start(answer) if self._reasoning is not None else 0
        if start is None:
            return scores.index_fill(0, torch.tensor([*self._end_tokens], device=scores.device), -torch.inf)
        if not self._advance(row, answer[start:]):
            return scores  # the row has ended and is being padded
        words = np.frombuffer(self._matchers[row].compute_bitmask(), dtype=np.uint8)
        if self._matchers[row].is_error():  # the library would otherwise end the answer here
            raise _impossible(self._matchers[row], self._param)
        allowed = torch.from_numpy(np.unpackbits(words, bitorder="little")[: len(scores)]).bool()
        if self._reasoning is not None and not self._reasoning.begun and not answer:
            allowed[self._reasoning.begin] = True
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _advance(self, row: int, content: list[int]) -> bool:
        """Advance a row's grammar to the end of its content; return False if the content has ended."""
        matcher, read = self._matchers[row], self._read[row]
        pairs = zip(read, content, strict=False)
        same = next((at for at, (old, new) in enumerate(pairs) if old != new), min(len(read), len(content)))
        if same < len(read):
            matcher.rollback(len(read) - same)
            del read[same:]
        for token in content[same:]:
            if read and read[-1] in self._end_tokens:
                return False
            if not matcher.consume_token(token):
                raise RuntimeError(f"the grammar does not take token {token}: {matcher.get_error()}")
            read.append(token)
        return not (read and read[-1] in self._end_tokens)


def _matcher(schema: str, tokenizer: Any, param: str) -> LLMatcher:
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        raise _impossible(matcher, param)
    return matcher


def _impossible(matcher: LLMatcher, param: str) -> ApiError:
    """Return the error for an invalid schema, and for one in which a text cannot be continued."""
    return invalid(f"the schema is not possible here: {one_line(matcher.get_error())}", param, "invalid_value")
