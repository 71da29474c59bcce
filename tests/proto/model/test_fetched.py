"""The cache folder stays within its limit, and nothing goes that somebody uses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.checkpoint import Checkpoint, read_checkpoint
from blockswarm.proto.model.fetched import FetchedFiles
from blockswarm.proto.model.hub import HubSource
from blockswarm.routing.swarm import BlockRange
from support.fake_hub import MODEL_ID, FakeHub, serve_hub
from support.tiny_models import write_tiny_checkpoint


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("original"))


@pytest.fixture
def hub(original: Path) -> Iterator[FakeHub]:
    with serve_hub(original) as hub:
        yield hub


def opened(hub: FakeHub, cache: Path, limit_bytes: int | None = None) -> Checkpoint:
    return read_checkpoint(
        HubSource(MODEL_ID, endpoint=hub.endpoint, cache_folder=cache, cache_limit_bytes=limit_bytes)
    )


def kept(cache: Path) -> list[int]:
    """The blocks in the cache, each with its hash beside it."""
    paths = sorted(cache.rglob("block-*.safetensors"))
    assert sorted(cache.rglob("block-*.hash")) == [path.with_name(path.name + ".hash") for path in paths]
    return [int(path.stem.removeprefix("block-")) for path in paths]


def file_bytes(hub: FakeHub, cache: Path) -> int:
    opened(hub, cache).fetch(BlockRange(0, 1))
    (path,) = cache.rglob("block-0000.safetensors")
    return path.stat().st_size


def test_blocks_that_are_not_kept_go_when_room_is_needed_the_oldest_first(hub: FakeHub, tmp_path: Path) -> None:
    size = file_bytes(hub, tmp_path / "other")
    checkpoint = opened(hub, tmp_path / "cache", 4 * size)
    for block in (2, 0, 1):
        checkpoint.fetch(BlockRange(block, block + 1))
        (path,) = tmp_path.rglob(f"cache/**/block-{block:04d}.safetensors")
        os.utime(path, (100.0 - block, 100.0 - block))  # 2 is the oldest
    checkpoint.keep(BlockRange(0, 1))
    checkpoint.fetch(BlockRange(3, 5))
    assert kept(tmp_path / "cache") == [0, 1, 3, 4]
    checkpoint.fetch(BlockRange(2, 3))
    assert kept(tmp_path / "cache") == [0, 2, 3, 4]
    sent = hub.bytes_sent()
    checkpoint.block_hashes(BlockRange(1, 2))
    assert hub.bytes_sent() > sent, "what was deleted is fetched again"


def test_more_than_the_limit_is_kept_where_all_is_in_use(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = opened(hub, tmp_path, 1)
    checkpoint.fetch(BlockRange(0, 3))
    assert kept(tmp_path) == [0, 1, 2]
    assert "all of it is in use" in caplog.text
    checkpoint.keep(BlockRange(0, 1))
    checkpoint.fetch(BlockRange(3, 4))
    assert kept(tmp_path) == [0, 3]


def test_without_a_limit_everything_stays(hub: FakeHub, tmp_path: Path) -> None:
    checkpoint = opened(hub, tmp_path)
    checkpoint.fetch(BlockRange(0, 3))
    checkpoint.keep(BlockRange(5, 6))
    checkpoint.fetch(BlockRange(3, 6))
    assert kept(tmp_path) == [0, 1, 2, 3, 4, 5]


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "rb")
fcntl.flock(file, fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files that are open cannot be deleted there")
def test_a_file_that_another_process_uses_stays(hub: FakeHub, tmp_path: Path) -> None:
    checkpoint = opened(hub, tmp_path, 1)
    checkpoint.fetch(BlockRange(0, 2))
    checkpoint.keep(BlockRange(5, 6))
    (path,) = tmp_path.rglob("block-0000.safetensors")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        checkpoint.fetch(BlockRange(2, 3))
        assert kept(tmp_path) == [0, 2]
        other.communicate()
    checkpoint.fetch(BlockRange(3, 4))
    assert kept(tmp_path) == [2, 3]


def test_a_file_that_is_used_is_young_again(hub: FakeHub, tmp_path: Path) -> None:
    opened(hub, tmp_path).fetch(BlockRange(0, 1))
    (path,) = tmp_path.rglob("block-0000.safetensors")
    os.utime(path, (1.0, 1.0))
    opened(hub, tmp_path).fetch(BlockRange(0, 1))
    assert path.stat().st_mtime > 1.0


def test_a_file_that_is_gone_is_an_error_with_its_name(tmp_path: Path) -> None:
    files = FetchedFiles(tmp_path)
    assert files.use(tmp_path / "block-0000.safetensors", ()) is None
    with pytest.raises(UsageError, match="block-0000"):
        files.add(tmp_path / "block-0000.safetensors", ())
