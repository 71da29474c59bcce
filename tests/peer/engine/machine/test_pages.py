"""Weights on large pages: what is moved, what is left alone, and that nothing changes but the speed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from blockswarm.peer.engine.machine.pages import PAGE_BYTES, PART_BYTES, LargePages, use_large_pages

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE = """
import re, torch
from pathlib import Path
from blockswarm.peer.engine.machine.pages import use_large_pages

def large():
    return int(re.search(r"AnonHugePages: +(\\d+) kB", Path("/proc/self/smaps_rollup").read_text())[1]) << 10

torch.manual_seed(0)
weights = torch.randn(16 << 20)
address, total, before = weights.data_ptr(), weights.double().sum(), large()
pages = use_large_pages()
assert weights.data_ptr() == address and weights.double().sum() == total
assert pages.moved + pages.promised >= 60 << 20, pages
print(large() - before)
"""


@pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="this system gives nobody large pages"
)
def test_large_tensors_get_large_pages_and_keep_their_values() -> None:
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 56 << 20, "of 64 MiB, without the ends and what the kernel could not find room for"


SMAPS = """\
7f0000100000-7f0002100000 rw-p 00000000 00:00 0
Size:              32768 kB
Rss:               32768 kB
VmFlags: rd wr mr mw me ac sd
7f1000000000-7f1001000000 rw-p 00000000 00:00 0                          [heap]
Rss:               16384 kB
7f2000000000-7f2002000000 rw-p 00000000 00:00 0
Rss:               10000 kB
7f3000000000-7f3002000000 r--p 00000000 08:01 1234                       /models/model.safetensors
Rss:               32768 kB
7f4000000000-7f4002000000 rw-p 00000000 08:01 1234                       /models/model.safetensors
Rss:               32768 kB
7f5000000000-7f5000400000 rw-p 00000000 00:00 0
Rss:                4096 kB
7f6000000000-7f6002000000 rw-p 00000000 00:00 0                          [stack]
Rss:               32768 kB
"""


@pytest.mark.parametrize(
    ("takes", "share"),
    [
        ({14, 25}, LargePages(moved=1)),
        ({14}, LargePages(promised=1)),
        ({25}, LargePages(moved=1)),
        (set(), LargePages()),
    ],
)
def test_pieces_that_are_large_and_used_are_asked_for(tmp_path: Path, takes: set[int], share: LargePages) -> None:
    """Not files, not what is mostly empty (it would take memory), and not what is small."""
    asked: list[tuple[int, int]] = []

    def advise(address: int, size: int, advice: int) -> bool:
        asked.append((address, size))
        return advice in takes

    maps = tmp_path / "smaps"
    maps.write_text(SMAPS)
    found = use_large_pages(maps, advise)
    pieces = [(0x7F0000200000, 0x7F0002000000 - 0x7F0000200000), (0x7F1000000000, 16 << 20)]
    assert sorted(set(asked)) == pieces
    assert all(address % PAGE_BYTES == 0 and size % PAGE_BYTES == 0 for address, size in asked)
    total = sum(size for _, size in pieces)
    assert found == LargePages(share.moved * total, share.promised * total)


def test_large_pieces_are_moved_in_parts(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def advise(address: int, size: int, advice: int) -> bool:
        asked.append((address, size))
        return advice == 25 and address % (4 * PART_BYTES) != 0

    maps = tmp_path / "smaps"
    maps.write_text(f"7f0000000000-{0x7F0000000000 + 5 * PART_BYTES:x} rw-p 00000000 00:00 0\nRss: 163840 kB\n")
    assert use_large_pages(maps, advise) == LargePages(moved=3 * PART_BYTES)
    assert asked[1:] == [(0x7F0000000000 + part * PART_BYTES, PART_BYTES) for part in range(5)]


def test_where_there_is_no_list_of_pieces_nothing_is_done(tmp_path: Path) -> None:
    assert use_large_pages(tmp_path / "nothing", lambda *_: True) == LargePages()
