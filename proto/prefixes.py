"""Prefixes of rows that peers keep for a client: how they are cut into pages, and what names a page.

A page is 64 tokens of a row. Its digest depends on all tokens from the start of the row to its end, so that a run of
digests names a run of tokens, and equal digests mean equal attention caches.
"""

from __future__ import annotations

PAGE_TOKENS = 64
DIGEST_BYTES = 16
