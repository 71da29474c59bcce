"""A model whose blocks are three stages in this process, and the full model that it must agree with."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.local_chain import LocalChain, connected_model
from support.prompts import full_model
from transformers import PreTrainedModel


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def llama() -> tuple[PreTrainedModel, PreTrainedModel, LocalChain]:
    full = full_model("llama")
    return full, *connected_model(full)


@pytest.fixture
def full() -> PreTrainedModel:
    return llama()[0]


@pytest.fixture
def chain() -> LocalChain:
    chain = llama()[2]
    chain.reset()
    return chain


@pytest.fixture
def model(chain: LocalChain) -> Any:
    yield llama()[1]
    assert chain.open_sessions == 0, "a session was left open at the peers"
