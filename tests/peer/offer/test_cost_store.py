"""Measurements survive a restart; nothing that is in the file can harm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from blockswarm.peer.offer.cost_store import FILE_NAME, CostStore, Measured
from blockswarm.routing.swarm import ComputeCost

CONDITIONS = Measured("ab" * 32, "float32", "cpu", 2)
COST = ComputeCost(1e-3, 2e-4, 3e-6, 4e-4, 5e-5, 6e-3)


def test_comes_back_under_the_same_conditions_only(tmp_path: Path) -> None:
    CostStore(tmp_path / "new").save(CONDITIONS, COST)
    store = CostStore(tmp_path / "new")
    assert store.load(CONDITIONS) == COST
    for other in (
        replace(CONDITIONS, threads=1),
        replace(CONDITIONS, numeric_format="int8"),
        replace(CONDITIONS, model_digest="cd" * 32),
    ):
        assert store.load(other) is None


@pytest.mark.long
def test_keeps_the_newest(tmp_path: Path) -> None:
    store = CostStore(tmp_path)
    for threads in range(1, 80):
        store.save(replace(CONDITIONS, threads=threads), COST)
    assert store.load(replace(CONDITIONS, threads=79)) == COST
    assert store.load(replace(CONDITIONS, threads=1)) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '"x"', '{"KEY": 3}', '{"KEY": {"decode_fixed": "x"}}', '{"KEY": {"decode_fixed": -1}}',
     '{"KEY": {"decode_fixed": NaN}}', '{"KEY": {"decode_fixed": 1' + "0" * 400 + "}}",
     '{"KEY": {"other": 1}}', "\x00\xff", '{"KEY": null}'],
)  # fmt: skip
def test_a_garbled_file_is_an_empty_one(tmp_path: Path, content: str) -> None:
    key = CONDITIONS.key.replace('"', "")
    (tmp_path / FILE_NAME).write_bytes(content.replace("KEY", key).encode("latin-1"))
    store = CostStore(tmp_path)
    assert store.load(CONDITIONS) is None
    store.save(CONDITIONS, COST)
    assert store.load(CONDITIONS) == COST


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    CostStore(tmp_path / "file").save(CONDITIONS, COST)
