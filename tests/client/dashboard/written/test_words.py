"""Numbers in words."""

from __future__ import annotations

import pytest
from blockswarm.client.dashboard.written import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0, "0 s"), (59.6, "60 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_spans(seconds: float, text: str) -> None:
    assert words.span_words(seconds) == text


def test_times_sizes_and_counts() -> None:
    assert words.clock_words(1_800_000_000) == "2027-01-15 08:00:00 UTC"
    assert words.iso_time(1_800_000_000) == "2027-01-15T08:00:00Z"
    assert words.bytes_words(1.5 * 2**30) == "1.5 GiB"
    assert words.bytes_words(12) == "12 B"
    assert words.count_words(1, "peer") == "1 peer"
    assert words.count_words(1200, "peer") == "1,200 peers"
    assert words.blocks_words((2, 4)) == "2:4"
    assert words.blocks_words(None) == "none"
