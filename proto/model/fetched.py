"""Files that were fetched from a hub and stay in the cache folder: one per block, each with its hash beside it.

Several processes may share a folder.  A file that one of them uses is locked (`flock`, where there is such a thing);
where the files of all models' blocks have more bytes than they may, those that nobody uses are deleted, the least
recently used first.  Beside them lies what the hub said of a revision, for starts while it does not answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: files that are open cannot be deleted there
    fcntl = None  # type: ignore[assignment]

from ..errors import UsageError
from ..files import write_whole
from .folder import HeldTensor, TensorInfo, parse_header
from .hashes import hash_held, hash_of_tensors

logger = logging.getLogger(__name__)

_BLOCKS = "*/*/block-*.safetensors"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_LISTING_BYTES = 16 << 20


class FetchedFiles:
    """The fetched files of all models in one cache folder, and those that this process uses."""

    def __init__(self, root: Path, limit_bytes: int | None = None) -> None:
        """`limit_bytes`: for the files of blocks; None: they stay."""
        self._root = root
        self._limit_bytes = limit_bytes
        self._used: dict[Path, IO[bytes]] = {}
        """Open and locked."""

    @property
    def is_limited(self) -> bool:
        """Whether files are deleted to make room."""
        return self._limit_bytes is not None

    def use(self, path: Path, tensors: Sequence[TensorInfo]) -> Mapping[str, HeldTensor] | None:
        """The tensors, if the file is there and they have the hash that is written beside it.

        The file stays until `let_go`.
        """
        if not self._lock(path):
            return None
        held = _intact(path, tensors)
        if held is None:
            self.let_go(path)
        return held

    def add(self, path: Path, tensors: Sequence[TensorInfo]) -> Mapping[str, HeldTensor]:
        """The tensors of a file that has just been fetched, whose hash is written beside it. Raises UsageError."""
        self._lock(path)
        try:
            held = _held_in(path, tensors)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        hash_text = _hash_of(tensors, held).hex().encode()
        write_fetched(_hash_path(path), lambda target: target.write(hash_text))
        return held

    def let_go(self, path: Path) -> None:
        """The file may be deleted when room is needed; what is mapped of it stays readable."""
        file = self._used.pop(path, None)
        if file is not None:
            file.close()

    def make_room(self, nbytes: int) -> None:
        """Delete what nobody uses until `nbytes` more fit; where too much is in use, more than the limit is kept."""
        if self._limit_bytes is None:
            return
        files = sorted(self._blocks(), key=lambda found: found[0])
        excess = sum(size for _, size, _ in files) + nbytes - self._limit_bytes
        for _, size, path in files:
            if excess <= 0:
                return
            if path not in self._used and self._delete(path):
                logger.info("deleted %s from the cache, for others", path)
                excess -= size
        if excess > 0:
            logger.warning("the cache holds %d bytes more than its limit, and all of it is in use", excess)

    def _blocks(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of each block's file."""
        for path in self._root.glob(_BLOCKS):
            try:
                found = path.stat()
            except OSError:
                continue  # another process has deleted it
            yield found.st_mtime, found.st_size, path

    def _lock(self, path: Path) -> bool:
        """Open the file for use; False if it is not there (any more)."""
        if path in self._used:
            return True
        try:
            file = path.open("rb")
        except OSError:
            return False
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH)
            os.utime(path)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise FileNotFoundError(path)
        except OSError:  # it was deleted, or written anew, before it was locked
            file.close()
            return False
        self._used[path] = file
        return True

    def _delete(self, path: Path) -> bool:
        """Delete a file and its hash, unless another process uses it; whether it is gone."""
        try:
            with path.open("rb") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _hash_path(path).unlink(missing_ok=True)
                path.unlink()
        except OSError:
            return False
        return True


def header_of(tensors: Sequence[TensorInfo]) -> bytes:
    """The length and the JSON header of a safetensors file that holds the tensors one after the other."""
    entries: dict[str, Any] = {}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _held_in(path: Path, tensors: Sequence[TensorInfo]) -> Mapping[str, HeldTensor]:
    """Where the tensors are in a file that was fetched, with their hashes. Raises UsageError, OSError."""
    with path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        found = parse_header(path.name, path.stat().st_size, read)
    held = {tensor.name: HeldTensor(path, tensor.start) for tensor in found}
    if held.keys() != {tensor.name for tensor in tensors}:
        raise UsageError(f"{path} has other tensors than were asked for")
    hashes = hash_held(held, tensors)
    return {name: replace(tensor, sha256=hashes[name]) for name, tensor in held.items()}


def _hash_of(tensors: Sequence[TensorInfo], held: Mapping[str, HeldTensor]) -> bytes:
    return hash_of_tensors(tensors, {name: tensor.sha256 or b"" for name, tensor in held.items()})


def _intact(path: Path, tensors: Sequence[TensorInfo]) -> Mapping[str, HeldTensor] | None:
    """The tensors, if the file is there and they have the hash that is written beside it."""
    try:
        expected = _hash_path(path).read_text(encoding="ascii")
        held = _held_in(path, tensors)
    except (OSError, UnicodeDecodeError, UsageError):
        return None
    return held if _hash_of(tensors, held).hex() == expected else None


def _hash_path(path: Path) -> Path:
    return path.with_name(path.name + ".hash")


def write_fetched(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """The file appears whole or not at all. Raises UsageError if it cannot be written."""
    try:
        write_whole(path, write)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", hint="Free space, or choose another cache."
        ) from error


# --- the repository, as its hub described it the last time ---


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """The size of a file in the repository, and the hash that the hub publishes of it."""

    size: int
    sha256: bytes | None
    """SHA-256 of its content; None for a file that is kept like source text, as small ones are."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The commit that a revision meant, and its files by name."""

    commit: str
    files: Mapping[str, RemoteFile]


def remember(cache: Path, revision: str, listing: Listing) -> None:
    """Keep the listing of a revision. Raises UsageError if it cannot be written."""
    files = {name: [file.size, file.sha256.hex() if file.sha256 else None] for name, file in listing.files.items()}
    text = json.dumps({"revision": revision, "commit": listing.commit, "files": files})
    write_fetched(_listing_path(cache, revision), lambda target: target.write(text.encode()))


def remembered(cache: Path, revision: str) -> Listing | None:
    """The listing that was kept of a revision; None if there is none, or none that is whole."""
    path = _listing_path(cache, revision)
    try:
        if path.stat().st_size > _MAX_LISTING_BYTES:
            return None
        values = json.loads(path.read_bytes())
        files = {
            str(name): RemoteFile(int(size), bytes.fromhex(sha256) if sha256 else None)
            for name, (size, sha256) in values["files"].items()
        }
        if values["revision"] != revision or not _COMMIT.fullmatch(values["commit"]):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Listing(values["commit"], files)


def _listing_path(cache: Path, revision: str) -> Path:
    """Revisions may have slashes and any length."""
    return cache / f"revision-{hashlib.sha256(revision.encode()).hexdigest()[:16]}.json"
