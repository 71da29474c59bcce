"""The peers as CSV, for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..board.peers import PeerRow
from .words import blocks_words

FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""Spreadsheets take a cell that begins with one of these for a formula."""


def peers_csv(peers: Sequence[PeerRow], seen_at: float) -> bytes:
    """Return a header and a line per peer, in UTF-8 with a byte order mark, by which spreadsheets recognise it.

    `seen_at`: Unix time of the look that found them so; the last column.
    """
    out = io.StringIO()
    writer = csv.writer(out)
    names = [field.name for field in fields(PeerRow)]
    writer.writerow([*names, "seen_at"])
    writer.writerows([*(_cell(getattr(peer, name)) for name in names), seen_at] for peer in peers)
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def _cell(value: Any) -> Any:
    match value:
        case None:
            return ""
        case tuple():
            return blocks_words(value)
        case str() if value.startswith(FORMULA_SIGNS):
            return f"'{value}"  # untrusted text must not become a formula
        case _:
            return value
