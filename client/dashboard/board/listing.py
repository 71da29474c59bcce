"""Selects the peers that a reader asks for: filter, order and page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlencode

from ....proto.errors import UsageError
from .peers import PeerRow

T = TypeVar("T")

ROWS_A_PAGE = 100
"""An update of 200 rows took server and browser 140 ms of CPU and more, which is too slow to feel instant."""
MAX_FILTER_CHARS = 64
MAX_PAGE = 1000

SORT_KEYS: Mapping[str, Callable[[PeerRow], Any]] = {
    "blocks": lambda row: row.blocks,
    "name": lambda row: row.name.casefold() or None,
    "peer": lambda row: row.short_id,
    "state": lambda row: row.state,
    "since": lambda row: row.state_since,
    "format": lambda row: row.numeric_format,
    "weights": lambda row: row.weights,
    "speed": lambda row: row.block_seconds,
    "kv": lambda row: row.kv_tokens_free,
    "memory": lambda row: row.memory_bytes,
    "sessions": lambda row: row.sessions,
    "queue": lambda row: row.queued,
    "rtt": lambda row: row.rtt_seconds,
    "reach": lambda row: row.relayed,
    "version": lambda row: row.version,
    "start": lambda row: row.started_at,
    "steps": lambda row: row.steps_answered,
    "device": lambda row: row.device_class.casefold() or None,
    "tokens": lambda row: row.tokens_served,
}
"""The columns that peers can be sorted by; unknown values come last in either order."""


@dataclass(frozen=True, slots=True)
class PeerQuery:
    """A reader's selection of peers."""

    text: str = ""
    """A part of the name or the id, ignoring case."""
    state: str = ""
    block: int | None = None
    """Only peers that host this block."""
    sort: str = "blocks"
    descending: bool = False
    page: int = 1

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> PeerQuery:
        """Parse the query of a URL; unknown fields are ignored. Raises UsageError for invalid values."""
        query = cls(
            text=fields.get("q", "").strip(),
            state=fields.get("state", ""),
            block=number_of(fields, "block", 0, 1 << 20),
            sort=fields.get("sort", "") or "blocks",
            descending=fields.get("order", "") == "desc",
            page=number_of(fields, "page", 1, MAX_PAGE) or 1,
        )
        if query.sort not in SORT_KEYS:
            raise UsageError(f"sort must be one of {', '.join(SORT_KEYS)}")
        if len(query.text) > MAX_FILTER_CHARS or len(query.state) > MAX_FILTER_CHARS:
            raise UsageError(f"q and state have at most {MAX_FILTER_CHARS} characters")
        return query

    def rows(self, peers: Sequence[PeerRow]) -> list[PeerRow]:
        """Return the selected peers, in order, of all pages."""
        key = SORT_KEYS[self.sort]
        wanted = [row for row in peers if self._wants(row)]
        known = [row for row in wanted if key(row) is not None]
        known.sort(key=key, reverse=self.descending)
        return known + [row for row in wanted if key(row) is None]

    def shown(self, rows: Sequence[T]) -> Sequence[T]:
        """Return the rows of this page."""
        return rows[(self.page - 1) * ROWS_A_PAGE : self.page * ROWS_A_PAGE]

    def pages(self, count: int) -> int:
        """Return how many pages `count` rows fill."""
        return max(1, -(-count // ROWS_A_PAGE))

    def sorted_by(self, sort: str) -> str:
        """Return the query string for the same list sorted by `sort`; reversed if it is sorted by it already."""
        turned = self.sort == sort and not self.descending
        return replace(self, sort=sort, descending=turned, page=1).address

    def at_page(self, page: int) -> str:
        return replace(self, page=page).address

    @property
    def address(self) -> str:
        """The query string, as `parse` reads it."""
        fields: dict[str, Any] = {"q": self.text, "state": self.state, "block": self.block, "sort": self.sort}
        fields |= {"order": "desc" if self.descending else "", "page": self.page if self.page > 1 else ""}
        return "?" + urlencode({name: value for name, value in fields.items() if value not in ("", None)})

    def _wants(self, row: PeerRow) -> bool:
        text = self.text.casefold()
        return (
            (not text or text in row.name.casefold() or text in row.peer.casefold())
            and (not self.state or row.state == self.state)
            and (self.block is None or (row.blocks is not None and row.blocks[0] <= self.block < row.blocks[1]))
        )


def number_of(fields: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    """Return a number from the query of a URL; None if it is missing. Raises UsageError."""
    text = fields.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 16 and low <= int(text) <= high):
        raise UsageError(f"{name} must be a number between {low} and {high}")
    return int(text)
