"""A hub: only what is wanted travels, once, to whom it is meant for, and every refusal says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.proto.errors import RetryElsewhere, UsageError
from blockswarm.proto.model.checkpoint import Checkpoint, open_checkpoint, read_checkpoint
from blockswarm.proto.model.hub import HubSource
from blockswarm.routing.swarm import BlockRange
from safetensors.torch import load_file
from support.fake_hub import COMMIT, MODEL_ID, FakeHub, listing_of, serve_hub
from support.tiny_models import all_weights, write_tiny_checkpoint

ALL_BLOCKS = BlockRange(0, 6)
SMALL_FILES = {"config.json", "generation_config.json", "model.safetensors.index.json"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards; not to be changed."""
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("original"))


def listing(commit: str = COMMIT, **changes: Any) -> bytes:
    """A hub's list of files with one file, the configuration, of which some fields are changed."""
    config = {"rfilename": "config.json", "size": 10, "blobId": "0" * 40, **changes}
    return json.dumps({"id": MODEL_ID, "sha": commit, "siblings": [config]}).encode()


@pytest.fixture
def hub(original: Path) -> Iterator[FakeHub]:
    with serve_hub(original) as hub:
        yield hub


def open_from(hub: FakeHub, cache: Path) -> Any:
    return read_checkpoint(HubSource(MODEL_ID, endpoint=hub.endpoint, cache_folder=cache, wait=lambda seconds: None))


class TestHub:
    def test_says_before_it_fetches_that_the_disk_is_too_small(self, hub: FakeHub, tmp_path: Path) -> None:
        """For all blocks together: each alone would fit."""

        def opened(limit: int | None = None) -> Checkpoint:
            return read_checkpoint(
                HubSource(
                    MODEL_ID, endpoint=hub.endpoint, cache_folder=tmp_path, cache_limit_bytes=limit,
                    free_bytes=lambda folder: free,
                )
            )  # fmt: skip

        free = 10**9
        checkpoint = opened()
        free = 3 * checkpoint.block_bytes(0)
        checkpoint.check_space(BlockRange(0, 3))
        with pytest.raises(UsageError, match="4 of the blocks have to be fetched") as refused:
            checkpoint.check_space(BlockRange(0, 4))
        assert "fewer blocks" in refused.value.hint
        checkpoint.fetch(BlockRange(1, 2))
        checkpoint.check_space(BlockRange(0, 4))
        free = 0  # something else has filled the disk since
        with pytest.raises(UsageError, match="0 are free") as full:
            checkpoint.fetch(BlockRange(0, 1))
        assert "XDG_CACHE_HOME" in full.value.hint
        free = 3 * checkpoint.block_bytes(0)
        opened(limit=1).check_space(ALL_BLOCKS)  # files of other models make room

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

    def test_weights_that_a_hub_keeps_like_text_are_fetched_for_their_hash(
        self, hub: FakeHub, original: Path, tmp_path: Path
    ) -> None:
        """It publishes git's own id of them only."""
        files = listing_of(original)
        for file in files["siblings"]:
            file.pop("lfs", None)
        hub.listing = json.dumps(files).encode()
        checkpoint = open_from(hub, tmp_path)
        assert checkpoint.model_digest() == open_checkpoint(original).model_digest()
        assert checkpoint.proven_hashes() == open_checkpoint(original).proven_hashes()

    def test_what_came_in_parts_proves_nothing(self, hub: FakeHub, tmp_path: Path) -> None:
        checkpoint = open_from(hub, tmp_path)
        checkpoint.fetch(ALL_BLOCKS)
        assert checkpoint.proven_hashes() == {}

    def test_a_bit_that_flips_on_the_way_gives_another_hash(self, hub: FakeHub, original: Path, tmp_path: Path) -> None:
        """The hub serves damaged bytes under the hashes of the good ones: one model, but one block differs."""
        damaged = Path(shutil.copytree(original, tmp_path / "damaged"))
        tensor = max(open_checkpoint(original).block_tensors(2), key=lambda tensor: tensor.nbytes)
        content = bytearray((damaged / tensor.file).read_bytes())
        content[tensor.start + tensor.nbytes // 2] ^= 1
        (damaged / tensor.file).write_bytes(content)
        hub.listing, hub.folder = json.dumps(listing_of(original)).encode(), damaged
        good, bad = open_checkpoint(original), open_from(hub, tmp_path / "cache")
        assert bad.model_digest() == good.model_digest()
        changed = [a != b for a, b in zip(good.block_hashes(ALL_BLOCKS), bad.block_hashes(ALL_BLOCKS), strict=True)]
        assert changed == [False, False, True, False, False, False]

    def test_shards_may_lie_in_a_storage_that_gets_no_credentials(
        self, hub: FakeHub, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "secret")
        with serve_hub(original) as storage:
            hub.storage_endpoint = storage.endpoint
            checkpoint = open_from(hub, tmp_path)
            checkpoint.fetch(BlockRange(0, 1))
            assert checkpoint.block_hashes(BlockRange(0, 1)) == open_checkpoint(original).block_hashes(BlockRange(0, 1))
            assert {authorization for _, authorization in hub.asked} == {"Bearer secret"}
            assert {authorization for _, authorization in storage.asked} == {None}

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

    def test_a_hub_that_is_not_there_is_worth_another_try(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.endpoint = "http://127.0.0.1:1"
        with pytest.raises(RetryElsewhere, match=r"no folder .* here, and .* does not answer"):
            open_from(hub, tmp_path)

    def test_a_folder_that_is_not_here_is_not_waited_for(self, hub: FakeHub, tmp_path: Path) -> None:
        """A path that looks like a hub's name must not cost half a minute."""
        pauses: list[float] = []
        with pytest.raises(RetryElsewhere, match="no folder scripts/demo_model here"):
            HubSource("scripts/demo_model", endpoint="http://127.0.0.1:1", cache_folder=tmp_path, wait=pauses.append)
        assert sum(pauses) <= 2

    def test_nothing_is_fetched_where_that_is_forbidden(self) -> None:
        """The tests run with HF_HUB_OFFLINE=1; so may a user."""
        with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
            open_checkpoint(MODEL_ID)

    @pytest.mark.parametrize(
        ("listing", "match"),
        [
            (b"<html>a page</html>", "does not tell"),
            (b"[]", "does not tell"),
            (b"{}", "does not tell"),
            (json.dumps({"id": MODEL_ID, "sha": COMMIT}).encode(), "config.json"),
            (json.dumps({"id": MODEL_ID, "sha": COMMIT, "siblings": [{}]}).encode(), "does not tell"),
            (listing(size=None), "size and hash"),
            (listing(lfs={"sha256": "../x", "size": 1, "pointerSize": 1}), "size and hash"),
            (listing(size=1 << 40), "larger than"),
            (listing(commit="main"), "the commit"),
            (listing(commit="../../x"), "the commit"),
        ],
        ids=str,
    )
    def test_an_answer_that_is_no_hubs_is_a_usage_error(
        self, hub: FakeHub, tmp_path: Path, listing: bytes, match: str
    ) -> None:
        hub.listing = listing
        with pytest.raises(UsageError, match=match):
            open_from(hub, tmp_path)

    @pytest.mark.parametrize("changes", [{"revision": "no-such"}, {"model_id": "some-owner/another"}])
    def test_a_model_or_revision_that_does_not_exist_is_named(
        self, hub: FakeHub, tmp_path: Path, changes: dict[str, str]
    ) -> None:
        arguments = {"model_id": MODEL_ID, **changes}
        with pytest.raises(UsageError, match=next(iter(changes.values()))):
            HubSource(arguments.pop("model_id"), endpoint=hub.endpoint, cache_folder=tmp_path, **arguments)

    def test_a_cache_that_cannot_be_written_is_a_usage_error(self, hub: FakeHub, tmp_path: Path) -> None:
        checkpoint = open_from(hub, tmp_path)
        shutil.rmtree(checkpoint.folder)
        checkpoint.folder.write_text("a file where the folder was")
        with pytest.raises(UsageError, match="cannot"):
            checkpoint.fetch(BlockRange(0, 1))

    def test_one_request_finds_all_files_and_the_small_ones_come_once(self, hub: FakeHub, tmp_path: Path) -> None:
        open_from(hub, tmp_path)
        assert {name for method, name, _ in hub.requests if method == "HEAD"} <= SMALL_FILES
        before = len(hub.requests)
        open_from(hub, tmp_path)
        assert {name for _, name, _ in hub.requests[before:]}.isdisjoint(SMALL_FILES)


def test_the_digest_needs_no_weights_and_is_that_of_the_folder(hub: FakeHub, original: Path, tmp_path: Path) -> None:
    checkpoint = open_from(hub, tmp_path)
    before = hub.bytes_sent()
    digest = checkpoint.model_digest()
    assert hub.bytes_sent() == before
    assert digest == open_checkpoint(original).model_digest()


@pytest.mark.parametrize("place", [-1, -2000, 8, 0])
def test_a_damaged_file_is_fetched_again(hub: FakeHub, original: Path, tmp_path: Path, place: int) -> None:
    """Whether a weight is damaged, or the header."""
    open_from(hub, tmp_path).fetch(BlockRange(1, 2))
    (path,) = tmp_path.rglob("block-0001.safetensors")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert open_from(hub, tmp_path).block_hashes(BlockRange(1, 2)) == open_checkpoint(original).block_hashes(
        BlockRange(1, 2)
    )


READ_AS_A_USER = """
import sys
from blockswarm.proto.model.hub import HubSource
source = HubSource(sys.argv[1])
shard = next(name for name in source.names() if name.endswith(".safetensors"))
assert len(source.read(shard, 0, 8)) == 8
assert "torch" not in sys.modules
"""


class TestEnvironment:
    """The variables that users of transformers know, in a process of its own: they are read when it starts."""

    def read_as_a_user(self, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", READ_AS_A_USER, MODEL_ID]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        everything = {**plain, "XDG_CACHE_HOME": str(folder), "HF_HOME": str(folder / "hf"), **environment}
        return subprocess.run(command, env=everything, capture_output=True, text=True, check=False, timeout=120)

    @pytest.mark.long
    def test_endpoint_and_token_are_heeded(self, hub: FakeHub, tmp_path: Path) -> None:
        finished = self.read_as_a_user(tmp_path, HF_ENDPOINT=hub.endpoint, HF_TOKEN="secret")
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout + finished.stderr == ""  # no progress bars: the programs have their own
        assert {authorization for path, authorization in hub.asked if MODEL_ID in path} == {"Bearer secret"}
        assert {path.name for path in (tmp_path / "blockswarm").rglob(COMMIT)} == {COMMIT}

    def test_offline_means_offline(self, hub: FakeHub, tmp_path: Path) -> None:
        finished = self.read_as_a_user(tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
        assert "HF_HUB_OFFLINE is set" in finished.stderr
        assert hub.asked == []

    @pytest.mark.long
    def test_offline_uses_what_is_here(self, hub: FakeHub, tmp_path: Path) -> None:
        assert self.read_as_a_user(tmp_path, HF_ENDPOINT=hub.endpoint).returncode == 0
        asked = len(hub.asked)
        finished = self.read_as_a_user(tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
        assert finished.returncode == 0, finished.stderr
        assert "is used as it was at commit" in finished.stderr
        assert len(hub.asked) == asked


def test_a_machine_that_has_its_blocks_starts_with_a_warning(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_from(hub, tmp_path)
    hashes, digest = first.block_hashes(BlockRange(1, 3)), first.model_digest()
    hub.status = 503
    second = open_from(hub, tmp_path)
    assert second.model_digest() == digest
    assert second.block_hashes(BlockRange(1, 3)) == hashes
    assert "as it was at commit" in caplog.text
    with pytest.raises(RetryElsewhere, match="503"):
        second.fetch(BlockRange(3, 4))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"revision": "main", "commit": "x", "files": {}}', b"\xff"])
def test_a_listing_that_is_not_whole_is_none(hub: FakeHub, tmp_path: Path, content: bytes) -> None:
    open_from(hub, tmp_path)
    (listing_file,) = tmp_path.glob("*/revision-*.json")
    listing_file.write_bytes(content)
    hub.status = 503
    with pytest.raises(RetryElsewhere):
        open_from(hub, tmp_path)
