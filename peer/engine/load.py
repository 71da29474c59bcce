"""From a checkpoint to an engine that is ready to compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig

from ...proto.checkpoint import Checkpoint
from ...proto.errors import OutOfMemory
from ...proto.tensors import DTYPES
from ...routing.swarm import BlockRange
from .engine import Engine
from .measure import measure_block
from .selfcheck import check_family
from .stage import load_stage


def examine_model(config: PreTrainedConfig, dtype: str, threads: int | None) -> tuple[int, int]:
    """Check the family and measure a block, without any weights: see `check_family` and `measure_block`.

    `threads` is how many CPU threads torch may use, None: as many as it likes; it holds for the whole process.
    Raises UnsupportedModel.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    check_family(config)
    return measure_block(config, dtype)


def load_engine(
    checkpoint: Checkpoint, blocks: BlockRange, dtype: str, progress: Callable[[str, int, int], None]
) -> Engine:
    """Fetch `blocks` of a model that was examined and load them in `dtype` ("float32").

    `progress` hears what is done, the bytes done and the bytes in all. Raises UsageError, ModelMismatch, OutOfMemory,
    and RetryElsewhere if the hub does not answer.
    """
    checkpoint.fetch(blocks, lambda done, total: progress("fetching", done, total))
    try:
        stage = load_stage(checkpoint, blocks, DTYPES[dtype], lambda done, total: progress("loading", done, total))
    except (MemoryError, torch.OutOfMemoryError):
        raise OutOfMemory(f"there is no memory for blocks {blocks}") from None
    return Engine(stage)
