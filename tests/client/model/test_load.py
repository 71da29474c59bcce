"""A model is made from the tensors outside its blocks, and connected to the swarm of its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blockswarm.client
import pytest
import torch
from blockswarm import client
from blockswarm.client.model.load import AutoSwarmModelForCausalLM, attach, load_ends
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from support.local_chain import LocalChain, connected_model
from support.prompts import GREEDY, full_model, prompt
from support.swarm_thread import swarm_thread
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


def test_from_pretrained_connects_to_the_swarm_of_the_checkpoint(full: PreTrainedModel, tmp_path: Path):
    full.save_pretrained(tmp_path)
    with swarm_thread(tmp_path, "0:3", "3:6") as thread:
        loaded = blockswarm.client.AutoSwarmModelForCausalLM.from_pretrained(
            tmp_path, initial_peers=[str(thread.swarm.peers[0].address)], push=False
        )
        assert loaded.generate(**prompt(5), **GREEDY).tolist() == full.generate(**prompt(5), **GREEDY).tolist()
        counters = [peer.parts.counters for peer in thread.swarm.peers]
    assert sum(counter.steps_relayed for counter in counters) > 0, "options reach the sessions: these do not push"
    assert sum(counter.steps_pushed for counter in counters) == 0


def test_the_class_is_exported():
    assert blockswarm.client.AutoSwarmModelForCausalLM.__name__ == "AutoSwarmModelForCausalLM"
    with pytest.raises(AttributeError):
        _ = blockswarm.client.nothing


NOBODY = "12D3KooWA29sxFFTDw3qgZr3igFR4Cz3XLFKKBWPuJ85BYzMzjiX@127.0.0.1:1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"token": "hf_x"}, "token"),
        ({"load_in_8bit": True}, "load_in_8bit"),
        ({"no_such_thing": 1}, "no_such_thing"),
        ({"dtype": "float31"}, "float31"),
        ({"torch_dtype": torch.int8}, "int8"),
        ({"initial_peers": "nonsense"}, "nonsense"),
        ({"initial_peers": ""}, "no initial peers"),
    ],
)
def test_arguments_are_refused_by_name_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    """The folder has no model: reading it would be another error."""
    with pytest.raises(UsageError, match=words):
        AutoSwarmModelForCausalLM.from_pretrained(tmp_path, **{"initial_peers": NOBODY} | options)


def test_habits_of_transformers_are_passed_over_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        AutoSwarmModelForCausalLM.from_pretrained(
            tmp_path,
            initial_peers=f"{NOBODY}, {NOBODY}",
            device_map="auto",
            torch_dtype="auto",
            trust_remote_code=False,
        )
    assert "device_map" in caplog.text


def test_a_model_closes_its_connections() -> None:
    model, chain = connected_model(full_model("llama"))
    with model as entered:
        assert entered is model
        assert not chain.closed
    assert chain.closed


def test_the_package_exports_what_people_catch() -> None:
    assert issubclass(client.UsageError, client.SwarmError)
    assert {"AutoSwarmModelForCausalLM", "SwarmError"} <= set(dir(client))
