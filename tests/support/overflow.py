"""A tiny model in which one token overflows, as a large activation does in float16, and the others do not."""

from __future__ import annotations

from pathlib import Path

import torch
from blockswarm.proto.model.tiny import random_model
from support.local_engine import HIDDEN, random_hidden
from support.tiny_models import tiny_model_config

BAD_TOKEN = 7


def write_overflowing_checkpoint(folder: Path, name: str = "llama", block: int = 0) -> Path:
    """Write a checkpoint whose block `block` makes infinite values of the embedding of `BAD_TOKEN`.

    The first number of an embedding is 0 in all other tokens; the blocks before leave it as it is. It goes into the
    values of that block's attention, times the largest float32.
    """
    model = random_model(tiny_model_config(name))
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[:, 0] = 0.0
        embeddings[BAD_TOKEN] = bad_hidden()[0]
        for layer in model.model.layers[:block]:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.model.layers[block].self_attn.v_proj.weight[:, 0] = torch.finfo(torch.float32).max
    model.save_pretrained(folder)
    return folder


def good_hidden(count: int, seed: int = 0) -> torch.Tensor:
    """Return inputs of the first block that it can compute."""
    hidden = random_hidden(count, seed)
    hidden[:, 0] = 0.0
    return hidden


def bad_hidden(count: int = 1) -> torch.Tensor:
    """Return inputs of the first block that overflow there."""
    hidden = torch.zeros(count, HIDDEN)
    hidden[:, 0] = 1.0
    return hidden
