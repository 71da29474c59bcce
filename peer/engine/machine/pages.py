"""Large pages for the weights: every token reads every weight, and large pages save the processor address look-ups.

Measured, matrices of `small` in prepacked float32, one row, one thread, interleaved: 1.18 times as fast as on pages of
4 KiB (quartiles 1.07 and 1.22) while other work shared the machine; a whole engine gained nothing on a quiet machine,
and 5 to 12 % on another, shared one.
Linux gives large pages only to memory that asks for them, and oneDNN and fbgemm do not ask for theirs.
"""

from __future__ import annotations

import ctypes
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

PAGE_BYTES = 2 << 20
PART_BYTES = 16 * PAGE_BYTES
"""Bytes moved at a time: others wait for memory meanwhile."""
FEWEST_BYTES = 4 * PAGE_BYTES
"""Smaller pieces of memory are left alone: they gain nothing that can be measured."""
LEAST_USED = 0.9
"""The share of a piece that has to be in use, because moving makes all of it resident."""

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
"""Advice to Linux: MADV_COLLAPSE acts at once (6.1 and later); after MADV_HUGEPAGE the kernel acts later."""
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p [0-9a-f]+ \S+ 0 *(\[heap\])?$")
_RESIDENT = re.compile(r"Rss: +(\d+) kB$")

Advise = Callable[[int, int, int], bool]
"""(address, bytes, advice) -> whether the kernel took it."""


@dataclass(frozen=True, slots=True)
class LargePages:
    """The bytes that the kernel puts on large pages."""

    moved: int = 0
    """They are there now."""
    promised: int = 0
    """It took the advice to move them later, when it comes to it."""


def return_freed_memory() -> None:
    """Have glibc return freed memory: its heap keeps it if large pieces come and go between small ones that stay.

    Without this, packing weights was measured to take four times the bytes of the packed matrices.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def use_large_pages(maps: Path = Path("/proc/self/smaps"), advise: Advise | None = None) -> LargePages:
    """Move the large pieces of this process's own memory to large pages; return the bytes that were or will be.

    Call it when weights have been loaded and packed. Contents and addresses stay, so other threads may compute with
    them meanwhile. Takes about 3 s of CPU per GiB moved. Changes nothing if the system refuses, or is not Linux.
    """
    advise = advise or _system_advise()
    if advise is None:
        return LargePages()
    try:
        pieces = list(_pieces(maps.read_text()))
    except OSError:
        return LargePages()
    moved = promised = 0
    for start, stop in pieces:
        advised = advise(start, stop - start, _MADV_HUGEPAGE)
        for part in range(start, stop, PART_BYTES):
            size = min(PART_BYTES, stop - part)
            if advise(part, size, _MADV_COLLAPSE):
                moved += size
            elif advised:
                promised += size
    logger.debug("%d MiB of weights and caches are on large pages, %d MiB may follow", moved >> 20, promised >> 20)
    return LargePages(moved, promised)


def use_large_pages_soon() -> threading.Thread:
    """Run `use_large_pages` in a daemon thread, which delays neither the caller nor the end of the program."""
    thread = threading.Thread(target=use_large_pages, name="large pages", daemon=True)
    thread.start()
    return thread


def _pieces(smaps: str) -> Iterator[tuple[int, int]]:
    """The anonymous, writable mappings that are large and in use, cut to borders of large pages: (start, stop)."""
    start = stop = 0
    for line in smaps.splitlines():
        if head := _HEAD.match(line):
            start, stop = int(head[1], 16), int(head[2], 16)
        elif line[:1] in "0123456789abcdef":
            start = stop = 0  # the head of a piece of another kind
        elif resident := _RESIDENT.match(line):
            used = int(resident[1]) << 10
            if used >= FEWEST_BYTES and used >= LEAST_USED * (stop - start) > 0:
                yield -(-start // PAGE_BYTES) * PAGE_BYTES, stop // PAGE_BYTES * PAGE_BYTES


def _system_advise() -> Advise | None:
    """Return the system's `madvise`; None if it has none that is known here."""
    if sys.platform != "linux":
        return None
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return None
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return lambda address, size, advice: madvise(address, size, advice) == 0
