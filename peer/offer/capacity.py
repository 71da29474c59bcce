"""The number of blocks that fit on this machine, and the memory that the peer offers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from ...proto.errors import OutOfMemory, UsageError
from ...routing.swarm import BlockRange
from ..config import BlockRequest

logger = logging.getLogger(__name__)

MARGIN = 0.15
"""Share of the free memory that is left for workspace, network buffers and other programs."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that each hosted block needs, and those that are needed once."""

    block_bytes: int
    kv_bytes: int
    fixed_bytes: int

    def total(self, blocks: int) -> int:
        return blocks * (self.block_bytes + self.kv_bytes) + self.fixed_bytes


@dataclass(frozen=True, slots=True)
class MemoryOffer:
    """The memory that a peer offers for weights and attention caches together, settled when it starts.

    The placement rule divides the same bytes: with fewer blocks there is more room, with more blocks less.
    """

    total_bytes: int
    block_bytes: int
    """Weights of one block."""
    kv_bytes_per_token: int
    """Attention cache of one token in one block."""

    @classmethod
    def of(cls, blocks: int, kv_tokens: int, block_bytes: int, kv_bytes_per_token: int) -> MemoryOffer:
        """The offer of a peer that starts with `blocks` blocks and `kv_tokens` tokens of cache in each."""
        return cls(blocks * (block_bytes + kv_tokens * kv_bytes_per_token), block_bytes, kv_bytes_per_token)

    def room(self, blocks: int) -> int:
        """KV tokens x blocks beside the weights of `blocks` blocks. Raises OutOfMemory below one token per block."""
        room = (self.total_bytes - blocks * self.block_bytes) // self.kv_bytes_per_token
        if room < blocks:
            raise OutOfMemory(f"the offered {gib(self.total_bytes)} have no room for {blocks} blocks and their caches")
        return room


def count_that_fits(need: MemoryNeed, free_bytes: int, num_blocks: int) -> int:
    """The number of blocks that fit into free memory less the margin. Raises OutOfMemory if not even one does."""
    usable = int(free_bytes * (1 - MARGIN)) - need.fixed_bytes
    count = min(num_blocks, usable // max(1, need.block_bytes + need.kv_bytes))
    if count < 1:
        raise OutOfMemory(
            f"one block needs {gib(need.total(1))}, of {gib(free_bytes)} free memory {gib(max(0, usable))} can be used",
            hint="Free some memory, lower --kv-tokens, or serve a smaller model.",
        )
    return count


def need_and_free(
    kv_tokens: int, replay_bytes: int, block_bytes: int, kv_bytes_per_token: int, device_free_bytes: int | None
) -> tuple[MemoryNeed, int]:
    """Return the memory that blocks with `kv_tokens` tokens of cache need, and the free memory of their device.

    `device_free_bytes`: None for a device that uses the machine's memory, where replay buffers always are.
    """
    kv_bytes = kv_bytes_per_token * kv_tokens
    free = free_memory_bytes()
    if device_free_bytes is None:
        return MemoryNeed(block_bytes, kv_bytes, replay_bytes), free
    if replay_bytes > free:
        logger.warning("there is not enough memory for a full replay buffer: %s of %s", gib(replay_bytes), gib(free))
    return MemoryNeed(block_bytes, kv_bytes, 0), device_free_bytes


def explain(need: MemoryNeed, free_bytes: int, count: int) -> str:
    """Compare the need of `count` blocks with the free memory, for the log."""
    replay = f" + {gib(need.fixed_bytes)} replay buffer" if need.fixed_bytes else ""
    return (
        f"{count} blocks x ({gib(need.block_bytes)} weights + {gib(need.kv_bytes)} attention cache)"
        f"{replay} = {gib(need.total(count))}"
        f" of {gib(free_bytes)} free, {MARGIN:.0%} of it kept as margin"
    )


def check_blocks(request: BlockRequest, num_blocks: int) -> None:
    """Raise UsageError for a range or number of blocks that the model does not have."""
    if request.blocks is not None and request.blocks.stop > num_blocks:
        raise UsageError(
            f"the model has blocks 0:{num_blocks}, --blocks {request.blocks} is outside",
            hint=f"Choose a range inside 0:{num_blocks}.",
        )
    if request.count is not None and request.count > num_blocks:
        raise UsageError(f"the model has {num_blocks} blocks, not {request.count}", hint="Ask for fewer, or for auto.")


def check_space(request: BlockRequest, num_blocks: int, check: Callable[[BlockRange], None]) -> None:
    """Raise the UsageError of `check` if it refuses every range of blocks that may become the peer's.

    For a peer that takes as many blocks as fit, single blocks are checked: their number is not known yet.
    """
    count = request.count or 1
    windows = [BlockRange(start, start + count) for start in range(num_blocks - count + 1)]
    ranges = windows if request.blocks is None else [request.blocks]
    refusal: UsageError | None = None
    for blocks in ranges:
        try:
            check(blocks)
        except UsageError as error:
            refusal = error
        else:
            return
    if refusal is not None:
        raise refusal


def free_memory_bytes() -> int:
    """Memory that this process may still take: the machine's, or less if its control group allows less.

    psutil ignores control groups.
    """
    free = int(psutil.virtual_memory().available)
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = _read_number(limit_file), _read_number(used_file)
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
    return free


def _read_number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def gib(size: int) -> str:
    """Format bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
