"""From a checkpoint to an engine that is ready to compute."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...proto.checkpoint import Checkpoint
from ...proto.errors import OutOfMemory
from ...proto.tensors import DTYPES
from ...routing.swarm import BlockRange
from .engine import Engine
from .selfcheck import check_family
from .stage import load_stage


def load_engine(
    checkpoint: Checkpoint,
    blocks: BlockRange,
    dtype: str,
    threads: int | None,
    progress: Callable[[str, int, int], None],
) -> Engine:
    """Check the family, fetch `blocks` and load them in `dtype` ("float32").

    `threads` is how many CPU threads torch may use, None: as many as it likes; it holds for the whole process.
    `progress` hears what is done, the bytes done and the bytes in all. Raises UnsupportedModel, UsageError,
    ModelMismatch, OutOfMemory, and RetryElsewhere if the hub does not answer.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    check_family(checkpoint.config)
    checkpoint.fetch(blocks, lambda done, total: progress("fetching", done, total))
    try:
        stage = load_stage(checkpoint, blocks, DTYPES[dtype], lambda done, total: progress("loading", done, total))
    except (MemoryError, torch.OutOfMemoryError):
        raise OutOfMemory(f"there is no memory for blocks {blocks}") from None
    return Engine(stage)
