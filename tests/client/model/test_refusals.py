"""Offers of transformers and torch that a model without its blocks refuses in words, instead of doing them wrongly."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.proto.errors import UsageError
from support.prompts import GREEDY, prompt
from torch import nn

COPIES: dict[str, Callable[[Any], object]] = {
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "torch.save": lambda value: torch.save(value, io.BytesIO()),
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES.keys())
def test_what_is_connected_is_not_copied(model: Any, make_copy: Callable[[Any], object]) -> None:
    """Loaders of data, workers of pools and caches of prompts copy what they are given."""
    with model.session(max_length=20) as session:
        session.generate(**prompt(5), max_new_tokens=2)
        for value in (model, session, session.cache):
            with pytest.raises(UsageError, match="cannot be copied or pickled"):
                make_copy(value)


def test_a_model_without_its_blocks_is_not_saved(model: Any, tmp_path: Path) -> None:
    """transformers would fill the missing blocks with random numbers when it loads the folder."""
    for save in (model.save_pretrained, model.push_to_hub):
        with pytest.raises(UsageError, match="blocks are at the peers"):
            save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_continuous_batching_of_transformers_is_refused(model: Any) -> None:
    """It would log an error for each request, and return empty texts."""
    ids = prompt(5)["input_ids"]
    for call in (
        lambda: model.generate_batch(ids.tolist()),
        lambda: model.generate(ids, cache_implementation="paged", **GREEDY),
        lambda: model.continuous_batching_context_manager().__enter__(),
    ):
        with pytest.raises(UsageError, match="continuous batching"):
            call()


def test_compiling_is_refused(model: Any) -> None:
    with pytest.raises(UsageError, match="cannot be compiled"):
        torch.compile(model)
    with pytest.raises(UsageError, match="cannot be compiled"):
        model.compile()
    torch.compile(nn.Linear(1, 1))
    assert model.generate(**prompt(5), **GREEDY).shape == (1, 15)
