"""The SQLite file: its tables, and the bounds on its size and age.

The size is bounded by SQLite itself (`max_page_count`): when it is reached, the oldest tenth of every table is deleted.
A damaged file is renamed, and a new one is begun.  Not thread-safe: `recorder.py` uses it from one thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar

from ....proto.errors import UsageError
from .entries import Availability, Bucket, CountEntry, EventEntry, NumberedEvent, ProbeEntry

APPLICATION_ID = 0x626C6B64
"""Identifies the file as this program's, in SQLite's header."""
SCHEMA_VERSION = 1
MAX_BYTES = 64 << 20
PAGE_BYTES = 4096
MOST_EVENTS = 100_000
"""The most events over all models; the oldest beyond it are deleted."""
BROKEN_KEPT = 3
"""How many damaged files are kept beside the new one; older ones are deleted."""

SCHEMA = """
CREATE TABLE probes (
    model TEXT NOT NULL, at_seconds REAL NOT NULL, code TEXT NOT NULL, seconds REAL NOT NULL,
    first_token_seconds REAL, tokens_per_second REAL, repairs INTEGER NOT NULL
);
CREATE INDEX probes_by_time ON probes (model, at_seconds);
CREATE TABLE counts (
    model TEXT NOT NULL, at_seconds REAL NOT NULL, serving INTEGER NOT NULL, others INTEGER NOT NULL,
    silent INTEGER NOT NULL, missing_blocks INTEGER NOT NULL, weakest_servers INTEGER NOT NULL,
    free_sessions INTEGER NOT NULL
);
CREATE INDEX counts_by_time ON counts (model, at_seconds);
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, at_seconds REAL NOT NULL, kind TEXT NOT NULL,
    peer TEXT NOT NULL, name TEXT NOT NULL, detail TEXT NOT NULL
);
"""
TABLES = ("probes", "counts", "events")

T = TypeVar("T")


class HistoryStore:
    """One open file."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        """Open or create the file. Raises UsageError if it is in use, not ours, too new, or cannot be created."""
        self.path = path
        self.replaced: Path | None = None
        """The renamed damaged file that this one has replaced, if any."""
        self._max_pages = max_bytes // PAGE_BYTES
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path.parent} cannot be made: {error.strerror}", hint="Choose another --data.") from None
        self._db = self._open_or_replace()

    def close(self) -> None:
        self._db.close()

    def replace(self) -> None:
        """Rename the file as damaged and begin a new one. Raises UsageError as the constructor does."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self.replaced = _put_aside(self.path)
        self._db = self._open()

    # --- writing: all raise sqlite3.Error ---

    def add_probe(self, entry: ProbeEntry) -> int:
        """Add a probe and return the number of its row; likewise for `add_count`."""
        return self._insert("probes", entry)

    def add_count(self, entry: CountEntry) -> int:
        return self._insert("counts", entry)

    def add_events(self, entries: Sequence[EventEntry]) -> list[NumberedEvent]:
        """Add events and return them with their numbers."""

        def add() -> list[NumberedEvent]:
            with self._db:
                return [NumberedEvent(self._insert_into("events", entry), entry) for entry in entries]

        return self._with_room(add)

    def prune(self, oldest: float) -> int:
        """Delete entries older than `oldest` (Unix seconds), and events beyond `MOST_EVENTS`; return how many."""
        before = self._db.total_changes
        with self._db:
            for table in TABLES:
                self._db.execute(f"DELETE FROM {table} WHERE at_seconds < ?", (oldest,))
            newest = self._db.execute("SELECT MAX(number) FROM events").fetchone()[0] or 0
            self._db.execute("DELETE FROM events WHERE number <= ?", (newest - MOST_EVENTS,))
        return self._db.total_changes - before

    # --- reading: all raise sqlite3.Error ---

    def availability(self, model: str, since: float) -> Availability | None:
        """Return the availability since a Unix time; None if there was no probe."""
        good, probes, first = self._db.execute(
            "SELECT TOTAL(code = ''), COUNT(*), MIN(at_seconds) FROM probes WHERE model = ? AND at_seconds >= ?",
            (model, since),
        ).fetchone()
        return Availability(int(good), probes, first) if probes else None

    def buckets(self, model: str, until: float, count: int, bucket_seconds: float) -> list[Bucket]:
        """Return the last `count` buckets up to `until`, the oldest first; buckets without entries are included."""
        first = int(until // bucket_seconds) - count + 1
        since = first * bucket_seconds
        slot = "CAST(at_seconds / :size AS INTEGER)"
        where = "WHERE model = :model AND at_seconds >= :since AND at_seconds <= :until GROUP BY 1"
        values = {"size": bucket_seconds, "model": model, "since": since, "until": until}
        probes = {
            row[0]: row[1:]
            for row in self._db.execute(
                f"SELECT {slot}, COUNT(*), TOTAL(code = ''), AVG(CASE WHEN code = '' THEN tokens_per_second END),"
                f" AVG(CASE WHEN code = '' THEN first_token_seconds END), SUM(repairs) FROM probes {where}",
                values,
            )
        }
        peers = dict(self._db.execute(f"SELECT {slot}, AVG(serving) FROM counts {where}", values).fetchall())
        made = []
        for number in range(first, first + count):
            total, good, speed, wait, repairs = probes.get(number, (0, 0, None, None, 0))
            made.append(Bucket(number * bucket_seconds, total, int(good), speed, wait, int(repairs), peers.get(number)))
        return made

    def events(self, model: str | None, limit: int, before: int | None = None) -> list[NumberedEvent]:
        """Return the newest events first, of one model or all, with numbers below `before`."""
        rows = self._db.execute(
            "SELECT number, model, at_seconds, kind, peer, name, detail FROM events"
            " WHERE (:model IS NULL OR model = :model) AND (:before IS NULL OR number < :before)"
            " ORDER BY number DESC LIMIT :limit",
            {"model": model, "before": before, "limit": limit},
        )
        return [NumberedEvent(row[0], EventEntry(*row[1:])) for row in rows]

    def last_event(self, model: str, kinds: Collection[str]) -> EventEntry | None:
        """Return the newest event of a model that is of one of these kinds."""
        row = self._db.execute(
            "SELECT model, at_seconds, kind, peer, name, detail FROM events"
            f" WHERE model = ? AND kind IN ({', '.join('?' * len(kinds))}) ORDER BY number DESC LIMIT 1",
            (model, *kinds),
        ).fetchone()
        return EventEntry(*row) if row is not None else None

    @property
    def size_bytes(self) -> int:
        return int(self._db.execute("PRAGMA page_count").fetchone()[0]) * PAGE_BYTES

    # --- inside ---

    def _insert(self, table: str, entry: Any) -> int:
        def add() -> int:
            with self._db:
                return self._insert_into(table, entry)

        return self._with_room(add)

    def _insert_into(self, table: str, entry: Any) -> int:
        names = [field.name for field in fields(entry)]
        places = ", ".join("?" * len(names))
        done = self._db.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places})", astuple(entry))
        return done.lastrowid or 0

    def _with_room(self, work: Callable[[], T]) -> T:
        """Do the work; if the file is full, delete the oldest entries and do it again."""
        try:
            return work()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
                raise
        with self._db:
            for table in TABLES:
                self._db.execute(
                    f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} ORDER BY rowid"
                    f" LIMIT (SELECT COUNT(*) / 10 + 1 FROM {table}))"
                )
        return work()

    def _open_or_replace(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.DatabaseError:
            self.replaced = _put_aside(self.path)
        return self._open()

    def _open(self) -> sqlite3.Connection:
        """Open the file. Raises DatabaseError if it is damaged, UsageError for what the operator must fix."""
        try:
            db = sqlite3.connect(self.path, timeout=0.5, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise UsageError(f"{self.path} cannot be opened: {error}", hint="Choose another --data.") from None
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = TRUNCATE")
            db.execute("PRAGMA synchronous = NORMAL")
            owner, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
            is_new = not db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
            if not is_new and owner != APPLICATION_ID:
                raise UsageError(f"{self.path} belongs to another program", hint="Choose another --data.")
            if version > SCHEMA_VERSION:
                raise UsageError(f"{self.path} was written by a newer version", hint="Choose another --data.")
            if is_new:
                db.executescript(
                    f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
                    f"{SCHEMA} COMMIT;"
                )
            elif db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("the file is damaged")
            db.execute("BEGIN EXCLUSIVE")  # takes the exclusive lock, which is kept until the file is closed
            db.execute("COMMIT")
            db.execute(f"PRAGMA max_page_count = {self._max_pages}")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                why = f"{self.path} is used by another dashboard"
            else:
                why = f"{self.path} cannot be used: {error}"
            raise UsageError(why, hint="Choose another --data, or end the other program.") from None


def _put_aside(path: Path) -> Path:
    """Rename a damaged file, delete the oldest earlier ones, and return the new path. Raises UsageError."""
    taken = [
        (int(number), other)
        for other in path.parent.glob(f"{path.name}.broken-*")
        if (number := other.name.rpartition("-")[2]).isdecimal()
    ]
    target = path.with_name(f"{path.name}.broken-{max((number for number, _ in taken), default=0) + 1}")
    try:
        path.rename(target)
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        for _, other in sorted(taken)[: max(0, len(taken) + 1 - BROKEN_KEPT)]:
            other.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path} is damaged and cannot be renamed: {error}", hint="Choose another --data.") from None
    return target
