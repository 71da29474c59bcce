"""One model of the endpoint, connected to its swarm, with the facts that requests need."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from ...proto.errors import UsageError
from ..program.talk import Talker
from .openai.requests import MAX_TOKEN_ID
from .run.reasoning import ReasoningMarks, reasoning_marks
from .run.sampling import MEND_HINT, SamplingDefaults


@dataclass(frozen=True)
class ServedModel:
    """One served model. Made by `served_model`."""

    name: str
    """The name in requests."""
    talker: Talker
    created: int
    """Unix seconds."""
    fingerprint: str
    max_length: int
    """The most tokens of a prompt and its answer together."""
    default_max_tokens: int
    """The most tokens of an answer whose request sets no limit."""
    defaults: SamplingDefaults
    end_tokens: tuple[int, ...]
    pad_token: int
    vocabulary_size: int
    reasoning: ReasoningMarks | None = None
    """The texts that the model writes around its reasoning."""

    @functools.cached_property
    def grammar_tokenizer(self) -> Any:
        """The tokenizer for grammars, made on first use; two threads may both make it. Raises ApiError."""
        from .run.grammar import grammar_tokenizer

        return grammar_tokenizer(self.talker.tokenizer, self.vocabulary_size, self.end_tokens)


def served_model(
    name: str, talker: Talker, fingerprint: str, created: int, max_length: int | None, default_max_tokens: int
) -> ServedModel:
    """Make a `ServedModel`; `max_length` lowers the model's own limit (None: does not).

    Raises UsageError for defaults in the model's files with which no request could be answered.
    """
    model = talker.model
    config = model.config.get_text_config(decoder=True)
    known = (getattr(config, "max_position_embeddings", None), getattr(model, "position_limit", None), max_length)
    limits = [limit for limit in known if limit]
    settings = model.generation_config
    ends = end_tokens(settings.eos_token_id, getattr(talker.tokenizer, "eos_token_id", None))
    pad = settings.pad_token_id
    return ServedModel(
        name=name,
        talker=talker,
        created=created,
        fingerprint=fingerprint,
        max_length=min(limits, default=LONGEST_TEXT),
        default_max_tokens=default_max_tokens,
        defaults=SamplingDefaults.of(settings),
        end_tokens=ends,
        pad_token=pad if pad is not None else (ends[0] if ends else 0),
        vocabulary_size=config.vocab_size,
        reasoning=reasoning_marks(talker.tokenizer),
    )


LONGEST_TEXT = 1 << 20
"""The limit in tokens for a model that has none of its own."""


def end_tokens(model_ends: Any, tokenizer_end: int | None) -> tuple[int, ...]:
    """Return the tokens that end an answer: those of the generation config, and the tokenizer's, which ends a turn.

    Raises UsageError for something else than tokens.
    """
    listed = model_ends if isinstance(model_ends, list) else [model_ends]
    tokens = [token for token in (*listed, tokenizer_end) if token is not None]
    if not all(type(token) is int and abs(token) <= MAX_TOKEN_ID for token in tokens):
        raise UsageError(f"the model's files say eos_token_id = {repr(model_ends)[:40]}", hint=MEND_HINT)
    return tuple(sorted(set(tokens)))
