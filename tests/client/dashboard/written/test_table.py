"""The peers as a spreadsheet reads them."""

from __future__ import annotations

import csv
import io

import pytest
from blockswarm.client.dashboard.board.peers import peer_rows
from blockswarm.client.dashboard.written.table import peers_csv
from support.sightings import FACTS, HOST, NOW, known, sighting


def read(*names: str) -> list[dict[str, str]]:
    peers = [known(f"{index}:{index + 1}", name) for index, name in enumerate(names)]
    text = peers_csv(peer_rows(FACTS, sighting(peers), {}), NOW).decode("utf-8-sig")
    assert HOST not in text
    return list(csv.DictReader(io.StringIO(text)))


def test_every_field_comes_back() -> None:
    (line,) = read('a "quoted", name')
    assert line["name"] == 'a "quoted", name'
    assert line["blocks"] == "0:1"
    assert line["moving_to"] == ""
    assert line["kv_tokens_free"] == "16384"
    assert float(line["seen_at"]) == NOW


@pytest.mark.parametrize("sign", "=+-@")
def test_names_are_no_formulas(sign: str) -> None:
    """A spreadsheet would run `=HYPERLINK(...)` of a stranger."""
    (line,) = read(f"{sign}HYPERLINK(1)")
    assert line["name"] == f"'{sign}HYPERLINK(1)"
