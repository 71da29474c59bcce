"""Prompts and calls for tests of guessing ahead through a swarm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

NEW_TOKENS = 40


class AtTokens(BaseStreamer):
    """Does something, once, when the new token of a number comes; the text waits for it."""

    def __init__(self, actions: Mapping[int, Callable[[], object]]) -> None:
        self._actions = dict(actions)
        self._count = -1  # the prompt comes first

    def put(self, value: torch.Tensor) -> None:
        self._count += 1
        self._actions.pop(self._count, lambda: None)()

    def end(self) -> None:
        assert not self._actions


class AtToken(AtTokens):
    """Does one thing."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        super().__init__({number: action})


def prompt_of(tokens: int) -> torch.Tensor:
    half = torch.randint(3, 250, (1, tokens // 2), generator=torch.Generator().manual_seed(1))
    return half.repeat(1, 2)


def generate(model: Any, prompt: torch.Tensor, **options: Any) -> list[int]:
    torch.manual_seed(0)
    whole = {"max_new_tokens": NEW_TOKENS, "pad_token_id": 0, "eos_token_id": None, "do_sample": False} | options
    tokens: list[int] = model.generate(prompt, **whole)[0].tolist()
    return tokens
