"""Every byte counts, and a large file is read again when it may have changed, and only then."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.checkpoint import Checkpoint, open_checkpoint, read_checkpoint
from blockswarm.proto.model.folder import FolderSource, TensorInfo, parse_header, read_range
from blockswarm.proto.model.hashes import FileHashes, HashMemory, hash_file
from blockswarm.routing.swarm import BlockRange
from safetensors.torch import load_file, save_file
from support.tiny_models import write_tiny_checkpoint


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A weight file with tensors of several sizes, one of them larger than what is read at once, one empty."""
    path = tmp_path / "weights.safetensors"
    generator = torch.Generator().manual_seed(1)
    sizes = {"large": 5 << 20, "one": 1, "none": 0, "odd": 4097}
    save_file(
        {name: torch.randint(255, (size,), dtype=torch.uint8, generator=generator) for name, size in sizes.items()},
        path,
    )
    return path


def tensors_of(path: Path) -> list[TensorInfo]:
    return parse_header(path.name, path.stat().st_size, lambda start, stop: read_range(path, start, stop))


class Reader:
    """Reads a file through a memory, and counts how often it was really read."""

    def __init__(self, folder: Path) -> None:
        self.memory = HashMemory(folder, min_bytes=0)
        self.reads = 0

    def read(self, path: Path) -> FileHashes:
        def progress(done: int, total: int) -> None:
            self.reads += done == total

        return self.memory.hashes(path, tensors_of(path), progress)


def test_one_pass_hashes_the_file_and_its_tensors(file: Path) -> None:
    seen: list[tuple[int, int]] = []
    size = file.stat().st_size
    found = hash_file(file, size, tensors_of(file), lambda done, total: seen.append((done, total)))
    assert found.sha256 == hashlib.sha256(file.read_bytes()).digest()
    contents = {name: hashlib.sha256(tensor.numpy().tobytes()).digest() for name, tensor in load_file(file).items()}
    assert found.tensors == contents
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_a_file_that_ends_early_is_a_usage_error(file: Path) -> None:
    tensors, size = tensors_of(file), file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(UsageError, match="ends at byte"):
        hash_file(file, size, tensors)


def test_a_file_that_changes_while_it_is_read_is_refused(file: Path, tmp_path: Path) -> None:
    def write_meanwhile(done: int, total: int) -> None:
        os.utime(file, ns=(1, 1))

    with pytest.raises(UsageError, match="changed while it was read"):
        HashMemory(tmp_path / "memory").hashes(file, tensors_of(file), write_meanwhile)


class TestMemory:
    def test_a_file_is_read_once(self, file: Path, tmp_path: Path) -> None:
        first, second = Reader(tmp_path / "memory"), Reader(tmp_path / "memory")
        assert first.read(file) == second.read(file)
        assert (first.reads, second.reads) == (1, 0)

    def test_small_files_leave_no_trace(self, file: Path, tmp_path: Path) -> None:
        HashMemory(tmp_path / "memory").hashes(file, tensors_of(file))
        assert not (tmp_path / "memory").exists()

    def test_a_bit_that_is_written_is_noticed_also_under_the_old_time(self, file: Path, tmp_path: Path) -> None:
        reader = Reader(tmp_path / "memory")
        before, stat = reader.read(file), file.stat()
        flip_bit(file, stat.st_size // 2)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert file.stat().st_mtime_ns == stat.st_mtime_ns
        assert reader.read(file).sha256 == hashlib.sha256(file.read_bytes()).digest() != before.sha256
        assert reader.reads == 2

    def test_another_file_at_the_same_place_is_read(self, file: Path, tmp_path: Path) -> None:
        reader = Reader(tmp_path / "memory")
        reader.read(file)
        stat, copy = file.stat(), tmp_path / "copy"
        copy.write_bytes(file.read_bytes()[:-1] + b"\0")
        os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        copy.replace(file)
        assert reader.read(file).sha256 == hashlib.sha256(file.read_bytes()).digest()

    @pytest.mark.parametrize(
        "garbled",
        [
            b"",
            b"[]",
            b"{}",
            {"sha256": None},
            {"sha256": "é" * 64},
            {"sha256": "0" * 63},
            {"tensors": []},
            {"tensors": {"large": "0" * 64}},
            {"tensors": {"large": 1, "one": 1, "none": 1, "odd": 1}},
        ],
        ids=str,
    )
    def test_what_is_garbled_is_read_again(self, file: Path, tmp_path: Path, garbled: bytes | dict[str, Any]) -> None:
        reader = Reader(tmp_path / "memory")
        truth = reader.read(file)
        (entry,) = (tmp_path / "memory").glob("*.json")
        change = garbled if isinstance(garbled, bytes) else json.dumps(json.loads(entry.read_text()) | garbled).encode()
        entry.write_bytes(change)
        assert reader.read(file) == truth
        assert reader.reads == 2

    def test_a_memory_that_cannot_be_written_costs_time_only(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "memory").write_text("a file where the folder should be")
        reader = Reader(tmp_path / "memory")
        assert reader.read(file) == reader.read(file)
        assert reader.reads == 2

    def test_the_newest_entries_are_kept(self, file: Path, tmp_path: Path) -> None:
        folder = tmp_path / "memory"
        folder.mkdir()
        for number in range(1030):
            (folder / f"{number:04d}.json").touch()
            os.utime(folder / f"{number:04d}.json", ns=(number, number))
        Reader(folder).read(file)
        kept = sorted(path.name for path in folder.glob("*.json"))
        assert len(kept) == 1024
        assert "0006.json" not in kept
        assert "0007.json" in kept


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file; the matrices of its MLPs have 393 KB each."""
    return write_tiny_checkpoint("llama", tmp_path / "model", max_shard_size="1GB", intermediate_size=1536)


def open_remembered(folder: Path) -> Checkpoint:
    return read_checkpoint(FolderSource(folder, HashMemory(folder.parent / "memory", min_bytes=0)))


def test_every_flipped_bit_gives_another_model_and_another_block(folder: Path) -> None:
    before = open_checkpoint(folder)
    digest, hashes = before.model_digest(), before.block_hashes(BlockRange(0, 6))
    tensor = max(before.block_tensors(3), key=lambda tensor: tensor.nbytes)
    path = folder / tensor.file
    for place in (0, 4096, 5000, tensor.nbytes // 2, tensor.nbytes - 4097, tensor.nbytes - 1):
        flip_bit(path, tensor.start + place)
        damaged = open_checkpoint(folder)
        changed = [a != b for a, b in zip(hashes, damaged.block_hashes(BlockRange(0, 6)), strict=True)]
        assert changed == [False, False, False, True, False, False], place
        assert damaged.model_digest() != digest, place
        flip_bit(path, tensor.start + place)
    assert open_checkpoint(folder).model_digest() == digest


def test_whole_files_prove_the_hashes_of_their_blocks(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.proven_hashes() == dict(enumerate(checkpoint.block_hashes(BlockRange(0, 6))))


def test_a_restart_knows_the_digest_and_still_checks_what_it_hosts(folder: Path) -> None:
    """A disk that rots writes no times, so the files' hashes are remembered; the bytes that are hosted are not."""
    first = open_remembered(folder)
    digest, hashes = first.model_digest(), first.block_hashes(BlockRange(0, 6))
    again = open_remembered(folder)
    assert again.model_digest(lambda done, total: pytest.fail("the files are read again")) == digest
    assert again.block_hashes(BlockRange(0, 6)) == hashes
    (entry,) = (folder.parent / "memory").glob("*.json")
    content = json.loads(entry.read_text())
    content["tensors"]["model.layers.3.mlp.up_proj.weight"] = "0" * 64  # as if the file had held something else
    entry.write_text(json.dumps(content))
    rotten = open_remembered(folder)
    assert rotten.block_hashes(BlockRange(0, 3)) == hashes[:3]
    with pytest.raises(UsageError, match="block 3") as caught:
        rotten.block_hashes(BlockRange(3, 4))
    assert "disk" in caught.value.hint


def test_the_part_of_a_client_is_checked_as_well(folder: Path) -> None:
    open_remembered(folder).model_digest()
    assert "lm_head.weight" in open_remembered(folder).ends_state()
    (entry,) = (folder.parent / "memory").glob("*.json")
    content = json.loads(entry.read_text())
    content["tensors"]["lm_head.weight"] = "0" * 64
    entry.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="outside the blocks"):
        open_remembered(folder).ends_state()


def flip_bit(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
