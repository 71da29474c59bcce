"""The peers as a file of comma-separated values, for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..board.peers import PeerRow
from .words import blocks_words

FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins with one of these is a formula to a spreadsheet."""


def peers_csv(peers: Sequence[PeerRow], seen_at: float) -> bytes:
    """A line for each peer under a line of names; in UTF-8, with a mark by which spreadsheets know that it is.

    `seen_at`: Unix time of the look that found them so; each line ends with it.
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
            return f"'{value}"  # a stranger's name is text
        case _:
            return value
