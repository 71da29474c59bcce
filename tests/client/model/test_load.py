"""A model is made from the tensors outside its blocks, and connected to the swarm of its checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blockswarm.client
import pytest
import torch
from blockswarm.client.model.load import attach, load_ends
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from support.local_chain import LocalChain
from support.prompts import GREEDY, prompt
from transformers import GenerationConfig, PreTrainedModel


def test_a_model_without_a_swarm_says_so(full: PreTrainedModel, tmp_path: Path):
    full.save_pretrained(tmp_path)
    model: Any = load_ends(open_checkpoint(tmp_path))
    with pytest.raises(UsageError, match="not connected"):
        model.generate(torch.tensor([[5, 6]]), **GREEDY)


@pytest.mark.long
def test_ends_of_a_checkpoint(full: PreTrainedModel, model: Any, chain: LocalChain, tmp_path: Path):
    """The way that from_pretrained takes: only the tensors outside the blocks are read, generation defaults count."""
    full.save_pretrained(tmp_path, max_shard_size="50KB")
    GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=0).save_pretrained(tmp_path)
    for shard in tmp_path.glob("*.safetensors"):
        checkpoint = open_checkpoint(tmp_path)
        if all(tensor.file != shard.name for tensor in checkpoint.ends_tensors()):
            data = shard.read_bytes()
            header = 8 + int.from_bytes(data[:8], "little")
            shard.write_bytes(data[:header] + b"\xff" * (len(data) - header))
    loaded = attach(load_ends(open_checkpoint(tmp_path)), chain)
    assert sum(weight.numel() for weight in loaded.parameters()) == 2 * 257 * 64 + 64
    assert (
        loaded.generate(**prompt(5)).tolist() == full.generate(**prompt(5), **GREEDY | {"max_new_tokens": 7}).tolist()
    )


def test_from_pretrained_connects_to_the_swarm_of_the_checkpoint(
    full: PreTrainedModel, model: Any, chain: LocalChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, Any] = {}

    def connect(**options: Any) -> LocalChain:
        asked.update(options)
        return chain

    monkeypatch.setitem(sys.modules, "blockswarm.client.connect", SimpleNamespace(connect=connect))  # type: ignore[misc]
    full.save_pretrained(tmp_path)
    loaded = blockswarm.client.AutoSwarmModelForCausalLM.from_pretrained(
        tmp_path, initial_peers=["ID@localhost:1"], push=False
    )
    assert loaded.generate(**prompt(5), **GREEDY).tolist() == full.generate(**prompt(5), **GREEDY).tolist()
    assert (asked["initial_peers"], asked["push"]) == (["ID@localhost:1"], False)
    assert asked["checkpoint"].num_blocks == 6


def test_the_class_is_exported():
    assert blockswarm.client.AutoSwarmModelForCausalLM.__name__ == "AutoSwarmModelForCausalLM"
    with pytest.raises(AttributeError):
        _ = blockswarm.client.nothing
