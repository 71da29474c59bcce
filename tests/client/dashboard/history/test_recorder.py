"""Whatever the disk does, the page goes on, and says what is missing."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blockswarm.client.dashboard.history.entries import EventEntry, ProbeEntry
from blockswarm.client.dashboard.history.recorder import MOST_WAITING, Recorder
from blockswarm.client.dashboard.history.store import MAX_BYTES

NOW = 1_800_000_000.0


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(tmp_path / "h.sqlite", lambda: NOW)
    yield made
    made.close()


def written(recorder: Recorder, work: Any) -> Any:
    return asyncio.run(recorder.write(work))


def add_probe(store: Any) -> int:
    return store.add_probe(ProbeEntry("m", NOW, "", 1.0, 0.5, 3.0, 0))


def failing(code: int, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> Any:
    def work(store: object) -> None:
        error = kind("as SQLite raises it")
        error.sqlite_errorcode = code
        raise error

    return work


def test_a_disk_that_fills_is_told_until_there_is_room_again(recorder: Recorder) -> None:
    """SQLite's own error, of an entry that the file's limit has no room for."""
    large = EventEntry("m", NOW, "joined", "", "", "x" * (MAX_BYTES + 1))
    assert written(recorder, lambda store: store.add_events([large])) is None
    assert recorder.trouble.words == "the disk is full"
    assert recorder.trouble.since == NOW
    assert written(recorder, add_probe) == 1
    assert recorder.trouble is None


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR_WRITE])
def test_other_failures_are_told_too(recorder: Recorder, code: int) -> None:
    assert written(recorder, failing(code)) is None
    assert recorder.trouble.words == "the file cannot be used"


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT_INDEX])
def test_a_file_that_is_damaged_under_way_is_replaced(recorder: Recorder, tmp_path: Path, code: int) -> None:
    written(recorder, add_probe)
    assert recorder.read(failing(code, sqlite3.DatabaseError), 30.0) is None
    assert recorder.replaced == "h.sqlite.broken-1"
    assert (tmp_path / "h.sqlite.broken-1").exists()
    assert written(recorder, lambda store: store.availability("m", 0.0)) is None
    assert written(recorder, add_probe) == 1


def test_reading_does_not_wait_for_ever_and_writing_is_bounded(recorder: Recorder) -> None:
    go = threading.Event()

    async def play() -> None:
        writes = [asyncio.create_task(recorder.write(lambda store: go.wait(60))) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        assert await asyncio.to_thread(recorder.read, lambda store: store.events(None, 1), 0.01) is None
        assert await recorder.write(add_probe) is None
        assert "too slow" in recorder.trouble.words
        go.set()
        await asyncio.gather(*writes)
        assert await recorder.write(add_probe) == 1
        assert recorder.trouble is None

    asyncio.run(play())
