"""Prefixes of rows that peers keep for a client: how they are cut into pages, and how pages are named.

A page is 64 tokens of a row. Its digest depends on all tokens from the start of the row to the end of the page, so that
a run of digests names a run of tokens. To peers, digests are names that the client gives: they cannot compute them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import RemoteProtocolError

PAGE_TOKENS = 64
DIGEST_BYTES = 16
MAX_PREFIX_TOKENS = 1 << 20
"""The most tokens, all rows together, whose pages a client names: the names take a quarter of a megabyte."""

Digests = tuple[bytes, ...]
"""The digests of the pages of one row, from its start on."""


def pack_digests(prefixes: Iterable[Digests]) -> tuple[bytes, ...]:
    """The prefixes of some rows in their form on the wire."""
    return tuple(b"".join(digests) for digests in prefixes)


def check_prefixes(prefixes: Sequence[bytes], kv_tokens: int, max_rows: int) -> None:
    """Raise RemoteProtocolError for packed prefixes of more rows or tokens than a session has reserved."""
    if len(prefixes) > max_rows or sum(map(len, prefixes)) // DIGEST_BYTES * PAGE_TOKENS > kv_tokens:
        raise RemoteProtocolError("the prefixes are larger than what the session reserved")


def unpack_digests(prefixes: Iterable[bytes]) -> tuple[Digests, ...]:
    """The prefixes of some rows, from row 0 on, from their form on the wire."""
    return tuple(
        tuple(packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)) for packed in prefixes
    )
