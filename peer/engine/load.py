"""From a checkpoint to a stage that is ready to compute."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig

from ...proto.errors import OutOfMemory, UsageError
from ...proto.model.bounds import check_elements
from ...proto.model.checkpoint import Checkpoint
from ...proto.model.family import FOREIGN_FAILURES, building, inference_copy, load_model, refused, stage_class
from ...proto.weights.forms import Forms, Packing
from ...proto.weights.kept import KeptMeasurements
from ...proto.wire.tensors import DTYPES
from ...routing.swarm import BlockRange
from .blocks.selfcheck import check_family
from .blocks.sizes import block_sizes
from .blocks.stage import Stage
from .blocks.view import BatchingRoute, Shell, attention_of
from .device import CPU, GPUS, Gpus, describe_device, find_device, find_dtype, free_device_bytes, gpu_of
from .machine.pages import return_freed_memory, use_large_pages_soon
from .machine.threads import one_thread, set_threads
from .weights.choose import MachineProbe, find_forms
from .weights.quantize import FormChoice, pack_block, shared_inputs

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Examined:
    """The way in which a model will be served here; known before any of its weights is read."""

    device: str
    """As torch names it: "cpu" or "cuda:0"."""
    device_description: str
    gpu: tuple[str, int] | None
    """The name of the GPU, and its memory in bytes; None for a processor."""
    device_free_bytes: int | None
    """Free memory of the device; None if it uses the machine's."""
    dtype: str
    forms: Forms
    numeric_format: str
    """The format that the peer's record announces."""
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
    gpus: Gpus = GPUS,
    environment: Mapping[str, str] = os.environ,
    kept: KeptMeasurements | None = None,
) -> Examined:
    """Find the device, check the family, set torch's threads for the whole process, choose the form of the weights,
    and find the size of a block.

    See `find_device`, `find_dtype`, `check_family`, `set_threads`, `find_forms` and `block_sizes`; `device`,
    `dtype` and `quantize` may be "auto". `clock` is a monotonic clock in seconds. Measurements are kept in `kept` for
    the next start. Raises UnsupportedModel, and UsageError for a device that is not here or a form that it cannot
    compute. Takes a few seconds the first time, less than one after that.
    """
    place = find_device(device, gpus)
    stored = max(checkpoint.block_tensors(0), key=lambda tensor: tensor.nbytes).dtype
    dtype = find_dtype(dtype, stored, place, gpus)
    with one_thread():
        check_family(checkpoint.config)
    hidden_size = checkpoint.config.get_text_config(decoder=True).hidden_size
    count, seconds = set_threads(threads, hidden_size, clock, timed=place == CPU, environment=environment, kept=kept)
    if seconds:
        times = ", ".join(f"{number}: {1000 * taken:.1f} ms" for number, taken in seconds.items())
        logger.info("%d thread%s used (measured %s)", count, " is" if count == 1 else "s are", times)
    choice = find_forms(checkpoint, dtype, quantize, place, MachineProbe(kept))
    logger.info("%s, in %s: %s", describe_device(place, gpus), dtype, choice.reason)
    if stored == "BF16" and dtype == "float16":
        logger.warning("the model was published in bfloat16; in float16, values beyond 65504 are lost")
    try:
        with one_thread():
            block_bytes, kv_bytes = block_sizes(checkpoint.config, dtype, choice.forms)
    except FOREIGN_FAILURES as error:
        raise refused(checkpoint.config, error) from error
    held = max(checkpoint.block_elements(block) for block in range(checkpoint.num_blocks))
    check_elements(block_bytes // DTYPES[dtype].itemsize, held, "a block")
    return Examined(
        device=str(place),
        device_description=describe_device(place, gpus),
        gpu=gpu_of(place, gpus),
        device_free_bytes=free_device_bytes(place, gpus),
        dtype=dtype,
        forms=choice.forms,
        numeric_format=choice.forms.numeric_format(dtype),
        block_bytes=block_bytes,
        kv_bytes_per_token=kv_bytes,
        threads=count,
    )


def load_examined(
    checkpoint: Checkpoint,
    blocks: BlockRange,
    examined: Examined,
    progress: Callable[[str, int, int], None],
    reuse: Stage | None = None,
) -> Stage:
    """Fetch `blocks` of an examined model and load them as was decided then; see `load_stage` for `reuse`.

    Their bytes are hashed meanwhile, see `Checkpoint.block_hashes`. `progress` is called, from two threads, with
    "fetching", "loading" or "checking", the bytes done and the bytes in all. Raises UsageError, ModelMismatch,
    OutOfMemory, and RetryElsewhere if the hub does not answer; after any error nothing of the load is kept.
    """
    for run in _runs_outside(blocks, reuse):
        checkpoint.fetch(run, lambda done, total: progress("fetching", done, total))
    with ThreadPoolExecutor(1) as beside:
        checked = beside.submit(checkpoint.block_hashes, blocks, lambda done, total: progress("checking", done, total))
        try:
            stage = load_stage(
                checkpoint,
                blocks,
                DTYPES[examined.dtype],
                lambda done, total: progress("loading", done, total),
                check_family(checkpoint.config),
                examined.forms,
                torch.device(examined.device),
                reuse,
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise OutOfMemory(f"there is no memory for blocks {blocks}") from None
        checked.result()
    if examined.device == str(CPU):
        use_large_pages_soon()
    return stage


def load_stage(
    checkpoint: Checkpoint,
    blocks: BlockRange,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    route: BatchingRoute = BatchingRoute.SINGLE,
    forms: FormChoice = Packing.PLAIN,
    device: torch.device = CPU,
    reuse: Stage | None = None,
) -> Stage:
    """Load `blocks` of a checkpoint, reading (and from a hub: fetching) only their tensors.

    `route` is what `check_family` found for the model; `forms` are those of the matrices, see `find_forms`.
    If they are packed, or on a GPU, blocks are loaded, packed and moved one by one: the memory in use is never more
    than that of the packed blocks, of one block as loaded, and of the intermediate results of packing it.

    Blocks of `reuse`, a stage loaded in the same way, are not loaded again: the new stage shares its modules for them,
    and memory holds the union of both. `reuse` may go on computing meanwhile and is not changed.

    `progress` is called with bytes done and bytes in all; what it raises ends the load. Raises UsageError for blocks
    that the model does not have, UnsupportedModel, ModelMismatch for a checkpoint that lacks weights, OutOfMemory.
    """
    if blocks.stop > checkpoint.num_blocks:
        raise UsageError(
            f"the model has blocks 0:{checkpoint.num_blocks}, not {blocks}",
            hint=f"Choose a range inside 0:{checkpoint.num_blocks}.",
        )
    one_by_one = not forms.is_plain or device != CPU
    runs = _runs_outside(blocks, reuse)
    bytes_in_all = sum(checkpoint.block_bytes(block) for run in runs for block in run)
    bytes_done = 0
    parts = [] if reuse is None else [reuse]
    for run in runs:
        step = _shifted(progress, bytes_done, bytes_in_all)
        if one_by_one:
            parts.append(_load_one_by_one(checkpoint, run, dtype, step, route, forms, device))
        else:
            parts.append(_load_at_once(checkpoint, run, dtype, step, route))
        bytes_done += sum(checkpoint.block_bytes(block) for block in run)
    stage = Stage.joined(blocks, parts)
    return_freed_memory()  # for all forms: otherwise glibc keeps the memory that loading took
    return stage


def sample_stage(config: PreTrainedConfig, examined: Examined) -> Stage:
    """Make one block with random weights, in the shape and form that will be served: to be timed before any weight is
    loaded. Raises OutOfMemory."""
    first = BlockRange(0, 1)
    device = torch.device(examined.device)
    route = check_family(config)
    family = stage_class(config, first)
    try:
        with building():
            model = family._from_config(
                inference_copy(config), dtype=DTYPES[examined.dtype], attn_implementation=attention_of(route)
            ).eval()
        shell, modules = Shell.split(model, route)
        if not examined.forms.is_plain:
            pack_block(modules[0], examined.forms, shared_inputs(config), device)
        modules[0].to(device)
    except (MemoryError, torch.OutOfMemoryError):
        raise OutOfMemory("there is no memory for one block") from None
    shell.to(device)
    return Stage.around(shell, modules, first)


def _runs_outside(blocks: BlockRange, reuse: Stage | None) -> list[BlockRange]:
    """The runs of `blocks` that `reuse` does not have."""
    if reuse is None:
        return [blocks]
    bounds = (blocks.start, min(blocks.stop, reuse.blocks.start)), (max(blocks.start, reuse.blocks.stop), blocks.stop)
    return [BlockRange(start, stop) for start, stop in bounds if start < stop]


def _load_at_once(
    checkpoint: Checkpoint, blocks: BlockRange, dtype: torch.dtype, progress: Progress | None, route: BatchingRoute
) -> Stage:
    """Load a run of blocks. Weights in the checkpoint's own dtype are not copied: they stay in the mapped file."""
    model_class = stage_class(checkpoint.config, blocks)
    state = checkpoint.block_state(blocks, progress)
    return Stage.of(load_model(model_class, checkpoint.config, state, dtype, attention_of(route)), blocks, route)


def _load_one_by_one(
    checkpoint: Checkpoint,
    blocks: BlockRange,
    dtype: torch.dtype,
    progress: Progress | None,
    route: BatchingRoute,
    forms: FormChoice,
    device: torch.device,
) -> Stage:
    config = checkpoint.config
    groups = frozenset() if forms.is_plain else shared_inputs(config)
    bytes_in_all = sum(checkpoint.block_bytes(block) for block in blocks)
    bytes_done = 0
    shell: Shell | None = None
    modules: list[nn.Module] = []
    for block in blocks:
        single = BlockRange(block, block + 1)
        state = checkpoint.block_state(single, _shifted(progress, bytes_done, bytes_in_all))
        model = load_model(stage_class(config, single), config, state, dtype, attention_of(route))
        its_shell, (module,) = Shell.split(model, route)
        if not forms.is_plain:
            pack_block(module, forms, groups, device)
        _leave_the_file(module, device)
        modules.append(module)
        shell = shell or its_shell
        bytes_done += checkpoint.block_bytes(block)
        del model, state, its_shell
        return_freed_memory()
    assert shell is not None
    shell.to(device)
    return Stage.around(shell, modules, blocks)


def _shifted(progress: Progress | None, before: int, in_all: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, in_all)


def _leave_the_file(block: nn.Module, device: torch.device) -> None:
    """Copy the tensors that were not packed: they are views into the memory-mapped checkpoint, and one view keeps the
    whole file in memory."""
    if device != CPU:
        block.to(device)
        return
    for tensor in (*block.parameters(), *block.buffers()):
        tensor.data = tensor.data.clone()
