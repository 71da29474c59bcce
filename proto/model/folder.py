"""A checkpoint's files: the interface of their sources, reading safetensors files, and the source for local folders.

Everything in a file is checked before it is used.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open

from ..errors import UsageError

if TYPE_CHECKING:
    from .hashes import FileHashes, HashMemory

Progress = Callable[[int, int], None]
"""Called with bytes done and total bytes."""

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_SHARD = "model.safetensors"
MAX_SMALL_FILE_BYTES = 64 << 20
"""Size limit of configurations and indexes; the largest known index is below 20 MB."""

_MAX_HEADER_BYTES = 100 << 20  # the limit that the safetensors format sets
MAX_NAME_CHARS = 512
MAX_DIMENSIONS = 16
MAX_DIMENSION = 1 << 48

_DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a safetensors file: its `nbytes` bytes begin at byte `start` of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class HeldTensor:
    """A tensor on this machine: its bytes begin at byte `start` of the safetensors file `path`."""

    path: Path
    start: int
    sha256: bytes | None = None
    """SHA-256 of its bytes, if they were checked when the tensor was held."""


class Source(Protocol):
    """Where a checkpoint's files are."""

    @property
    def folder(self) -> Path:
        """A local folder with the small files: the configuration, generation_config.json if there is one."""

    def small_file(self, name: str) -> bytes | None:
        """The contents of a small file, None if there is none of that name."""

    def names(self) -> Sequence[str]:
        """The names of all files."""

    def size(self, shard: str) -> int:
        """Size of a shard in bytes. Raises UsageError if it does not exist."""

    def read(self, shard: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a shard."""

    def hashes(self, shard: str, tensors: Sequence[TensorInfo], progress: Progress | None = None) -> FileHashes:
        """The hashes of a whole shard with these tensors: as published, or computed from its bytes on this machine."""

    def check_space(self, groups: Mapping[str, Sequence[TensorInfo]]) -> None:
        """Raise UsageError if the disk has no room for the groups of tensors that are not on this machine."""

    def hold(
        self, group: str, tensors: Sequence[TensorInfo], progress: Progress | None = None
    ) -> Mapping[str, HeldTensor]:
        """The tensors' locations on this machine, by name; downloads them first if necessary.

        `group` names this set of tensors in a cache.
        """

    def let_go(self, groups: Collection[str]) -> None:
        """Declare that these groups of tensors are no longer needed, so that a cache may delete them."""


class FolderSource:
    """A local folder, which is read in place."""

    def __init__(self, folder: Path, memory: HashMemory) -> None:
        self.folder = folder
        self._memory = memory

    def small_file(self, name: str) -> bytes | None:
        path = self.folder / name
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_SMALL_FILE_BYTES:
            raise UsageError(f"{path} is larger than {MAX_SMALL_FILE_BYTES} bytes")
        return path.read_bytes()

    def names(self) -> Sequence[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())

    def size(self, shard: str) -> int:
        try:
            return (self.folder / shard).stat().st_size
        except OSError as error:
            raise UsageError(f"cannot read {self.folder / shard}: {error.strerror}") from error

    def read(self, shard: str, start: int, stop: int) -> bytes:
        return read_range(self.folder / shard, start, stop)

    def hashes(self, shard: str, tensors: Sequence[TensorInfo], progress: Progress | None = None) -> FileHashes:
        return self._memory.hashes(self.folder / shard, tensors, progress)

    def check_space(self, groups: Mapping[str, Sequence[TensorInfo]]) -> None:
        """Nothing to check: all files are here."""

    def hold(
        self, group: str, tensors: Sequence[TensorInfo], progress: Progress | None = None
    ) -> Mapping[str, HeldTensor]:
        return {tensor.name: HeldTensor(self.folder / tensor.file, tensor.start) for tensor in tensors}

    def let_go(self, groups: Collection[str]) -> None:
        """Nothing to delete: the files are the user's own."""


def check_served(names: Iterable[str], where: str | Path) -> None:
    """Raise UsageError if the files' names show a known form of a model that is not served."""
    for name in sorted(names):
        if name.lower().endswith((".gguf", ".ggml")):
            raise UsageError(
                f"{where} has a model as GGUF ({name}), which is not served",
                hint="Take the model's safetensors files; --quantize makes them small when they are loaded.",
            )
        if name == "adapter_config.json":
            raise UsageError(
                f"{where} has an adapter (LoRA) without its model, which is not served",
                hint="Merge it into the model first (peft: merge_and_unload), and save that.",
            )


def cache_root(chosen: Path | None) -> Path:
    """The folder for downloaded files and cached hashes: the chosen one, or the user's default."""
    return chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockswarm"


def parse_header(name: str, size: int, read: Callable[[int, int], bytes]) -> list[TensorInfo]:
    """The tensors of a safetensors file of `size` bytes; `read(start, stop)` gives its bytes.

    Everything is checked before it is used. Raises UsageError.
    """
    broken = UsageError(f"{name} is not a whole safetensors file", hint="Download the file again.")
    if size < 8:
        raise broken
    header_bytes = int.from_bytes(read(0, 8), "little")
    if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
        raise broken
    data_start = 8 + header_bytes
    header = parse_json_object(read(8, data_start), name)
    header.pop("__metadata__", None)
    try:
        tensors = [_parse_tensor(name, tensor, entry, data_start) for tensor, entry in header.items()]
    except (KeyError, TypeError, ValueError) as error:
        raise broken from error
    end = data_start
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start != end:
            raise broken
        end += tensor.nbytes
    if end != size:
        raise UsageError(f"{name} has {size} bytes, but its header describes {end}", hint="Download the file again.")
    return tensors


def _parse_tensor(file: str, name: str, entry: Mapping[str, Any], data_start: int) -> TensorInfo:
    """Raises KeyError, TypeError or ValueError for a malformed entry."""
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if len(name) > MAX_NAME_CHARS or len(shape) > MAX_DIMENSIONS:
        raise ValueError("a name or a shape is too long")
    if any(type(number) is not int or not 0 <= number <= MAX_DIMENSION for number in (*shape, start, stop)):
        raise ValueError("sizes that no tensor has")
    if math.prod(shape) * _DTYPE_BYTES[dtype] != stop - start:
        raise ValueError("a tensor's shape does not fit its bytes")
    return TensorInfo(name, dtype, shape, file, data_start + start, stop - start)


def read_range(path: Path, start: int, stop: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) != stop - start:
        raise UsageError(f"{path} ends at byte {start + len(data)}, {stop} were expected")
    return data


def open_slices(held: Mapping[str, HeldTensor]) -> dict[str, Any]:
    """Tensor name -> safetensors slice; each file is opened once."""
    slices: dict[str, Any] = {}
    by_path: dict[Path, list[str]] = {}
    for name, tensor in held.items():
        by_path.setdefault(tensor.path, []).append(name)
    for path, names in by_path.items():
        try:
            file = safe_open(path, framework="pt")
            slices |= {name: file.get_slice(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise UsageError(f"cannot read {path}: {error}") from error
    return slices


class ReadCounter:
    """Counts the bytes read; transformers reads with several threads."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self._progress = progress
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done_bytes += nbytes
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes)


class CountedSlice:
    """A safetensors slice that counts its bytes when it is read."""

    def __init__(self, piece: Any, nbytes: int, counter: ReadCounter) -> None:
        self._piece = piece
        self._nbytes = nbytes
        self._counter = counter

    def __getitem__(self, index: Any) -> Any:
        tensor = self._piece[index]
        self._counter.add(self._nbytes)
        return tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._piece, name)


def parse_json_object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name} holds no JSON object")
    return values
