"""From a checkpoint to an engine that is ready to compute."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ...proto.errors import OutOfMemory
from ...proto.model.checkpoint import Checkpoint
from ...proto.model.family import BlockList, load_model, slice_config, stage_class
from ...proto.wire.tensors import DTYPES
from ...routing.swarm import BlockRange
from .blocks.selfcheck import check_family
from .blocks.sizes import block_sizes
from .blocks.stage import BatchingRoute, Stage, attention_of, load_stage
from .device import CPU, describe_device, find_device, find_dtype, free_device_bytes
from .engine import Engine
from .threads import set_threads
from .weights.choose import find_packing
from .weights.quantize import Packing, pack_block, shared_inputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Examined:
    """How a model will be served here; known before any of its weights is read."""

    device: str
    """Of its own, "cpu" or "cuda:0"."""
    device_description: str
    device_free_bytes: int | None
    """Free memory of the device; None where it has none of its own and uses the machine's."""
    dtype: str
    packing: Packing
    numeric_format: str
    """What the peer's record says."""
    block_bytes: int
    kv_bytes_per_token: int
    """In one block."""
    threads: int


def examine_model(
    checkpoint: Checkpoint,
    device: str,
    dtype: str,
    quantize: str,
    threads: int | None,
    clock: Callable[[], float],
) -> Examined:
    """Find the device, check the family, settle torch's threads for the whole process, choose the form of the weights,
    measure a block.

    See `find_device`, `find_dtype`, `check_family`, `set_threads`, `find_packing` and `block_sizes`; `device`,
    `dtype` and `quantize` may be "auto". `clock` is a monotonic clock in seconds. Raises UnsupportedModel, and
    UsageError for a device that is not here or a form that it cannot compute. Takes a second or two.
    """
    place = find_device(device)
    stored = max(checkpoint.block_tensors(0), key=lambda tensor: tensor.nbytes).dtype
    dtype = find_dtype(dtype, stored, place)
    check_family(checkpoint.config)
    hidden_size = checkpoint.config.get_text_config(decoder=True).hidden_size
    count, seconds = set_threads(threads, hidden_size, clock, measure=place == CPU)
    if seconds:
        times = ", ".join(f"{number}: {1000 * taken:.1f} ms" for number, taken in seconds.items())
        logger.info("%d threads compute (measured %s)", count, times)
    choice = find_packing(checkpoint, dtype, quantize, place)
    logger.info("%s, in %s: %s", describe_device(place), dtype, choice.reason)
    if stored == "BF16" and dtype == "float16":
        logger.warning("the model was published in bfloat16; in float16, values beyond 65504 are lost")
    block_bytes, kv_bytes = block_sizes(checkpoint.config, dtype, choice.packing)
    return Examined(
        device=str(place),
        device_description=describe_device(place),
        device_free_bytes=free_device_bytes(place),
        dtype=dtype,
        packing=choice.packing,
        numeric_format=choice.packing.numeric_format(dtype),
        block_bytes=block_bytes,
        kv_bytes_per_token=kv_bytes,
        threads=count,
    )


def load_engine(
    checkpoint: Checkpoint,
    blocks: BlockRange,
    dtype: str,
    progress: Callable[[str, int, int], None],
    packing: Packing = Packing.PLAIN,
    device: str = "cpu",
) -> Engine:
    """Fetch `blocks` of a model that was examined and load them in `dtype` ("float32") onto `device` ("cuda:0").

    `packing` is how their matrices are held, see `formats.find_packing`. `progress` hears what is done, the bytes
    done and the bytes in all. Raises UsageError, ModelMismatch, OutOfMemory, and RetryElsewhere if the hub does not
    answer.
    """
    checkpoint.fetch(blocks, lambda done, total: progress("fetching", done, total))
    try:
        stage = load_packed_stage(
            checkpoint,
            blocks,
            DTYPES[dtype],
            lambda done, total: progress("loading", done, total),
            check_family(checkpoint.config),
            packing,
            torch.device(device),
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise OutOfMemory(f"there is no memory for blocks {blocks}") from None
    return Engine(stage)


def load_packed_stage(
    checkpoint: Checkpoint,
    blocks: BlockRange,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None,
    route: BatchingRoute,
    packing: Packing,
    device: torch.device = CPU,
) -> Stage:
    """As `load_stage`, with the blocks' matrices packed, on `device`.

    Blocks are loaded, packed and moved one by one, so that there is never more memory in use than what the packed
    blocks hold, and one block as it was loaded with the intermediate results of packing it. A GPU needs no more than
    what it will hold and a piece of a matrix. Raises as `load_stage`.
    """
    if (packing is Packing.PLAIN and device == CPU) or blocks.stop > checkpoint.num_blocks:
        return load_stage(checkpoint, blocks, dtype, progress, route)
    config = checkpoint.config
    groups = shared_inputs(config) if packing is not Packing.PLAIN else frozenset()
    bytes_in_all = sum(checkpoint.block_bytes(block) for block in blocks)
    bytes_done = 0
    shell: PreTrainedModel | None = None
    packed = nn.ModuleList()
    for block in blocks:
        one = BlockRange(block, block + 1)
        state = checkpoint.block_state(one, _shifted(progress, bytes_done, bytes_in_all))
        model = load_model(stage_class(config, one), config, state, dtype, attention_of(route))
        (loaded,) = BlockList.at(model, model.blocks_path).blocks
        if packing is not Packing.PLAIN:
            pack_block(loaded, packing, groups, device)
        _leave_the_file(loaded, device)
        packed.append(loaded)
        shell = shell or model
        bytes_done += checkpoint.block_bytes(block)
        del model, state
        _return_freed_memory()
    assert shell is not None
    found = BlockList.at(shell, shell.blocks_path)
    setattr(found.owner, found.name, packed)
    found.owner.config = slice_config(shell.config, blocks.start, blocks.stop)
    shell.to(device)  # what is around the blocks: tables of rotary positions
    return Stage(shell, blocks, route)


def _shifted(
    progress: Callable[[int, int], None] | None, before: int, in_all: int
) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, _: progress(before + done, in_all)


def _leave_the_file(block: nn.Module, device: torch.device) -> None:
    """Copy what was not packed: it lies in the mapped file, which one small tensor would keep in memory as a whole."""
    if device != CPU:
        block.to(device)
        return
    for tensor in (*block.parameters(), *block.buffers()):
        tensor.data = tensor.data.clone()


def _return_freed_memory() -> None:
    """Between large pieces that come and go and small ones that stay, glibc's heap keeps what was freed.

    Measured: four times what the packed matrices hold.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
