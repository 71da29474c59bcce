"""Only what is wanted is read, nothing is believed unchecked, and a checkpoint is known by its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.proto.errors import UnsupportedModel, UsageError
from blockswarm.proto.model.checkpoint import (
    CONFIG_KEYS_WITHOUT_MEANING,
    Checkpoint,
    block_prefix,
    open_checkpoint,
    read_checkpoint,
)
from blockswarm.proto.model.family import load_model
from blockswarm.proto.model.hub import HubSource
from blockswarm.proto.model.tiny import random_model
from blockswarm.routing.swarm import BlockRange
from safetensors.torch import save_file
from support.fake_hub import MODEL_ID, serve_hub
from support.tiny_models import all_weights, tiny_model_config, write_tiny_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

ALL_BLOCKS = BlockRange(0, 6)
CHANGES_WITHOUT_MEANING: dict[str, Any] = {
    "_name_or_path": "elsewhere",
    "transformers_version": "4.0.0",
    "architectures": ["AnotherForCausalLM"],
    "auto_map": {"AutoConfig": "evil.Config"},
    "_attn_implementation_autoset": True,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "use_cache": False,
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "output_router_logits": True,
    "gradient_checkpointing": True,
    "bos_token_id": 7,
    "eos_token_id": [8, 9],
    "pad_token_id": 10,
}
"""Another value for each key of a configuration that changes no number."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards; not to be changed."""
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def write_single_shard(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """The same folder with all weights in one file."""
    for path in folder.glob("model*"):
        path.unlink()
    save_file(weights, folder / "model.safetensors")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestReading:
    def test_every_tensor_belongs_to_one_block_or_to_the_ends(self, original: Path) -> None:
        checkpoint = open_checkpoint(original)
        names = [tensor.name for block in ALL_BLOCKS for tensor in checkpoint.block_tensors(block)]
        names += [tensor.name for tensor in checkpoint.ends_tensors()]
        assert sorted(names) == sorted(all_weights(original))
        assert {tensor.name for tensor in checkpoint.ends_tensors()} == {
            "lm_head.weight",
            "model.embed_tokens.weight",
            "model.norm.weight",
        }

    def test_blocks_come_renumbered_from_zero(self, original: Path) -> None:
        weights = all_weights(original)
        state = open_checkpoint(original).block_state(BlockRange(4, 6))
        assert set(state) == {name for name in weights if name.startswith(("model.layers.0.", "model.layers.1."))}
        for name, piece in state.items():
            source = name.replace("layers.1.", "layers.5.").replace("layers.0.", "layers.4.")
            assert torch.equal(piece[...], weights[source])

    def test_progress_ends_at_the_bytes_of_the_blocks(self, original: Path) -> None:
        checkpoint = open_checkpoint(original)
        seen: list[tuple[int, int]] = []
        state = checkpoint.block_state(BlockRange(1, 3), lambda done, total: seen.append((done, total)))
        assert seen == []
        for piece in state.values():
            piece[...]
        total = checkpoint.block_bytes(1) + checkpoint.block_bytes(2)
        assert seen[-1] == (total, total)

    def test_one_file_and_many_shards_have_the_same_blocks(self, folder: Path, original: Path) -> None:
        """But they are two models: of what is cut otherwise a hub publishes no hash."""
        write_single_shard(folder, all_weights(folder))
        single, sharded = open_checkpoint(folder), open_checkpoint(original)
        assert single.model_digest() != sharded.model_digest()
        assert single.block_hashes(ALL_BLOCKS) == sharded.block_hashes(ALL_BLOCKS)

    def test_blocks_behind_the_last_belong_to_nobody(self, folder: Path) -> None:
        """Some checkpoints carry draft heads as one more layer."""
        weights = all_weights(folder)
        extra = {
            name.replace("layers.5.", "layers.6."): t.clone() for name, t in weights.items() if "layers.5." in name
        }
        write_single_shard(folder, weights | extra)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.num_blocks == 6
        assert not any("layers.6." in tensor.name for tensor in checkpoint.ends_tensors())

    def test_the_prefix_is_that_of_the_complete_series(self) -> None:
        names = [f"text.layers.{block}.experts.{expert}.w" for block in range(3) for expert in range(3)]
        assert block_prefix([*names, "vision.layers.0.w", "vision.layers.1.w"], 3) == "text.layers."
        with pytest.raises(UsageError, match="0 complete"):
            block_prefix(names, 4)


def save_whole(folder: Path) -> None:
    """save_pretrained removes the shards of an earlier model, and leaves its index."""
    random_model(tiny_model_config("llama"), seed=7).save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").exists()


def save_whole_beside_old_shards(folder: Path) -> None:
    random_model(tiny_model_config("llama"), seed=7).save_pretrained(folder.parent / "new")
    (folder.parent / "new" / "model.safetensors").rename(folder / "model.safetensors")


def save_in_shards_behind_a_whole_file(folder: Path) -> None:
    save_file(all_weights(folder), folder / "model.safetensors")
    random_model(tiny_model_config("llama"), seed=7).save_pretrained(folder, max_shard_size="200KB")


def name_a_file(folder: Path) -> None:
    save_whole(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    change_json(folder / "config.json", transformers_weights="other.safetensors")


def name_an_index(folder: Path) -> None:
    save_whole_beside_old_shards(folder)
    (folder / "model.safetensors.index.json").rename(folder / "other.safetensors.index.json")
    change_json(folder / "config.json", transformers_weights="other.safetensors.index.json")


SEVERAL_WEIGHTS = (
    save_whole,
    save_whole_beside_old_shards,
    save_in_shards_behind_a_whole_file,
    name_a_file,
    name_an_index,
)


@pytest.mark.parametrize("save", SEVERAL_WEIGHTS, ids=[save.__name__ for save in SEVERAL_WEIGHTS])
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_of_several_weights_those_of_transformers_count(folder: Path, tmp_path: Path, save: Any, place: str) -> None:
    """A swarm serves the model that its user has seen there."""
    save(folder)
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    if place == "folder":
        compare(open_checkpoint(folder), expected)
    else:
        with serve_hub(folder) as hub:
            compare(read_checkpoint(HubSource(MODEL_ID, endpoint=hub.endpoint, cache_folder=tmp_path)), expected)


def compare(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    states = checkpoint.ends_state() | checkpoint.block_state(ALL_BLOCKS)
    assert states.keys() == expected.keys()
    assert all(torch.equal(states[name][...], expected[name]) for name in expected)


def test_an_index_beside_a_whole_file_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_whole(folder)
    open_checkpoint(folder)
    assert "the first is used" in caplog.text


class TestDigests:
    def test_are_equal_for_equal_files(self, original: Path, folder: Path) -> None:
        assert open_checkpoint(original).model_digest() == open_checkpoint(folder).model_digest()

    def test_differ_for_a_fine_tune_in_one_block(self, original: Path, folder: Path) -> None:
        weights = all_weights(folder)
        weights["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
        write_single_shard(folder, weights)
        before, after = open_checkpoint(original), open_checkpoint(folder)
        assert before.model_digest() != after.model_digest()
        changed = [a != b for a, b in zip(before.block_hashes(ALL_BLOCKS), after.block_hashes(ALL_BLOCKS), strict=True)]
        assert changed == [False, False, False, True, False, False]
        assert all(len(block_hash) == 8 for block_hash in after.block_hashes(ALL_BLOCKS))

    def test_differ_for_another_configuration_of_the_same_weights(self, original: Path, folder: Path) -> None:
        change_json(folder / "config.json", rms_norm_eps=1e-4)
        assert open_checkpoint(original).model_digest() != open_checkpoint(folder).model_digest()

    @pytest.mark.parametrize("change", sorted(CHANGES_WITHOUT_MEANING.items()), ids=str)
    def test_do_not_depend_on_what_changes_no_number(
        self, original: Path, folder: Path, change: tuple[str, Any]
    ) -> None:
        change_json(folder / "config.json", **dict([change]))
        assert open_checkpoint(original).model_digest() == open_checkpoint(folder).model_digest()

    def test_differ_for_a_key_that_nobody_knows(self, original: Path, folder: Path) -> None:
        change_json(folder / "config.json", scale_of_tomorrow=2)
        assert open_checkpoint(original).model_digest() != open_checkpoint(folder).model_digest()

    def test_do_not_depend_on_the_names_of_the_files(self, original: Path, folder: Path) -> None:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        for shard in {*index["weight_map"].values()}:
            (folder / shard).rename(folder / f"renamed-{shard}")
        change_json(
            folder / "model.safetensors.index.json",
            weight_map={name: f"renamed-{shard}" for name, shard in index["weight_map"].items()},
        )
        assert open_checkpoint(original).model_digest() == open_checkpoint(folder).model_digest()

    def test_differ_for_the_same_bytes_in_another_shape(self, original: Path, folder: Path) -> None:
        weights = all_weights(folder)
        name = "model.layers.0.self_attn.q_proj.weight"
        write_single_shard(folder, weights | {name: weights[name].view(32, 128)})
        assert open_checkpoint(original).block_hashes(BlockRange(0, 1)) != open_checkpoint(folder).block_hashes(
            BlockRange(0, 1)
        )


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_the_keys_without_meaning_change_no_number(name: str) -> None:
    """Whole models with such a key changed compute the same bits; a control shows that another key would be seen."""
    config = tiny_model_config(name)
    model = random_model(config)
    tokens = torch.arange(24).reshape(2, 12)

    def logits(**changes: Any) -> torch.Tensor:
        changed = AutoConfig.for_model(**{**config.to_dict(), **changes})
        with torch.inference_mode():
            other = load_model(type(model), changed, model.state_dict())
            return other(input_ids=tokens).logits

    assert set(CHANGES_WITHOUT_MEANING) == CONFIG_KEYS_WITHOUT_MEANING
    expected = logits()
    for key, value in CHANGES_WITHOUT_MEANING.items():
        assert torch.equal(logits(**{key: value}), expected), key
    assert not torch.equal(logits(rms_norm_eps=0.1), expected)


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def list_as_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def nest_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def remove_shard(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def truncate_shard(folder: Path) -> None:
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])


def empty_shard(folder: Path) -> None:
    max(folder.glob("*.safetensors")).write_bytes(b"")


def pickled_only(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never loaded")


def no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


def shard_outside(folder: Path) -> None:
    change_json(folder / "model.safetensors.index.json", weight_map={"a": "../secret.safetensors"})


def shard_by_absolute_path(folder: Path) -> None:
    change_json(folder / "model.safetensors.index.json", weight_map={"a": "/etc/passwd.safetensors"})


def index_without_map(folder: Path) -> None:
    change_json(folder / "model.safetensors.index.json", weight_map=[1])


def index_of_lists(folder: Path) -> None:
    change_json(folder / "model.safetensors.index.json", weight_map={"a": ["b.safetensors"]})


def pickled_by_name(folder: Path) -> None:
    change_json(folder / "config.json", transformers_weights="pytorch_model.bin")


def missing_by_name(folder: Path) -> None:
    change_json(folder / "config.json", transformers_weights="other.safetensors.index.json")


def outside_by_name(folder: Path) -> None:
    change_json(folder / "config.json", transformers_weights="../secret.safetensors")


def missing_block(folder: Path) -> None:
    write_single_shard(folder, {name: t for name, t in all_weights(folder).items() if "layers.2." not in name})


BREAKAGES: tuple[tuple[Callable[[Path], None], str], ...] = (
    (remove_config, "config.json"),
    (break_config, "JSON"),
    (list_as_config, "JSON"),
    (nest_config, "JSON"),
    (remove_shard, "cannot read"),
    (truncate_shard, "bytes"),
    (empty_shard, "safetensors"),
    (pickled_only, "pickled"),
    (no_weights, "neither"),
    (shard_outside, "unsafe"),
    (shard_by_absolute_path, "unsafe"),
    (index_without_map, "no shards"),
    (index_of_lists, "unsafe"),
    (pickled_by_name, "not loaded"),
    (missing_by_name, "no other"),
    (outside_by_name, "not loaded"),
    (missing_block, "complete series"),
)


class TestBadFolders:
    @pytest.mark.parametrize(("breakage", "match"), BREAKAGES, ids=[breakage.__name__ for breakage, _ in BREAKAGES])
    def test_are_refused_in_one_line(self, folder: Path, breakage: Callable[[Path], None], match: str) -> None:
        breakage(folder)
        with pytest.raises(UsageError, match=match) as error:
            open_checkpoint(folder)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(("name", "words"), [("m.Q4_K_M.gguf", "GGUF"), ("adapter_config.json", "adapter")])
    def test_known_forms_that_are_not_served_are_named(self, folder: Path, name: str, words: str) -> None:
        for path in folder.iterdir():
            path.unlink()
        (folder / name).touch()
        with pytest.raises(UsageError, match=words):
            open_checkpoint(folder)
        config = folder / "config.json"
        config.write_text('{"model_type": "llama"}')
        with pytest.raises(UsageError, match=words):
            open_checkpoint(folder)

    def test_a_file_in_place_of_its_folder(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="is a file"):
            open_checkpoint(folder / "config.json")
        (folder / "m.gguf").touch()
        with pytest.raises(UsageError, match="GGUF"):
            open_checkpoint(folder / "m.gguf")

    def test_an_unknown_model_type_is_unsupported(self, folder: Path) -> None:
        change_json(folder / "config.json", model_type="no-such-model", auto_map={"AutoConfig": "evil.Config"})
        with pytest.raises(UnsupportedModel, match="no-such-model") as error:
            _ = open_checkpoint(folder).config
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["no/such/folder", "", "a/b/c", "../x", "owner/na me", "x" * 500])
    def test_what_is_neither_a_folder_nor_a_model_is_a_usage_error(self, name: str) -> None:
        with pytest.raises(UsageError):
            open_checkpoint(name or "nothing")
