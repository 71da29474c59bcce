"""Reads and writes the history in a thread of its own; whatever goes wrong there, the pages keep working."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ....proto.errors import UsageError
from .store import HistoryStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_WAITING = 1000
"""The most entries that wait for the disk; further ones are dropped, which is shown."""
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True, slots=True)
class HistoryTrouble:
    """Why the last entry was not stored."""

    words: str
    since: float
    """Unix time."""


class Recorder:
    """The history of one dashboard. Any thread may read; only the loop writes."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Raises UsageError for a file that cannot be used; a damaged file is renamed."""
        self.trouble: HistoryTrouble | None = None
        self._clock = clock
        self._store = HistoryStore(path)
        self._waiting = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="history")

    @property
    def replaced(self) -> str | None:
        """The new name of a damaged file that was renamed during this run, if any."""
        return self._store.replaced.name if self._store.replaced is not None else None

    def read(self, work: Callable[[HistoryStore], T], seconds: float) -> T | None:
        """Return the result of `work`, blocking the calling thread; None if it fails or takes longer than `seconds`."""
        try:
            return self._executor.submit(self._guarded, work).result(seconds)
        except TimeoutError:
            return None

    async def write(self, work: Callable[[HistoryStore], T]) -> T | None:
        """Return the result of `work` once it has written; None if it failed or was dropped.

        It is dropped if `MOST_WAITING` entries wait already.  Only a result that is not None ends a `trouble`.
        """
        if self._waiting >= MOST_WAITING:
            self._note("the disk is too slow: entries are dropped")
            return None
        self._waiting += 1
        try:
            return await asyncio.wrap_future(self._executor.submit(self._written, work))
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Write the waiting entries, and close the file."""
        self._executor.shutdown(wait=True)
        self._store.close()

    def _written(self, work: Callable[[HistoryStore], T]) -> T | None:
        """Do the work, in the thread; a success clears `trouble`."""
        result = self._guarded(work)
        if result is not None:
            self.trouble = None
        return result

    def _guarded(self, work: Callable[[HistoryStore], T]) -> T | None:
        """Do the work, in the thread; replace a damaged file, and note any other error as `trouble`."""
        try:
            return work(self._store)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in BROKEN:
                self._replace()
            else:
                self._note("the disk is full" if code == sqlite3.SQLITE_FULL else "the file cannot be used")
                logger.warning("the history is not written: %s", error)
            return None

    def _replace(self) -> None:
        try:
            self._store.replace()
        except UsageError as error:
            self._note("the file is damaged")
            logger.warning("the history is lost: %s", error)
            return
        logger.warning("the history was damaged: it is now %s, and a new one begins", self._store.replaced)

    def _note(self, words: str) -> None:
        if self.trouble is None or self.trouble.words != words:
            self.trouble = HistoryTrouble(words, self._clock())
