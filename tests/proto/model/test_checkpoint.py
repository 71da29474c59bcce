"""Only what is wanted is read, nothing is believed unchecked, and a checkpoint is known by its weights."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.proto.errors import RetryElsewhere, UnsupportedModel, UsageError
from blockswarm.proto.model import hub as hub_module
from blockswarm.proto.model.checkpoint import block_prefix, open_checkpoint, read_checkpoint
from blockswarm.proto.model.folder import parse_header
from blockswarm.proto.model.hub import HubSource
from blockswarm.routing.swarm import BlockRange
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.fake_hub import COMMIT, MODEL_ID, FakeHub, serve_hub
from support.tiny_models import write_tiny_checkpoint

ALL_BLOCKS = BlockRange(0, 6)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards; not to be changed."""
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def all_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read by safetensors itself."""
    return {name: tensor for shard in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(shard).items()}


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

    def test_one_file_and_many_shards_are_the_same(self, folder: Path, original: Path) -> None:
        write_single_shard(folder, all_weights(folder))
        single, sharded = open_checkpoint(folder), open_checkpoint(original)
        assert single.model_digest() == sharded.model_digest()
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

    def test_do_not_depend_on_who_wrote_the_configuration(self, original: Path, folder: Path) -> None:
        change_json(folder / "config.json", transformers_version="4.0.0", dtype="bfloat16")
        assert open_checkpoint(original).model_digest() == open_checkpoint(folder).model_digest()

    def test_differ_for_the_same_bytes_in_another_shape(self, original: Path, folder: Path) -> None:
        weights = all_weights(folder)
        name = "model.layers.0.self_attn.q_proj.weight"
        write_single_shard(folder, weights | {name: weights[name].view(32, 128)})
        assert open_checkpoint(original).block_hashes(BlockRange(0, 1)) != open_checkpoint(folder).block_hashes(
            BlockRange(0, 1)
        )

    def test_see_the_first_and_the_last_byte_of_a_large_tensor(self, folder: Path) -> None:
        weights = all_weights(folder)
        digests = set()
        for position in (None, 0, -1):
            large = torch.zeros(400, 64)
            if position is not None:
                large.view(-1)[position] = 1
            write_single_shard(folder, weights | {"model.layers.2.large": large})
            digests.add(open_checkpoint(folder).block_hashes(BlockRange(2, 3)))
        assert len(digests) == 3


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
    (missing_block, "complete series"),
)


class TestBadFolders:
    @pytest.mark.parametrize(("breakage", "match"), BREAKAGES, ids=[breakage.__name__ for breakage, _ in BREAKAGES])
    def test_are_refused_in_one_line(self, folder: Path, breakage: Callable[[Path], None], match: str) -> None:
        breakage(folder)
        with pytest.raises(UsageError, match=match) as error:
            open_checkpoint(folder)
        assert "\n" not in str(error.value)

    def test_an_unknown_model_type_is_unsupported(self, folder: Path) -> None:
        change_json(folder / "config.json", model_type="no-such-model", auto_map={"AutoConfig": "evil.Config"})
        with pytest.raises(UnsupportedModel, match="no-such-model") as error:
            open_checkpoint(folder)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["no/such/folder", "", "a/b/c", "../x", "owner/na me", "x" * 500])
    def test_what_is_neither_a_folder_nor_a_model_is_a_usage_error(self, name: str) -> None:
        with pytest.raises(UsageError):
            open_checkpoint(name or "nothing")


def header(entries: object) -> bytes:
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw


class TestHeaders:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"1234567",
            (1 << 60).to_bytes(8, "little"),
            header([]),
            header({"a": 1}),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}) + bytes(8),
            header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + bytes(8),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + bytes(5),
            header({key: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} for key in "ab"}) + bytes(4),
        ],
    )
    def test_that_lie_are_refused(self, content: bytes) -> None:
        with pytest.raises(UsageError):
            parse_header("x", len(content), lambda start, stop: content[start:stop])

    @given(content=st.binary(max_size=64), length=st.integers(0, 80))
    def test_of_any_bytes_are_read_or_refused(self, content: bytes, length: int) -> None:
        content = length.to_bytes(8, "little") + content
        with contextlib.suppress(UsageError):
            parse_header("x", len(content), lambda start, stop: content[start:stop])


@pytest.fixture
def hub(original: Path) -> Iterator[FakeHub]:
    with serve_hub(original) as hub:
        yield hub


def open_from(hub: FakeHub, cache: Path) -> Any:
    return read_checkpoint(HubSource(MODEL_ID, endpoint=hub.endpoint, cache_folder=cache, wait=lambda seconds: None))


class TestHub:
    def test_gives_what_the_folder_gives(self, hub: FakeHub, original: Path, tmp_path: Path) -> None:
        remote, local = open_from(hub, tmp_path), open_checkpoint(original)
        for states in (
            (c.block_state(BlockRange(2, 5)) for c in (remote, local)),
            (c.ends_state() for c in (remote, local)),
        ):
            fetched, expected = states
            assert set(fetched) == set(expected)
            assert all(torch.equal(fetched[name][...], expected[name][...]) for name in fetched)
        assert remote.block_hashes(BlockRange(2, 5)) == local.block_hashes(BlockRange(2, 5))
        assert remote.config.to_dict().items() >= {"model_type": "llama", "num_hidden_layers": 6}.items()

    def test_only_the_wanted_tensors_travel(self, hub: FakeHub, tmp_path: Path) -> None:
        checkpoint = open_from(hub, tmp_path)
        before = hub.bytes_sent(".safetensors")
        seen: list[tuple[int, int]] = []
        checkpoint.fetch(BlockRange(3, 5), lambda done, total: seen.append((done, total)))
        wanted = checkpoint.block_bytes(3) + checkpoint.block_bytes(4)
        assert hub.bytes_sent(".safetensors") - before == wanted
        assert seen[-1] == (wanted, wanted)
        checkpoint.block_state(BlockRange(3, 5))
        checkpoint.block_hashes(BlockRange(3, 5))
        assert hub.bytes_sent(".safetensors") - before == wanted

    def test_a_block_is_a_file_that_safetensors_reads(self, hub: FakeHub, original: Path, tmp_path: Path) -> None:
        open_from(hub, tmp_path).fetch(BlockRange(5, 6))
        (path,) = tmp_path.rglob("block-0005.safetensors")
        assert path.parent.name == COMMIT
        expected = {name: tensor for name, tensor in all_weights(original).items() if "layers.5." in name}
        torch.testing.assert_close(load_file(path), expected, rtol=0, atol=0)

    def test_what_was_fetched_is_kept(self, hub: FakeHub, tmp_path: Path) -> None:
        open_from(hub, tmp_path).fetch(ALL_BLOCKS)
        checkpoint = open_from(hub, tmp_path)
        before = hub.bytes_sent(".safetensors")
        checkpoint.fetch(ALL_BLOCKS)
        assert hub.bytes_sent(".safetensors") == before

    def test_a_damaged_file_is_fetched_again(self, hub: FakeHub, original: Path, tmp_path: Path) -> None:
        open_from(hub, tmp_path).fetch(BlockRange(1, 2))
        (path,) = tmp_path.rglob("block-0001.safetensors")
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        assert open_from(hub, tmp_path).block_hashes(BlockRange(1, 2)) == open_checkpoint(original).block_hashes(
            BlockRange(1, 2)
        )

    def test_a_broken_download_goes_on_where_it_stopped(self, hub: FakeHub, original: Path, tmp_path: Path) -> None:
        checkpoint = open_from(hub, tmp_path)
        hub.break_after_bytes = [1000, 1, 5000]
        before = hub.bytes_sent(".safetensors")
        checkpoint.fetch(BlockRange(0, 1))
        assert not hub.break_after_bytes
        assert hub.bytes_sent(".safetensors") - before == checkpoint.block_bytes(0)
        assert checkpoint.block_hashes(BlockRange(0, 1)) == open_checkpoint(original).block_hashes(BlockRange(0, 1))

    def test_a_download_without_progress_is_given_up(self, hub: FakeHub, tmp_path: Path) -> None:
        checkpoint = open_from(hub, tmp_path)
        hub.break_after_bytes = [0] * 50
        with pytest.raises(RetryElsewhere, match="broke off"):
            checkpoint.fetch(BlockRange(0, 1))
        assert not list(tmp_path.rglob("*block*"))

    def test_the_digest_needs_no_weights(self, hub: FakeHub, tmp_path: Path) -> None:
        checkpoint = open_from(hub, tmp_path)
        before = hub.bytes_sent()
        digest = checkpoint.model_digest()
        assert hub.bytes_sent() == before
        assert digest == open_from(hub, tmp_path / "other").model_digest()

    def test_shards_may_lie_in_a_storage_that_gets_no_credentials(
        self, hub: FakeHub, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub_module, "_token", lambda: "secret")
        with serve_hub(original) as storage:
            hub.storage_endpoint = storage.endpoint
            checkpoint = open_from(hub, tmp_path)
            checkpoint.fetch(BlockRange(0, 1))
            assert checkpoint.block_hashes(BlockRange(0, 1)) == open_checkpoint(original).block_hashes(BlockRange(0, 1))
            assert set(hub.authorizations) == {"Bearer secret"}
            assert set(storage.authorizations) == {None}

    def test_a_server_that_ignores_ranges_is_refused(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.ignores_ranges = True
        with pytest.raises(UsageError, match="parts of files"):
            open_from(hub, tmp_path)

    @pytest.mark.parametrize(
        ("status", "error"), [(404, UsageError), (401, UsageError), (403, UsageError), (503, RetryElsewhere)]
    )
    def test_refusals_say_whether_to_try_again(
        self, hub: FakeHub, tmp_path: Path, status: int, error: type[Exception]
    ) -> None:
        hub.status = status
        with pytest.raises(error):
            open_from(hub, tmp_path)

    def test_a_hub_that_is_not_there_is_worth_another_try(self, original: Path, tmp_path: Path) -> None:
        with serve_hub(original) as hub:
            pass
        with pytest.raises(RetryElsewhere, match="does not answer"):
            open_from(hub, tmp_path)

    def test_nothing_is_fetched_where_that_is_forbidden(self) -> None:
        """The tests run with HF_HUB_OFFLINE=1; so may a user."""
        with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
            open_checkpoint(MODEL_ID)
