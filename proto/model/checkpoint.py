"""A model's files: which tensor belongs to which block, reading only what is needed, and the identity of the weights.

A checkpoint is a local folder or a repository on a Hugging Face hub (`hub.py`), in safetensors only.  Whatever its
source, tensors are read lazily from local files; with a hub, the tensors needed are downloaded first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...routing.swarm import BlockRange
from ..errors import UnsupportedModel, UsageError
from .bounds import block_number, check_counts, check_sizes, plain_block_count
from .folder import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_SHARD,
    CountedSlice,
    FolderSource,
    HeldTensor,
    Progress,
    ReadCounter,
    Source,
    TensorInfo,
    cache_root,
    check_served,
    open_slices,
    parse_header,
    parse_json_object,
)
from .hashes import FileHashes, HashMemory, add_part, describe, hash_held, hash_of_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

BLOCK_HASH_BYTES = 8
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_INDEX_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors\.index\.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_DIGEST_TAG = b"blockswarm-model-3"
CONFIG_KEYS_WITHOUT_MEANING = frozenset({
    # who wrote it
    "_name_or_path", "transformers_version", "architectures", "auto_map", "_attn_implementation_autoset",
    # how the weights are stored: the list of tensors says that
    "torch_dtype", "dtype",
    # whether generate keeps a cache: a client always does
    "use_cache",
    # switches of training, which no node follows
    "return_dict", "output_hidden_states", "output_attentions", "output_router_logits", "gradient_checkpointing",
    # where a text begins and ends: the client's business
    "bos_token_id", "eos_token_id", "pad_token_id",
})  # fmt: skip
"""Keys of a configuration that change no number in any block; all others count, unknown ones too."""


class Checkpoint:
    """An opened checkpoint, made by `open_checkpoint`."""

    def __init__(self, source: Source, values: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> None:
        """`values`: the contents of the configuration file."""
        self._source = source
        self._values = values
        self.tensors: Mapping[str, TensorInfo] = {tensor.name: tensor for tensor in tensors}
        counted = plain_block_count(values)
        self.num_blocks: int = _blocks_of(self.config) if counted is None else counted
        self._files: dict[str, FileHashes] = {}
        self._checked: dict[int, bytes] = {}
        """Hash by block, for blocks whose bytes this process has read."""
        self._prefix = block_prefix(self.tensors, self.num_blocks)
        self._by_block: dict[int, list[TensorInfo]] = {}
        self._outside: list[TensorInfo] = []
        for name, tensor in sorted(self.tensors.items()):
            place = block_number(name)
            if place is not None and place[0] == self._prefix:
                self._by_block.setdefault(place[1], []).append(tensor)
            else:
                self._outside.append(tensor)

    @property
    def folder(self) -> Path:
        """A local folder with the small files: the configuration, generation_config.json if there is one."""
        return self._source.folder

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration as transformers reads it. Imports torch, which takes seconds; nothing else here does.

        Raises UnsupportedModel for an unknown model type, UsageError if the configuration does not fit the weights.
        """
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            text_config = config.get_text_config(decoder=True)
        except Exception as error:  # a family's own code has read a file that anybody may have written
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            kind = str(self._values.get("model_type"))[:80]
            raise UnsupportedModel(f"the configuration of model type {kind!r} cannot be used: {reason}") from error
        check_sizes(text_config, list(self.tensors.values()), CONFIG_FILE)
        counted = plain_block_count(self._values)
        if counted not in (None, _blocks_of(config)):
            raise UsageError(f"{CONFIG_FILE} gives two numbers of blocks: {counted} and {_blocks_of(config)}")
        return config

    def block_tensors(self, block: int) -> Sequence[TensorInfo]:
        """The tensors of one block, by name."""
        return self._by_block[block]

    def ends_tensors(self) -> Sequence[TensorInfo]:
        """The tensors outside all blocks, by name, but not those of extra blocks at the end, such as draft heads."""
        return self._outside

    def block_bytes(self, block: int) -> int:
        """Bytes of one block's weights in the checkpoint's own format."""
        return sum(tensor.nbytes for tensor in self._by_block[block])

    def block_elements(self, block: int) -> int:
        """The number of values in one block's weights."""
        return sum(math.prod(tensor.shape) for tensor in self._by_block[block])

    def fetch(self, blocks: BlockRange, progress: Progress | None = None) -> None:
        """Download the blocks that are not on this machine; does nothing for a local folder.

        Raises RetryElsewhere if the hub does not answer, UsageError if it refuses or the disk is full.
        """
        total = sum(self.block_bytes(block) for block in blocks)
        done = 0
        for block in blocks:
            self._hold_block(block, _shifted(progress, done, total))
            done += self.block_bytes(block)

    def check_space(self, blocks: BlockRange) -> None:
        """Raise UsageError if the disk has no room for the blocks that are not on this machine yet."""
        self._source.check_space({_group(block): self._by_block[block] for block in blocks})

    def keep(self, blocks: BlockRange) -> None:
        """Declare that no other blocks are needed, so that a cache with a limit may delete their files."""
        self._source.let_go([_group(block) for block in range(self.num_blocks) if block not in blocks])

    def block_state(self, blocks: BlockRange, progress: Progress | None = None) -> dict[str, Any]:
        """Tensor name -> lazy slice for `blocks`, renumbered from 0; a slice is read when it is used.

        Downloads missing tensors first; `progress` reports reading, and may be called from several threads, one at a
        time.
        """
        counter = ReadCounter(progress, sum(self.block_bytes(block) for block in blocks))
        state: dict[str, Any] = {}
        for block in blocks:
            old, new = f"{self._prefix}{block}.", f"{self._prefix}{block - blocks.start}."
            for name, piece in open_slices(self._hold_block(block)).items():
                state[new + name.removeprefix(old)] = CountedSlice(piece, self.tensors[name].nbytes, counter)
        return state

    def ends_state(self, progress: Progress | None = None) -> dict[str, Any]:
        """Tensor name -> lazy slice for all tensors outside the blocks; their bytes are checked like those of blocks.

        Downloads missing tensors, and reports that to `progress`. Raises UsageError.
        """
        held = self._source.hold("ends", self._outside, progress)
        self._checked_hash("what is outside the blocks", self._outside, held)
        return open_slices(held)

    def model_digest(self, progress: Progress | None = None) -> bytes:
        """32 bytes that identify these weights, wherever they are stored.

        SHA-256 over the configuration, the name, dtype and shape of all tensors, and the SHA-256 of the weight files,
        whatever these are called. Reads the files of a local folder completely, with `progress`, unless their hashes
        are cached.
        """
        digest = hashlib.sha256(_DIGEST_TAG)
        add_part(digest, self._canonical_config())
        for name in sorted(self.tensors):
            add_part(digest, describe(self.tensors[name]))
        for content in sorted(file.sha256 for file in self._hashes_of_files(progress).values()):
            add_part(digest, content)
        return digest.digest()

    def block_hashes(self, blocks: BlockRange, progress: Progress | None = None) -> tuple[bytes, ...]:
        """Per block the first 8 bytes of a SHA-256 over its tensors' names, dtypes, shapes and bytes.

        The same wherever the block came from. Downloads missing tensors first; reads each block once per process.
        Raises UsageError if a block differs from its contents when the digest was computed.
        """
        total = sum(self.block_bytes(block) for block in blocks)
        done = 0
        for block in blocks:
            if block not in self._checked:
                tensors, held = self._by_block[block], self._hold_block(block)
                self._checked[block] = self._checked_hash(f"block {block}", tensors, held)[:BLOCK_HASH_BYTES]
            done += self.block_bytes(block)
            if progress is not None:
                progress(done, total)
        return tuple(self._checked[block] for block in blocks)

    def proven_hashes(self) -> Mapping[int, bytes]:
        """Block -> hash that the model's digest proves, for blocks whose files this machine has read completely."""
        found = {block: self._proven_hash(self._by_block[block]) for block in range(self.num_blocks)}
        return {block: proven[:BLOCK_HASH_BYTES] for block, proven in found.items() if proven is not None}

    def _checked_hash(self, what: str, tensors: Sequence[TensorInfo], held: Mapping[str, HeldTensor]) -> bytes:
        """The hash of tensors from their present bytes. Raises UsageError if whole files prove a different hash."""
        hashes = {name: tensor.sha256 for name, tensor in held.items() if tensor.sha256 is not None}
        found = hash_of_tensors(tensors, hashes or hash_held(held, tensors))
        if self._proven_hash(tensors) not in (None, found):
            raise UsageError(
                f"{what} in {self.folder} has changed since its file was hashed, though nothing has written to it",
                hint="Check the disk, and download the model again.",
            )
        return found

    def _proven_hash(self, tensors: Sequence[TensorInfo]) -> bytes | None:
        files = self._hashes_of_files()
        if not all(tensor.name in files[tensor.file].tensors for tensor in tensors):
            return None
        return hash_of_tensors(tensors, {tensor.name: files[tensor.file].tensors[tensor.name] for tensor in tensors})

    def _hashes_of_files(self, progress: Progress | None = None) -> Mapping[str, FileHashes]:
        if not self._files:
            by_file: dict[str, list[TensorInfo]] = {}
            for tensor in self.tensors.values():
                by_file.setdefault(tensor.file, []).append(tensor)
            sizes = {file: self._source.size(file) for file in by_file}
            files, done = {}, 0
            for file, tensors in by_file.items():
                files[file] = self._source.hashes(file, tensors, _shifted(progress, done, sum(sizes.values())))
                done += sizes[file]
            self._files = files
        return self._files

    def _hold_block(self, block: int, progress: Progress | None = None) -> Mapping[str, HeldTensor]:
        return self._source.hold(_group(block), self._by_block[block], progress)

    def _canonical_config(self) -> bytes:
        values = parse_json_object(self._source.small_file(CONFIG_FILE) or b"", CONFIG_FILE)
        meaning = {key: value for key, value in values.items() if key not in CONFIG_KEYS_WITHOUT_MEANING}
        return json.dumps(meaning, sort_keys=True, separators=(",", ":")).encode()


def _group(block: int) -> str:
    """The name of a block's group of tensors in a cache."""
    return f"block-{block:04d}"


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    cache_folder: Path | None = None,
    cache_limit_bytes: int | None = None,
) -> Checkpoint:
    """Open a local folder, or "owner/name" on a Hugging Face hub; reads the configuration and the shards' headers.

    `endpoint` is the hub's address (default: that of huggingface_hub). `cache_folder` keeps downloaded files and the
    hashes of large ones; beyond `cache_limit_bytes` the least recently used blocks in it are deleted. Raises UsageError
    if there is no usable checkpoint, RetryElsewhere if the hub does not answer. The model's family is read only by
    `Checkpoint.config`, or here if the file does not state the number of blocks plainly; that may raise
    UnsupportedModel.
    """
    if os.path.isfile(model):
        check_served([os.path.basename(model)], model)
        raise UsageError(f"{model} is a file", hint="Give the folder that it is in, or owner/name.")
    if os.path.isdir(model):  # unlike Path.is_dir, False for a name that is too long
        source: Source = FolderSource(Path(model), HashMemory(cache_root(cache_folder) / "hashes"))
    else:
        from .hub import HubSource  # a local folder needs no HTTP client

        source = HubSource(
            str(model),
            revision=revision,
            endpoint=endpoint,
            cache_folder=cache_folder,
            cache_limit_bytes=cache_limit_bytes,
        )
    return read_checkpoint(source)


def read_checkpoint(source: Source) -> Checkpoint:
    """Open the checkpoint behind `source`. Raises as `open_checkpoint`."""
    raw_config = source.small_file(CONFIG_FILE)
    if raw_config is None:
        check_served(source.names(), source.folder)
        raise UsageError(f"{source.folder} has no {CONFIG_FILE}", hint="Give the folder of a model, or owner/name.")
    values = parse_json_object(raw_config, CONFIG_FILE)
    shards = _shard_names(source, values.get("transformers_weights"))
    tensors = [tensor for shard in shards for tensor in _read_header(source, shard)]
    check_counts(values, tensors, CONFIG_FILE)
    return Checkpoint(source, values, tensors)


def _blocks_of(config: PreTrainedConfig) -> int:
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def block_prefix(names: Iterable[str], num_blocks: int) -> str:
    """The text before the block number in the names of the blocks' tensors ("model.layers.").

    Raises UsageError unless one prefix has all the numbers from 0 to `num_blocks` - 1.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        place = block_number(name)
        if place is not None and place[1] < num_blocks:
            numbers.setdefault(place[0], set()).add(place[1])
    complete = [prefix for prefix, found in numbers.items() if len(found) == num_blocks]
    if len(complete) != 1:
        raise UsageError(
            f"the checkpoint has {len(complete)} complete series of {num_blocks} blocks, exactly one is needed",
            hint="Check that all shards are there and that config.json belongs to them.",
        )
    return complete[0]


def _shard_names(source: Source, named: Any = None) -> list[str]:
    """The names of the weight files, found in the order of transformers. Raises UsageError.

    `named` is the file that the configuration names, weights or an index. A single file takes precedence over an index,
    because saving a model as one file leaves an earlier index in place.
    """
    if named is not None:
        if not (isinstance(named, str) and (_SHARD_NAME.fullmatch(named) or _INDEX_NAME.fullmatch(named))):
            raise UsageError(f"{CONFIG_FILE} names weights that are not loaded: {str(named)[:200]!r}")
        return _shards_of_index(source, named) if _INDEX_NAME.fullmatch(named) else [named]
    names = set(source.names())
    if SINGLE_SHARD in names:
        if INDEX_FILE in names:
            logger.warning("%s has %s and %s: the first is used", source.folder, SINGLE_SHARD, INDEX_FILE)
        return [SINGLE_SHARD]
    if INDEX_FILE in names:
        return _shards_of_index(source, INDEX_FILE)
    check_served(names, source.folder)
    if any(name.endswith(_PICKLES) for name in names):
        raise UsageError(
            f"{source.folder} has pickled weights only, which are never loaded",
            hint="Convert the model to safetensors (save_pretrained does), or choose another one.",
        )
    raise UsageError(f"{source.folder} has neither {SINGLE_SHARD} nor {INDEX_FILE}")


def _shards_of_index(source: Source, index: str) -> list[str]:
    """The weight files that an index names. Raises UsageError."""
    raw_index = source.small_file(index)
    if raw_index is None:
        raise UsageError(f"{source.folder} has no {index}")
    weight_map = parse_json_object(raw_index, index).get("weight_map")
    shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
    unsafe = [shard for shard in shards if not (isinstance(shard, str) and _SHARD_NAME.fullmatch(shard))]
    if unsafe or not shards:
        raise UsageError(f"{index} names no shards or unsafe ones: {str(unsafe[:1])[:300]}")
    return sorted(set(shards))


def _read_header(source: Source, shard: str) -> list[TensorInfo]:
    return parse_header(shard, source.size(shard), lambda start, stop: source.read(shard, start, stop))


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, total)
