"""Hashes of weights, over every byte: of whole files, of the tensors in them, and of blocks.

One pass over a whole file computes its SHA-256, which hubs publish as well and which the model's digest contains, and
that of each tensor in it.  So a node that holds whole files knows what every block of the model must be.  The hashes of
a large file are cached: it is not read again while its path, size and times are the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import keep_text
from .folder import MAX_SMALL_FILE_BYTES, HeldTensor, Progress, TensorInfo, parse_json_object

logger = logging.getLogger(__name__)

REMEMBERED_FILE_BYTES = 64 << 20
"""Smaller files are read again by each process; it takes a tenth of a second."""

_CHUNK_BYTES = 4 << 20
_MAX_THREADS = 4
_MAX_REMEMBERED = 1024
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class FileHashes:
    """The known hashes of one weight file."""

    sha256: bytes
    """SHA-256 of the whole file."""
    tensors: Mapping[str, bytes]
    """SHA-256 of the bytes of each tensor in it, by name; empty if this machine has not read the file."""


def hash_file(path: Path, size: int, tensors: Sequence[TensorInfo], progress: Progress | None = None) -> FileHashes:
    """Hash a whole safetensors file of `size` bytes in one pass; `tensors` are all tensors in it.

    A second thread computes the hash of the file in parallel with those of its tensors. Raises UsageError.
    """
    whole, hashes, done = hashlib.sha256(), {}, 0
    with ThreadPoolExecutor(1) as beside:
        for name, start, stop in _parts(tensors, size):
            part = hashlib.sha256()
            for chunk in _chunks(path, start, stop):
                pending = beside.submit(whole.update, chunk)
                part.update(chunk)
                pending.result()
                done += len(chunk)
                if progress is not None:
                    progress(done, size)
            if name is not None:
                hashes[name] = part.digest()
    return FileHashes(whole.digest(), hashes)


def hash_held(held: Mapping[str, HeldTensor], tensors: Sequence[TensorInfo]) -> Mapping[str, bytes]:
    """SHA-256 of the bytes of tensors on this machine, by name. Raises UsageError."""

    def hashed(tensor: TensorInfo) -> bytes:
        place, digest = held[tensor.name], hashlib.sha256()
        for chunk in _chunks(place.path, place.start, place.start + tensor.nbytes):
            digest.update(chunk)
        return digest.digest()

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip((tensor.name for tensor in tensors), pool.map(hashed, tensors), strict=True))


def hash_of_tensors(tensors: Sequence[TensorInfo], hashes: Mapping[str, bytes]) -> bytes:
    """SHA-256 over the name, dtype, shape and bytes of each tensor; `hashes` are those of their bytes."""
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        add_part(digest, describe(tensor))
        add_part(digest, hashes[tensor.name])
    return digest.digest()


def describe(tensor: TensorInfo) -> bytes:
    """A tensor's name, dtype and shape, without its location."""
    return json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode()


def add_part(digest: Any, part: bytes) -> None:
    """Add a part with its length, so that no two lists of parts hash the same bytes."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


class HashMemory:
    """A cache of the hashes of large files, one small JSON file for each; the newest are kept.

    An entry is valid if the file's path, size, inode and both of its times are unchanged.  An entry that cannot be read
    or written is no error: the weights are read again.
    """

    def __init__(self, folder: Path, min_bytes: int = REMEMBERED_FILE_BYTES) -> None:
        self._folder = folder
        self._min_bytes = min_bytes

    def hashes(self, path: Path, tensors: Sequence[TensorInfo], progress: Progress | None = None) -> FileHashes:
        """The hashes of a whole file, read now or earlier. Raises UsageError."""
        path = path.resolve()  # the files of a hub's own cache are links
        state, names = _state(path), {tensor.name for tensor in tensors}
        entry = self._folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
        if (known := _recalled(entry, state, names)) is not None:
            return known
        if state["size"] >= self._min_bytes:
            logger.info("hashing %s, %.1f GiB, which is remembered", path, state["size"] / 2**30)
        found = hash_file(path, state["size"], tensors, progress)
        if _state(path) != state:
            raise UsageError(f"{path} was changed while it was read", hint="Wait until the download is complete.")
        if state["size"] >= self._min_bytes:
            self._remember(entry, state, found)
        return found

    def _remember(self, entry: Path, state: Mapping[str, Any], found: FileHashes) -> None:
        content = {
            **state,
            "sha256": found.sha256.hex(),
            "tensors": {name: digest.hex() for name, digest in found.tensors.items()},
        }
        try:
            keep_text(entry, json.dumps(content))
            by_age = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
            for path in by_age[:-_MAX_REMEMBERED]:
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.info("the hashes of %s are not remembered: %s", state["path"], error)


def _state(path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return {
        "path": str(path),
        "size": stat.st_size,
        "modified": stat.st_mtime_ns,
        "changed": stat.st_ctime_ns,  # cannot be set back by a tool that copies a time
        "inode": stat.st_ino,
    }


def _recalled(entry: Path, state: Mapping[str, Any], names: set[str]) -> FileHashes | None:
    try:
        if entry.stat().st_size > MAX_SMALL_FILE_BYTES:
            return None
        content = parse_json_object(entry.read_bytes(), entry.name)
    except (OSError, UsageError):
        return None
    tensors = content.pop("tensors", None)
    whole = content.pop("sha256", None)
    if content != state or not isinstance(tensors, dict) or tensors.keys() != names:
        return None
    if not all(_is_sha256(text) for text in (whole, *tensors.values())):
        return None
    return FileHashes(bytes.fromhex(whole), {name: bytes.fromhex(text) for name, text in tensors.items()})


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and _HEX.issuperset(text)


def _parts(tensors: Sequence[TensorInfo], size: int) -> Iterator[tuple[str | None, int, int]]:
    """(name, start, stop) of every part of a file of `size` bytes; the name is None for parts other than tensors."""
    at = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start > at:
            yield None, at, tensor.start
        at = tensor.start + tensor.nbytes
        yield tensor.name, tensor.start, at
    yield None, at, size


def _chunks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """Bytes [start, stop) of a file, piece by piece. Raises UsageError."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            while start < stop:
                chunk = file.read(min(_CHUNK_BYTES, stop - start))
                if not chunk:
                    raise UsageError(f"{path} ends at byte {start}, {stop} were expected")
                start += len(chunk)
                yield chunk
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
