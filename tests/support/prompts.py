"""Prompts and calls of `generate` for the tests of the client's model, and the full model to compare with."""

from __future__ import annotations

from typing import Any

import torch
from blockswarm.proto.model.tiny import random_model
from support.tiny_models import tiny_model_config
from transformers import PreTrainedModel

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 10}


def full_model(name: str, **changes: Any) -> PreTrainedModel:
    """A whole model of a tiny family with random weights, as its users would run it."""
    model = random_model(tiny_model_config(name, **changes))
    model.generation_config.pad_token_id = 0
    # MPT's own configuration switches the cache off.
    model.config.use_cache = model.generation_config.use_cache = True
    return model


def prompt(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of prompts of these lengths, padded on the left."""
    ids = torch.randint(3, 199, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def appended(tokens: torch.Tensor, *new: int) -> torch.Tensor:
    """(1, T) -> (1, T + new)"""
    return torch.cat([tokens, torch.tensor([list(new)])], dim=1)
