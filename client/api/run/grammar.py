"""Keeps an answer to a JSON schema: tokens that cannot continue it are given no probability.

The grammar library reads tokens one after the other.  `generate` may look at a place more than once, and at places that
it gives up again (speculation), so the tokens that were read are compared with those that are there now.
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
"""Between the parts of a JSON text; a model could go on with it for ever."""


def grammar_tokenizer(tokenizer: Any, vocabulary_size: int, end_tokens: Sequence[int]) -> Any:
    """The tokenizer as grammars read it; making it takes up to a second. Raises ApiError if it cannot be read."""
    if not end_tokens:
        raise invalid("answers of this model cannot be kept to a form: it has no token that ends one")
    try:
        return from_tokenizer(tokenizer, n_vocab=vocabulary_size, eos_token=list(end_tokens))
    except Exception as error:  # the library has no class for what it cannot read
        raise invalid(f"answers of this model cannot be kept to a form: {one_line(str(error))}") from None


class SchemaMask(LogitsProcessor):
    """Leaves to each row of a batch the tokens that continue a JSON text of the schema.

    A model may reason before the text, in any tokens but those that end an answer.
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
        """`tokenizer`: of `grammar_tokenizer`; `reasoning`: None where the model cannot reason.

        Raises ApiError, which names `param`, for an impossible schema.
        """
        self._param = param
        matcher = _matcher(schema, tokenizer, param)
        self._matchers = [matcher, *(matcher.deep_copy() for _ in range(rows - 1))]
        self._read: list[list[int]] = [[] for _ in range(rows)]
        self._prompt_length = prompt_length
        self._end_tokens = frozenset(tokenizer.eos_tokens)
        self._reasoning = reasoning

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, length), (B, V) -> (B, V). Raises ApiError where no text of the schema begins like an answer."""
        answers = input_ids[:, self._prompt_length :].tolist()
        return torch.stack([self._masked(row, answer, scores[row]) for row, answer in enumerate(answers)])

    def _masked(self, row: int, answer: list[int], scores: torch.Tensor) -> torch.Tensor:
        start = self._reasoning.content_start(answer) if self._reasoning is not None else 0
        if start is None:
            return scores.index_fill(0, torch.tensor([*self._end_tokens], device=scores.device), -torch.inf)
        if not self._advance(row, answer[start:]):
            return scores  # the row has ended, and is filled up
        words = np.frombuffer(self._matchers[row].compute_bitmask(), dtype=np.uint8)
        if self._matchers[row].is_error():  # the library would then have the answer end where it is
            raise _impossible(self._matchers[row], self._param)
        allowed = torch.from_numpy(np.unpackbits(words, bitorder="little")[: len(scores)]).bool()
        if self._reasoning is not None and not self._reasoning.begun and not answer:
            allowed[self._reasoning.begin] = True
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _advance(self, row: int, content: list[int]) -> bool:
        """Have the grammar of a row read its content; False if that goes on behind its end."""
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
    """For a schema that is none, and for one that some texts cannot be continued in."""
    return invalid(f"the schema is not possible here: {one_line(matcher.get_error())}", param, "invalid_value")
