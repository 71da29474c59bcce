"""How tokens are chosen: logits processors for `generate`, in OpenAI's terms and in a fixed order.

    the model's logits -> RecordedScores (for `logprobs`) -> the model's repetition penalty -> logit_bias
    -> presence and frequency penalty -> grammar mask -> temperature, top_k, top_p, min_p -> SeededDraw

SeededDraw turns the argmax of `generate` into a sample: it adds Gumbel noise to each log-probability, and the argmax of
the sums is distributed as the probabilities (the Gumbel-max trick).  The noise is a function of the seed, the answer's
index and the position, so equal seeds give equal tokens, whatever other threads do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ....proto.errors import UsageError
from ...model.generation import ONE_PLAIN_TEXT
from ..openai.requests import MAX_TOKEN_ID, Sampling

MEND_HINT = "Mend the file, or remove it: it holds only defaults."
LEAST_TEMPERATURE = 1e-5
"""Below this the likeliest token is taken."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """A model's own settings, for fields that a request leaves out."""

    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of(cls, generation_config: Any) -> SamplingDefaults:
        """Read transformers' GenerationConfig; its sampling settings count only if it has `do_sample`.

        Raises UsageError for values with which no request could be answered: they come from a model's file.
        """
        penalty = _number_in(generation_config, "repetition_penalty", 1e-6, 1e6)
        if not generation_config.do_sample:
            return cls(repetition_penalty=penalty)
        temperature = _number_in(generation_config, "temperature", 0, 1e6)
        top_k = _number_in(generation_config, "top_k", -1, MAX_TOKEN_ID)
        return cls(
            temperature=1.0 if temperature is None else temperature,
            top_p=_number_in(generation_config, "top_p", 0, 1),
            top_k=int(top_k) if top_k is not None and top_k >= 1 else None,
            min_p=_number_in(generation_config, "min_p", 0, 1),
            repetition_penalty=penalty,
        )


def _number_in(generation_config: Any, name: str, least: float, most: float) -> float | None:
    value: Any = getattr(generation_config, name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UsageError(f"generation_config.json says {name} = {repr(value)[:40]}", hint=MEND_HINT)
    return float(value)


class RecordedScores(LogitsProcessor):
    """Keeps the model's own log-probabilities until the token at their position is known."""

    def __init__(self) -> None:
        self._by_position: dict[int, torch.Tensor] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, length), (B, V) -> the same scores. A position that is computed again replaces its record."""
        self._by_position[input_ids.shape[1]] = torch.log_softmax(scores.float(), dim=-1)
        return scores

    def take(self, position: int) -> torch.Tensor:
        """Return and forget the log-probabilities for the token at `position`: (B, V)."""
        return self._by_position.pop(position)


class LogitBias(LogitsProcessor):
    """Adds a number to the logits of some tokens."""

    def __init__(self, biases: tuple[tuple[int, float], ...]) -> None:
        self._tokens = torch.tensor([token for token, _ in biases])
        self._values = torch.tensor([value for _, value in biases], dtype=torch.float32)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, length), (B, V) -> (B, V)."""
        scores = scores.clone()
        scores[:, self._tokens.to(scores.device)] += self._values.to(scores.device, scores.dtype)
        return scores


class CountPenalties(LogitsProcessor):
    """Lowers the logits of tokens that occur in the answer: by `presence` once, and by `frequency` per occurrence."""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self._prompt_length = prompt_length
        self._presence = presence
        self._frequency = frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, length), (B, V) -> (B, V)."""
        answer = input_ids[:, self._prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        return scores - self._presence * (counts > 0) - self._frequency * counts


class SeededDraw(LogitsProcessor):
    """Turns taking the likeliest token into sampling; must come last."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, length), (B, V) -> (B, V), float32, whose argmax is a sample."""
        noise = torch.stack([self._noise(row, input_ids.shape[1], scores.shape[1]) for row in range(len(scores))])
        return torch.log_softmax(scores.float(), dim=-1) + noise.to(scores.device)

    def _noise(self, row: int, position: int, size: int) -> torch.Tensor:
        digest = hashlib.blake2b(f"{self._seed}:{row}:{position}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        exponential = torch.empty(size, dtype=torch.float32).exponential_(generator=generator)
        return -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()


def processors(
    sampling: Sampling,
    defaults: SamplingDefaults,
    prompt_length: int,
    seed: int,
    recorded: RecordedScores | None = None,
    grammar: LogitsProcessor | None = None,
) -> list[LogitsProcessor]:
    """Return the processors for one greedy call of `generate`; `seed` is used if the request has none."""
    chosen: list[LogitsProcessor] = [] if recorded is None else [recorded]
    if defaults.repetition_penalty not in (None, 1.0):
        chosen.append(RepetitionPenaltyLogitsProcessor(defaults.repetition_penalty))
    if sampling.logit_bias:
        chosen.append(LogitBias(sampling.logit_bias))
    if sampling.presence_penalty or sampling.frequency_penalty:
        chosen.append(CountPenalties(prompt_length, sampling.presence_penalty, sampling.frequency_penalty))
    if grammar is not None:
        chosen.append(grammar)
    return [*chosen, *_drawing(sampling, defaults, seed)]


def _drawing(sampling: Sampling, defaults: SamplingDefaults, seed: int) -> list[LogitsProcessor]:
    temperature = defaults.temperature if sampling.temperature is None else sampling.temperature
    if temperature < LEAST_TEMPERATURE:
        return []
    top_p = defaults.top_p if sampling.top_p is None else sampling.top_p
    top_k = defaults.top_k if sampling.top_k is None else sampling.top_k
    min_p = defaults.min_p if sampling.min_p is None else sampling.min_p
    chosen: list[LogitsProcessor] = []
    if temperature != 1:
        chosen.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        chosen.append(TopPLogitsWarper(top_p))
    if min_p:
        chosen.append(MinPLogitsWarper(min_p))
    return [*chosen, SeededDraw(seed if sampling.seed is None else sampling.seed)]


def fixed_settings(end_tokens: tuple[int, ...], pad_token: int, max_new_tokens: int) -> Mapping[str, Any]:
    """Return the arguments that make `generate` greedy, so that only the processors choose tokens."""
    return {
        **ONE_PLAIN_TEXT,
        "do_sample": False,
        "num_beams": 1,
        "stop_strings": None,
        "repetition_penalty": 1.0,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(end_tokens) or None,
        "pad_token_id": pad_token,
    }
