"""Peers are sorted and filtered as an address says, and an address that says nothing is refused."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from blockswarm.client.dashboard.board.listing import ROWS_A_PAGE, SORT_KEYS, PeerQuery
from blockswarm.client.dashboard.board.peers import peer_rows
from blockswarm.proto.errors import UsageError
from support.sightings import FACTS, known, sighting

PEERS = [
    known("0:4", "Ann B", kv_free=9, device="GPU", tokens=7),
    known("4:8", "bob", kv_free=30),
    known("2:3", "", kv_free=20),
]
ROWS = peer_rows(FACTS, sighting(PEERS, [known("5:6", "Silent")]), {})


def names(**fields: str) -> list[str]:
    return [row.name for row in PeerQuery.parse(fields).rows(ROWS)]


@pytest.mark.parametrize("key", SORT_KEYS)
@pytest.mark.parametrize("order", ["", "desc"])
def test_every_column_sorts_all_peers_and_unknown_values_come_last(key: str, order: str) -> None:
    rows = PeerQuery.parse({"sort": key, "order": order}).rows(ROWS)
    assert sorted(row.peer for row in rows) == sorted(row.peer for row in ROWS)
    values = [SORT_KEYS[key](row) for row in rows]
    found = [value for value in values if value is not None]
    assert values == found + [None] * (len(values) - len(found))
    assert found == sorted(found, reverse=bool(order))


def test_filters_add_up() -> None:
    assert names() == ["Ann B", "", "bob", "Silent"]
    assert names(q="NN b") == ["Ann B"]
    assert names(q=PEERS[1].record.spec.id[-6:]) == ["bob"]
    assert names(state="silent") == ["Silent"]
    assert names(block="2") == ["Ann B", ""]
    assert names(block="2", q="n B") == ["Ann B"]
    assert names(block="4", state="joining") == []


@pytest.mark.parametrize(
    "fields",
    [{"sort": "__class__"}, {"block": "-1"}, {"block": "x"}, {"page": "0"}, {"page": "9" * 30}, {"q": "x" * 65}],
)
def test_values_that_say_nothing_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        PeerQuery.parse(fields)


def test_an_address_reads_as_it_was_written() -> None:
    query = PeerQuery.parse(
        {"q": "a&b=<c>", "state": "serving", "block": "3", "sort": "kv", "order": "desc", "page": "2"}
    )
    assert PeerQuery.parse(dict(parse_qsl(query.address[1:]))) == query
    assert PeerQuery.parse(dict(parse_qsl(query.sorted_by("kv")[1:]))).descending is False
    assert PeerQuery.parse(dict(parse_qsl(query.sorted_by("name")[1:]))).sort == "name"


def test_pages_show_every_row_once() -> None:
    rows = list(range(2 * ROWS_A_PAGE + 1))
    query = PeerQuery()
    assert query.pages(len(rows)) == 3
    shown = [row for page in (1, 2, 3) for row in PeerQuery(page=page).shown(rows)]
    assert shown == rows
    assert query.pages(0) == 1
