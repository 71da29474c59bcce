"""Obstacles to serving a family are found by watching a tiny model of it at work."""

from __future__ import annotations

from typing import Any

import pytest
from blockswarm.peer.engine.blocks.obstacles import obstacle
from blockswarm.proto.errors import UnsupportedModel
from blockswarm.proto.model.tiny import tiny_config
from support.tiny_models import tiny_model_config
from transformers import AutoConfig


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral", "deepseek_v3"])
def test_nothing_is_in_the_way_of_a_plain_decoder(name: str) -> None:
    """Masks, positions, experts: everything that its blocks are given is the same for every text."""
    assert obstacle(tiny_config(tiny_model_config(name))) is None


@pytest.mark.parametrize(
    ("model_type", "changes", "found"),
    [
        ("bert", {}, "reads its text in both directions"),
        ("bert", {"is_decoder": True}, "has its blocks in a part that takes nothing but tokens"),
        ("openai-gpt", {}, "keeps no attention cache"),
        ("gemma4_text", {}, "shows its blocks the tokens themselves"),
        ("deepseek_v4", {}, "passes more than one hidden state"),
        ("trocr", {}, "numbers the tokens of a text itself"),
    ],
)
def test_the_property_is_named(model_type: str, changes: dict[str, Any], found: str) -> None:
    assert str(obstacle(tiny_config(AutoConfig.for_model(model_type, **changes)))).startswith(found)


def test_what_transformers_cannot_compute_is_said_to_be_that() -> None:
    config = tiny_config(tiny_model_config("llama"))
    config.head_dim = None
    with pytest.raises(UnsupportedModel, match="transformers itself"):
        obstacle(config)
