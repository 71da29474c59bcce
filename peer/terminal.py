"""Progress bars for what takes long at the start of a peer; plain lines where there is no terminal."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

logger = logging.getLogger(__name__)


class LoadingBars:
    """One bar per kind of work, on standard error."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}

    def update(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Show how far `what` is; may be called from any thread."""
        if what not in self._tasks:
            if total_bytes:
                logger.info("%s %.1f MiB", what, total_bytes / 2**20)
            self._tasks[what] = self._bars.add_task(what, total=total_bytes)
        self._bars.update(self._tasks[what], completed=done_bytes)

    def stop(self) -> None:
        """Remove the bars."""
        self._bars.stop()

    def __enter__(self) -> LoadingBars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
