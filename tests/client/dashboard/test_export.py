"""An export is a folder of files that need no server: every link leads to a file of it, and no address is in any."""

from __future__ import annotations

import asyncio
import json
import re
from html import unescape
from pathlib import Path

import pytest
from blockswarm.client.dashboard.board.listing import ROWS_A_PAGE
from blockswarm.client.dashboard.export import write_files
from blockswarm.client.dashboard.watch.sighting import Failure, ModelState
from blockswarm.proto.errors import PeerUnavailable, UsageError
from support.sightings import FACTS, HOST, NOW, app_of, known, seen, site_of


def exported(folder: Path, peers: int) -> list[Path]:
    site = site_of(seen(*(known(f"{index % 8}:{index % 8 + 1}", f"<peer {index}>") for index in range(peers))))
    count = asyncio.run(write_files(app_of(site), site.keeper.snapshot, folder))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == count
    return files


def test_every_link_leads_to_a_file_of_the_export(tmp_path: Path) -> None:
    files = exported(tmp_path, ROWS_A_PAGE + 1)
    pages = [path for path in files if path.suffix == ".html"]
    assert {path.name for path in pages} >= {"index.html", "peers.html", "peers-2.html", "history-7d.html", "join.html"}
    shown = "".join(page.read_text() for page in pages if page.name.startswith("peers"))
    assert all(f"&lt;peer {index}&gt;" in shown for index in range(ROWS_A_PAGE + 1))
    for page in pages:
        text = page.read_text()
        assert "data-version" not in text, "the script would look for a stream"
        for target in re.findall(r'(?:href|src|action)="([^"]*)"', text):
            path = unescape(target).partition("#")[0].partition("?")[0]
            assert path.startswith("data:") or (page.parent / path).exists(), (page, target)
    for path in files:
        assert HOST not in path.read_text()
    assert json.loads((tmp_path / "api/v1/status.json").read_text())["models"][0]["name"] == FACTS.name


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        exported(tmp_path / "file", 1)


def test_an_answer_that_fails_is_no_file_and_is_told(tmp_path: Path) -> None:
    """Its error was written in place of the data, and the program ended as if all was well."""
    site = site_of(ModelState(FACTS, failure=Failure("peer-unavailable", NOW)))
    with pytest.raises(PeerUnavailable, match=r"addresses have no answer now, .*/peers\.csv"):
        asyncio.run(write_files(app_of(site), site.keeper.snapshot, tmp_path))
    files = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert "index.html" in files
    assert not any(name.endswith("peers.csv") for name in files)
    assert not any(
        '"error"' in text for name, text in files.items() if name.endswith(".json") and "openapi" not in name
    )
