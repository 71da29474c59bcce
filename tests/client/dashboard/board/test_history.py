"""The history of a span, and what is said where it cannot be read."""

from __future__ import annotations

import pytest
from blockswarm.client.dashboard.board.history import SPANS, history_board, parse_span
from blockswarm.client.dashboard.history.entries import Bucket
from blockswarm.proto.errors import UsageError


def test_spans() -> None:
    assert parse_span("") is SPANS["24h"]
    assert [span.buckets * span.bucket_seconds / 86400 for span in SPANS.values()] == [1, 7, 30]
    with pytest.raises(UsageError):
        parse_span("1y")


def test_sums_and_troubles() -> None:
    buckets = [
        Bucket(0.0, 3, 2, 1.0, 1.0, 0, 5.0),
        Bucket(900.0, 0, 0, None, None, 0, None),
        Bucket(1.0, 4, 4, 1, 1, 0, 5),
    ]
    board = history_board("m", SPANS["7d"], buckets, [], None, None)
    assert (board.probes, board.good_probes, board.trouble) == (7, 6, None)
    unread = history_board("m", SPANS["7d"], None, None, None, None)
    assert (unread.buckets, unread.probes, unread.good_probes, unread.events) == (None, None, None, None)
    assert (unread.trouble, unread.trouble_since) == ("the history cannot be read", None)
    assert history_board("m", SPANS["7d"], buckets, None, None, None).trouble == "the history cannot be read"
    assert history_board("m", SPANS["7d"], None, None, ("the disk is full", 5.0), None).trouble_since == 5.0
