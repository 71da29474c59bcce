"""The file of the history: what comes back, that it stays small, and that a damaged one ends nothing."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from blockswarm.client.dashboard.history.entries import CountEntry, EventEntry, ProbeEntry
from blockswarm.client.dashboard.history.store import BROKEN_KEPT, HistoryStore
from blockswarm.proto.errors import UsageError

NOW = 1_800_000_000.0


def probe(at: float, code: str = "", speed: float = 5.0, model: str = "m", repairs: int = 0) -> ProbeEntry:
    return ProbeEntry(model, at, code, 1.0, 0.5, None if code else speed, repairs)


def count(at: float, serving: int, model: str = "m") -> CountEntry:
    return CountEntry(model, at, serving, 1, 2, 3, 4, 5)


def event(at: float = NOW, model: str = "m", detail: str = "") -> EventEntry:
    return EventEntry(model, at, "joined", "p", "<name>", detail)


@contextmanager
def opened(path: Path, **options: int) -> Iterator[HistoryStore]:
    with closing(HistoryStore(path, **options)) as store:
        yield store


def test_entries_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "h.sqlite"
    with opened(path) as store:
        store.add_probe(probe(NOW))
        store.add_count(count(NOW, 7))
        first = store.add_events([event(detail="a"), event(detail="b")])
    with opened(path) as store:
        assert store.replaced is None
        assert store.availability("m", NOW - 1).probes == 1
        assert store.buckets("m", NOW, 1, 900.0)[0].peers == 7
        assert store.events("m", 10) == first[::-1]
        (later,) = store.add_events([event(detail="c")])
        assert later.number > first[-1].number


def test_buckets_are_what_brute_force_says(tmp_path: Path) -> None:
    rng = random.Random(5)
    probes = [
        probe(
            NOW - rng.uniform(0, 4000), rng.choice(["", "", "no-chain"]), rng.uniform(1, 9), repairs=rng.randint(0, 2)
        )
        for _ in range(40)
    ]
    counts = [count(NOW - rng.uniform(0, 4000), rng.randint(0, 9)) for _ in range(20)]
    with opened(tmp_path / "h.sqlite") as store:
        for entry in probes:
            store.add_probe(entry)
        for entry in counts:
            store.add_count(entry)
        store.add_probe(probe(NOW - 5, model="other", speed=1000.0))
        found = store.buckets("m", NOW, 10, 300.0)
        share = store.availability("m", NOW - 1000)
    assert [bucket.begins_at for bucket in found] == [(NOW // 300 - 9 + index) * 300 for index in range(10)]
    for bucket in found:
        inside = [p for p in probes if bucket.begins_at <= p.at_seconds < bucket.begins_at + 300]
        good = [p for p in inside if not p.code]
        serving = [c.serving for c in counts if bucket.begins_at <= c.at_seconds < bucket.begins_at + 300]
        assert (bucket.probes, bucket.good_probes) == (len(inside), len(good))
        assert bucket.repairs == sum(p.repairs for p in inside)
        assert bucket.availability == (len(good) / len(inside) if inside else None)
        for mean, values in (
            (bucket.tokens_per_second, [p.tokens_per_second for p in good]),
            (bucket.first_token_seconds, [p.first_token_seconds for p in good]),
            (bucket.peers, serving),
        ):
            assert mean is None if not values else math.isclose(mean, sum(values) / len(values))
    recent = [p for p in probes if p.at_seconds >= NOW - 1000]
    assert (share.probes, share.good) == (len(recent), sum(not p.code for p in recent))
    assert share.since == min(p.at_seconds for p in recent)


def test_events_come_newest_first_and_in_pages(tmp_path: Path) -> None:
    with opened(tmp_path / "h.sqlite") as store:
        numbered = store.add_events([event(detail=str(index), model="ab"[index % 2]) for index in range(10)])
        assert store.events(None, 3) == numbered[:-4:-1]
        assert store.events(None, 3, before=numbered[5].number) == numbered[4:1:-1]
        assert [found.event.model for found in store.events("a", 10)] == ["a"] * 5
        assert store.availability("a", 0.0) is None


def test_the_newest_event_of_some_kinds(tmp_path: Path) -> None:
    with opened(tmp_path / "h.sqlite") as store:
        kinds = ["unseen", "seen", "joined", "unseen", "left"]
        entries = [replace(event(NOW + index), kind=kind) for index, kind in enumerate(kinds)]
        store.add_events([*entries, replace(event(NOW + 9, model="other"), kind="seen")])
        assert store.last_event("m", ("seen", "unseen")) == entries[3]
        assert store.last_event("m", ("seen",)) == entries[1]
        assert store.last_event("m", ("moved",)) is None


def test_old_entries_go(tmp_path: Path) -> None:
    with opened(tmp_path / "h.sqlite") as store:
        for at in (NOW - 1, NOW + 60):
            store.add_probe(probe(at))
            store.add_count(count(at, 1))
            store.add_events([event(at)])
        assert store.prune(NOW) == 3
        assert store.availability("m", 0.0).probes == 1
        assert len(store.events("m", 10)) == 1


def test_the_file_never_grows_beyond_its_limit_and_the_newest_entries_stay(tmp_path: Path) -> None:
    path, limit = tmp_path / "h.sqlite", 40 * 4096
    with opened(path, max_bytes=limit) as store:
        for index in range(30):
            store.add_events([event(NOW + index, detail="x" * 1000)] * 10)
            store.add_probe(probe(NOW + index))
        assert store.size_bytes <= limit
        assert path.stat().st_size <= limit
        assert store.events("m", 1)[0].event.at_seconds == NOW + 29
        assert len(store.events("m", 1000)) < 200
        with pytest.raises(sqlite3.OperationalError):
            store.add_events([event(detail="x" * limit)])
        store.add_probe(probe(NOW + 30))


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def torn(path: Path) -> None:
    """A file whose middle was overwritten."""
    with opened(path) as store:
        store.add_events([event(detail="x" * 500) for _ in range(200)])
    content = bytearray(path.read_bytes())
    content[8192:40960] = random.Random(1).randbytes(40960 - 8192)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [garbage, torn])
def test_a_damaged_file_is_renamed_and_a_new_one_begun(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "h.sqlite"
    for number in range(1, BROKEN_KEPT + 3):
        damage(path)  # type: ignore[operator]
        content = path.read_bytes()
        with opened(path) as store:
            assert store.replaced == tmp_path / f"h.sqlite.broken-{number}"
            assert store.replaced.read_bytes() == content
            assert store.events(None, 1) == []
            store.add_probe(probe(NOW))
        path.unlink()
    kept = sorted(each.name for each in tmp_path.glob("*.broken-*"))
    assert kept == [f"h.sqlite.broken-{number}" for number in range(3, BROKEN_KEPT + 3)]


def test_the_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE mine (x)")
        db.commit()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="another program"):
        HistoryStore(path)
    assert path.read_bytes() == before


def test_the_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    with opened(path):
        pass
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UsageError, match="newer version"):
        HistoryStore(path)


def test_two_dashboards_do_not_share_a_file(tmp_path: Path) -> None:
    with opened(tmp_path / "h.sqlite") as store:
        with pytest.raises(UsageError, match="another dashboard"):
            HistoryStore(tmp_path / "h.sqlite")
        store.add_probe(probe(NOW))
    with opened(tmp_path / "h.sqlite") as store:
        assert store.availability("m", 0.0).probes == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        HistoryStore(tmp_path / "file" / "h.sqlite")
    with pytest.raises(UsageError):
        HistoryStore(tmp_path)
