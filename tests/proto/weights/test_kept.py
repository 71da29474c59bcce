"""Measurements survive a restart; nothing that is in the file can harm."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from blockswarm.proto.weights.kept import KeptMeasurements, machine_and_versions


def test_a_value_comes_back_under_its_own_conditions_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "kept.json"
    KeptMeasurements(path).save("two threads", {"seconds": 0.25})
    KeptMeasurements(path).save("one thread", [1, 2])
    assert KeptMeasurements(path).load("two threads") == {"seconds": 0.25}
    assert KeptMeasurements(path).load("one thread") == [1, 2]
    assert KeptMeasurements(path).load("three threads") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00\xff", b"[" * 100_000, b'"' + b"x" * (2 << 20) + b'"'])
def test_a_garbled_file_is_ignored_with_a_word(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(content)
    kept = KeptMeasurements(path)
    with caplog.at_level(logging.INFO):
        assert kept.load("conditions") is None
    assert "not readable" in caplog.text
    kept.save("conditions", 1)
    assert kept.load("conditions") == 1


def test_the_newest_are_kept(tmp_path: Path) -> None:
    kept = KeptMeasurements(tmp_path / "kept.json")
    for number in range(70):
        kept.save(str(number), number)
    assert [kept.load(str(number)) for number in (5, 6, 69)] == [None, 6, 69]


def test_the_conditions_name_what_computes() -> None:
    found = machine_and_versions("torch", "no-such-package")
    assert "CPUs" in found
    assert "torch 2" in found
    assert "no no-such-package" in found
    assert found == machine_and_versions("torch", "no-such-package")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "forms.json").mkdir()
    KeptMeasurements(tmp_path / "forms.json").save("a machine", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["forms.json"]
