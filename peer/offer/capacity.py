"""How many blocks fit on this machine, and which ones a joining peer should take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...proto.errors import OutOfMemory, UsageError
from ...routing.place.windows import joining_window
from ...routing.swarm import BlockRange, PeerSpec
from ..config import BlockRequest

MARGIN = 0.15
"""Share of the free memory that is left alone: workspace, network buffers, other programs."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that one hosted block needs, and those that are needed once."""

    block_bytes: int
    kv_bytes: int
    fixed_bytes: int

    def total(self, blocks: int) -> int:
        return blocks * (self.block_bytes + self.kv_bytes) + self.fixed_bytes


def count_that_fits(need: Need, free_bytes: int, num_blocks: int) -> int:
    """How many blocks fit into the free memory with the margin left. Raises OutOfMemory if not even one does."""
    usable = int(free_bytes * (1 - MARGIN)) - need.fixed_bytes
    count = min(num_blocks, usable // max(1, need.block_bytes + need.kv_bytes))
    if count < 1:
        raise OutOfMemory(
            f"one block needs {gib(need.total(1))}, of {gib(free_bytes)} free memory {gib(max(0, usable))} can be used",
            hint="Free some memory, lower --kv-tokens, or serve a smaller model.",
        )
    return count


def explain(need: Need, free_bytes: int, count: int) -> str:
    """What `count` blocks need of what there is, for the log."""
    replay = f" + {gib(need.fixed_bytes)} replay buffer" if need.fixed_bytes else ""
    return (
        f"{count} blocks x ({gib(need.block_bytes)} weights + {gib(need.kv_bytes)} attention cache)"
        f"{replay} = {gib(need.total(count))}"
        f" of {gib(free_bytes)} free, {MARGIN:.0%} of it kept as margin"
    )


def choose_blocks(request: BlockRequest, num_blocks: int, fits: int, peers: Sequence[PeerSpec]) -> BlockRange:
    """The range to host: the one asked for, or the window whose blocks have the fewest servers (`joining_window`).

    Raises UsageError for a range or number that the model does not have.
    """
    if request.blocks is not None:
        if request.blocks.stop > num_blocks:
            raise UsageError(
                f"the model has blocks 0:{num_blocks}, --blocks {request.blocks} is outside",
                hint=f"Choose a range inside 0:{num_blocks}.",
            )
        return request.blocks
    if request.count is not None and request.count > num_blocks:
        raise UsageError(f"the model has {num_blocks} blocks, not {request.count}", hint="Ask for fewer, or for auto.")
    count = request.count or fits
    return joining_window(peers, num_blocks, count)


def free_memory_bytes() -> int:
    """Memory that this process may still take: the machine's, or less if its control group allows less."""
    free = _available_in_meminfo()
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = _read_number(limit_file), _read_number(used_file)
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
    return free


def _available_in_meminfo() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Systems without /proc tell the size of their memory only; assume that half of it can be had.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _read_number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
