"""Models whose files are made to keep a program busy, or to take its memory: refused at once, with a reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from blockswarm.client.model.load import load_ends
from blockswarm.proto.errors import ModelMismatch, SwarmError, UnsupportedModel, UsageError
from blockswarm.proto.model.bounds import (
    SPARE_ELEMENTS,
    block_number,
    check_counts,
    check_elements,
    check_sizes,
    plain_block_count,
)
from blockswarm.proto.model.checkpoint import block_prefix, open_checkpoint
from blockswarm.proto.model.folder import MAX_DIMENSIONS, MAX_NAME_CHARS, TensorInfo, parse_header
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import tiny_model_config, write_tiny_checkpoint
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TENSORS = [TensorInfo(f"model.layers.{block}.weight", "F32", (64, 257), "f", 0, 4 * 64 * 257) for block in range(6)]
SECONDS = 2.0
"""The time of a processor for a refusal; it takes some milliseconds."""


@contextmanager
def at_once() -> Iterator[None]:
    begun_at = time.process_time()
    yield
    assert time.process_time() - begun_at < SECONDS


# --- names ---


@pytest.mark.parametrize(
    "name",
    ["a" * 300_000, "a1" * 150_000, "a." * 150_000, "1a." * 100_000 + "1", "." * 300_000, "1" * 300_000 + ".a"],
    ids=["long", "digits between", "many parts", "no end", "dots", "a long number"],
)
def test_a_name_is_read_in_the_time_of_its_length(name: str) -> None:
    """A regular expression took hours for names like these, and a header has room for them."""
    with at_once():
        assert block_number(name) is None
        with pytest.raises(UsageError, match="complete series"):
            block_prefix([name] * 10, 6)


@given(st.text("a1.2b\u0663", max_size=12))
def test_the_block_of_a_tensor_is_the_first_number_in_its_name(name: str) -> None:
    """The same in the words of a regular expression, which is good for short names only."""
    match = re.fullmatch(r"(?P<prefix>(?:[^.]*[^.0-9][^.]*\.)+)(?P<block>[0-9]{1,6})\.(?=.*[^.]).+", name)
    assert block_number(name) == ((match["prefix"], int(match["block"])) if match else None)


# --- headers ---


def header(**entry: Any) -> list[TensorInfo]:
    name = entry.pop("name", "x")
    text = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(4)
    return parse_header("model.safetensors", len(data), lambda start, stop: data[start:stop])


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "x" * (MAX_NAME_CHARS + 1)},
        {"shape": [1] * (MAX_DIMENSIONS + 1)},
        {"shape": [10**4000] * 10},
        {"shape": [0, 10**30]},
        {"shape": [True]},
        {"shape": [1.0]},
        {"shape": ["1"]},
        {"shape": 1},
        {"shape": [-1, -1]},
        {"dtype": "F31"},
        {"dtype": ["F32"]},
        {"dtype": None},
        {"data_offsets": [0, 10**4000]},
        {"data_offsets": [0]},
    ],
    ids=lambda entry: str(entry)[:30],
)
def test_a_tensor_that_cannot_be_is_no_tensor(entry: dict[str, Any]) -> None:
    assert header()[0].nbytes == 4
    with at_once(), pytest.raises(UsageError, match="is not a whole safetensors file"):
        header(**entry)


# --- numbers ---


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"n_layer": 10**12},
        {"text_config": {"decoder": [{"encoder_layers": 10**9}]}},
        {"num_experts": 10**9},
        {"num_labels": 10**9},
        {"layer_types": [10**9]},
        {"num_attention_heads": 1e300},
        {"num_hidden_layers": 10**4000},
    ],
    ids=lambda values: str(values)[:40],
)
def test_no_configuration_counts_what_the_weights_have_not(values: dict[str, Any]) -> None:
    """transformers makes lists of that length when it reads one."""
    with at_once(), pytest.raises(UsageError, match=r"config\.json says .* the weights are 6 tensors"):
        check_counts(values, TENSORS, "config.json")


def test_usual_numbers_are_no_counts() -> None:
    check_counts(
        {"max_position_embeddings": 10**7, "rope_theta": 1e12, "max_window_layers": 28, "layer_norm_eps": 1e-5,
         "tie_word_embeddings": True, "eos_token_id": [10**6]},
        TENSORS, "config.json",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "vocab_size"])
@pytest.mark.parametrize("value", [0, -1, 10**12, "eight", None, 2.5, True, [1]])
def test_the_sizes_of_a_model_fit_its_weights(name: str, value: Any) -> None:
    config = tiny_model_config("llama")
    check_sizes(config, TENSORS, "config.json")
    object.__setattr__(config, name, value)
    with pytest.raises(UsageError, match=rf"config\.json says {name} = .* does not fit the weights"):
        check_sizes(config, TENSORS, "config.json")


def test_an_embedding_is_not_larger_than_all_weights() -> None:
    config = tiny_model_config("llama", vocab_size=10**5, hidden_size=10**4)
    long = [TensorInfo(f"t{index}", "U8", (10**5,), "f", 0, 10**5) for index in range(6)]
    with pytest.raises(UsageError, match="larger than all of the weights"):
        check_sizes(config, long, "config.json")


def test_a_model_is_not_much_larger_than_its_weights() -> None:
    check_elements(2 * 10**6 + SPARE_ELEMENTS, 10**6, "a model")
    with pytest.raises(ModelMismatch, match="a model of 1000000000000 numbers, the weights have 1000"):
        check_elements(10**12, 1000, "a model")


# --- whole folders ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("model"))


@contextmanager
def changed(folder: Path, **values: Any) -> Iterator[None]:
    path = folder / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **values}))
    try:
        yield
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"num_hidden_layers": 10**9}, UsageError),
        ({"num_hidden_layers": "eight"}, UnsupportedModel),
        ({"num_hidden_layers": 0}, UsageError),
        ({"num_hidden_layers": 7}, UsageError),
        ({"hidden_size": 10**12}, UsageError),
        ({"vocab_size": 10**12}, UsageError),
        ({"num_attention_heads": 0}, UnsupportedModel),
        ({"dtype": "eight"}, UnsupportedModel),
        ({"model_type": ["llama"]}, UnsupportedModel),
        ({"model_type": "x" * 10**6}, UnsupportedModel),
        ({"rope_parameters": "eight"}, UnsupportedModel),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else value.__name__,
)
def test_a_hostile_configuration_is_refused_at_once(folder: Path, values: dict[str, Any], error: type) -> None:
    with changed(folder, **values), at_once(), pytest.raises(error) as refusal:
        _ = open_checkpoint(folder).config
    assert len(str(refusal.value)) < 1000


BAD_VALUES: dict[str, list[Any]] = {
    "num_hidden_layers": [None, [], {}, "six", -1, 6.5, True, 10**8, 10**30],
    "hidden_size": [None, [64], "64", 0, -64, 10**12],
    "intermediate_size": [None, "x", -1, 10**12],
    "vocab_size": [None, {}, "many", -1, 10**12],
    "num_attention_heads": [None, "x", 0, -1, 3, 10**9],
    "num_key_value_heads": ["x", 0, 3, 10**9],
    "head_dim": ["x", 0, -1, 10**9],
    "hidden_act": [None, "no such function", 7, ["silu"]],
    "rms_norm_eps": [None, "x", [], {}],
    "rope_parameters": [[], "x", {"rope_type": "no such"}, {"rope_theta": "x"}, {"rope_type": "yarn"}],
    "max_position_embeddings": ["x", -1, [], 10**30],
    "model_type": [None, 7, "", {"a": 1}],
    "quantization_config": [{"quant_method": "no such"}, "x", []],
    "layer_types": ["x", [None], ["no such"] * 6],
    "text_config": ["x", [], {"num_hidden_layers": 10**8}],
    "dtype": [7, "eight"],
}
"""Kinds of values that a config.json may have by mistake, or to do harm."""


@pytest.mark.long
@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_bad_value_is_refused_in_a_line_or_harmless(folder: Path, name: str) -> None:
    """Whatever a family's own code raises over it: a user gets no traceback of foreign code."""
    refusals = []
    for value in BAD_VALUES[name]:
        with changed(folder, **{name: value}):
            try:
                load_ends(open_checkpoint(folder))
            except SwarmError as error:
                refusals.append(str(error))
    assert all("\n" not in line and len(line) < 1000 for line in refusals)
    assert refusals


@pytest.mark.long
def test_a_block_count_read_plainly_is_the_one_of_the_family() -> None:
    """For every entry of transformers: a look at a swarm reads the file, a peer asks the family."""
    plain = set()
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]()
        except StrictDataclassError:
            continue  # its own defaults do not pass its own checks
        counted = plain_block_count(json.loads(config.to_json_string()))
        assert counted in (None, getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)), name
        plain |= {name} if counted is not None else set()
    assert {"llama", "qwen3_moe", "gemma3", "gpt2", "bloom", "mpt", "falcon"} <= plain


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"num_hidden_layers": None},
        {"num_hidden_layers": True},
        {"num_hidden_layers": 6.0},
        {"num_hidden_layers": 6, "n_layer": 7},
        {"num_hidden_layers": 6, "is_encoder_decoder": True},
        {"num_hidden_layers": 6, "text_config": {"num_hidden_layers": 7}},
        {"text_config": [6]},
    ],
    ids=str,
)
def test_a_block_count_that_is_not_plain_is_left_to_the_family(values: dict[str, Any]) -> None:
    assert plain_block_count(values) is None
    assert plain_block_count({"num_hidden_layers": 6, "hidden_size": 7}) == 6
    assert plain_block_count({"text_config": {"n_layer": 6}}) == 6


def test_two_numbers_of_blocks_are_refused(folder: Path) -> None:
    """Both fit the weights, and a look at the swarm would show one of them where peers serve the other."""
    with changed(folder, **{"num_hidden_layers": 5, "hidden_size": 32}):
        checkpoint = open_checkpoint(folder)
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"num_hidden_layers": 5', '"num_hidden_layers": 4'))
        with pytest.raises(UsageError, match="two numbers of blocks: 5 and 4"):
            _ = checkpoint.config


PROGRAM = """
import json, resource, sys
from pathlib import Path
import torch
from blockswarm.client.model.load import load_ends
from blockswarm.peer.engine.load import examine_model
from blockswarm.proto.errors import SwarmError
from blockswarm.proto.model.checkpoint import open_checkpoint
import time
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
path = Path(sys.argv[1]) / "config.json"
values = json.loads(path.read_text())
sizes = [name for name, value in values.items() if type(value) in (int, float) and not name.endswith("_id")]
assert len(sizes) > 5
for name in sizes:
    for hostile in (10**12, 10**7, 0, "eight"):
        path.write_text(json.dumps({**values, name: hostile}))
        begun_at = time.process_time()
        try:
            checkpoint = open_checkpoint(path.parent)
            load_ends(checkpoint)
            examine_model(checkpoint, "cpu", "float32", "none", 1, time.perf_counter)
        except SwarmError:
            pass
        taken = time.process_time() - begun_at
        assert taken < 5, (name, hostile, taken)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 << 20, (name, hostile)
print("all refused or harmless")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs limits on memory")
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_no_size_of_a_model_takes_the_machine(family: str, tmp_path: Path) -> None:
    """In a process of its own, with limits: each number in turn, and what peers and clients do with the model."""
    folder = write_tiny_checkpoint(family, tmp_path / family)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.endswith("all refused or harmless\n"), done.stderr[-3000:]
