"""Prefixes of rows that peers keep for a client: how they are cut into pages, and how pages are named.

A page is 64 tokens of a row. Its digest depends on all tokens from the start of the row to its end, so that a run of
digests names a run of tokens. Peers take digests as names that the client gives: they cannot compute them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .. import swarm_pb2 as pb
from ..errors import RemoteProtocolError

PAGE_TOKENS = 64
DIGEST_BYTES = 16

Digests = tuple[bytes, ...]
"""The pages of one row from its start on."""


def encode_prefixes(prefixes: Iterable[Digests]) -> list[pb.Prefix]:
    """The messages of some rows' prefixes, from row 0 on."""
    return [pb.Prefix(digests=b"".join(digests)) for digests in prefixes]


def decode_prefixes(messages: Sequence[pb.Prefix], kv_tokens: int, max_rows: int) -> tuple[Digests, ...]:
    """The prefixes of a session's rows, from row 0 on. Raises RemoteProtocolError for more than it has reserved."""
    pages = sum(len(message.digests) for message in messages) / DIGEST_BYTES
    if len(messages) > max_rows or pages * PAGE_TOKENS > kv_tokens:
        raise RemoteProtocolError("the prefixes are larger than what the session reserved")
    return tuple(_cut(message.digests) for message in messages)


def _cut(digests: bytes) -> Digests:
    if len(digests) % DIGEST_BYTES:
        raise RemoteProtocolError(f"a digest of a page has {DIGEST_BYTES} bytes")
    return tuple(digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES))
