"""Progress bars for the slow parts of a peer's start; plain log lines where there is no terminal."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

logger = logging.getLogger(__name__)


class _Sized(ProgressColumn):
    """A column in bytes, empty for work that is not counted in bytes."""

    def __init__(self, column: ProgressColumn) -> None:
        self._column = column
        super().__init__()

    def render(self, task: Task) -> RenderableType:
        return "" if task.total is None else self._column.render(task)


class LoadingBars:
    """One bar per kind of work, on standard error; an endless one for work of unknown length."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            _Sized(DownloadColumn()),
            _Sized(TransferSpeedColumn()),
            _Sized(TimeRemainingColumn()),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}

    def update(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Show the progress of `what`; may be called from any thread. With `total_bytes` 0, show an endless bar until
        other work begins."""
        if what not in self._tasks:
            for task in self._bars.tasks:
                self._bars.update(task.id, visible=task.total is not None)
            logger.info(f"{what} {total_bytes / 2**20:.1f} MiB" if total_bytes else what)
            self._tasks[what] = self._bars.add_task(what, total=total_bytes or None)
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
