"""Output for a terminal: a spinner for slow work, tables, the map of the blocks.

The functions that make text do not depend on a terminal; the spinner writes to standard error, if that is a terminal.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...proto.errors import describe_blocks
from ...routing.swarm import BlockRange

if TYPE_CHECKING:
    from rich.status import Status

_MAP_COLUMNS = 64


class Spinner:
    """Shows what the program waits for; another `say` replaces it. Made by `spinner`."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def say(self, what: str) -> None:
        """Show `what` beside a spinner."""
        if not sys.stderr.isatty():
            return
        if self._status is None:
            from rich.console import Console
            from rich.status import Status

            self._status = Status(what, console=Console(stderr=True))
            self._status.start()
        else:
            self._status.update(what)

    def share(self, what: str) -> Callable[[int, int], None]:
        """Return a callback that shows `what` and the share of it that is done."""
        return lambda done, total: self.say(f"{what}: {done / total:.0%}")

    def change(self, what: str) -> bool:
        """Show `what` instead, if anything is shown; whether that is so."""
        if self._status is None:
            return False
        self._status.update(what)
        return True

    def stop(self) -> None:
        """Remove the line; required before anything else is written."""
        if self._status is not None:
            self._status.stop()
            self._status = None


@contextmanager
def spinner(what: str) -> Iterator[Spinner]:
    """Yield a spinner that is shown during the block."""
    turning = Spinner()
    turning.say(what)
    try:
        yield turning
    finally:
        turning.stop()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table with columns two spaces apart; columns of numbers, and their headers, are right-aligned."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    to_right = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell == "" or cell[0].isdigit() or (cell[0] in "+-" and cell[1:2].isdigit())


def block_map(num_blocks: int, hosts: Sequence[tuple[str, BlockRange]]) -> str:
    """Draw which peer (by its label) hosts which blocks, a line per peer, and the blocks without a host below."""
    columns = min(num_blocks, _MAP_COLUMNS)
    edges = [num_blocks * column // columns for column in range(columns + 1)]
    width = max([len("missing"), *(len(label) for label, _ in hosts)])

    def line(label: str, blocks: Sequence[int] | BlockRange) -> str:
        inside = set(blocks)
        marks = ("#" if inside & set(range(*edges[i : i + 2])) else "." for i in range(columns))
        return f"{label:<{width}}  " + "".join(marks)

    ordered = sorted(hosts, key=lambda host: (host[1], host[0]))
    lines = [f"{'blocks':<{width}}  0" + f"{num_blocks}".rjust(columns - 1)]
    lines += [f"{line(label, blocks)}  {blocks}" for label, blocks in ordered]
    missing = missing_blocks(num_blocks, [blocks for _, blocks in hosts])
    if missing:
        lines.append(f"{line('missing', missing)}  nobody serves {describe_blocks(missing)}")
    return "\n".join(lines)


def missing_blocks(num_blocks: int, ranges: Sequence[BlockRange]) -> list[int]:
    """Return the blocks that no range has, ascending."""
    hosted = {block for blocks in ranges for block in blocks}
    return [block for block in range(num_blocks) if block not in hosted]


def harmless(text: str) -> str:
    """Replace the control characters in a model's text, except line ends and tabs, so that a terminal obeys none."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) != "Cc" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:z.1f}"
