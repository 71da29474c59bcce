"""Names for prefixes of texts, under which peers keep attention caches for later sessions.

A page is named by a hash of everything that was fed to block 0 from the start of its row to the page's end, not by
token ids, so that embeddings given by the caller and changed embedding tables get different names. The hash is keyed
with a secret that only the owner of the client's identity can derive: peers after the first one see hidden states and
names, and must not be able to test guesses of the text against the names (the first one can read the text anyway).

A peer's cache also depends on the peers before it: their blocks, their numeric formats, and the formats in which their
outputs are sent. These are their stream formats, or the one format that the user has chosen for all links, so both are
part of the names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import blake2b

from ...proto.identity import Identity
from ...proto.wire.prefixes import DIGEST_BYTES, PAGE_TOKENS, Digests

NAMED_AT_ONCE_BYTES = 1 << 19
_SECRET_TAG = b"blockswarm-prefix-secret-1\0"


class PageNames:
    """Names pages of one client's inputs to one model, for one choice of wire format."""

    def __init__(self, identity: Identity, model_digest: str, wire_format: str, token_bytes: int) -> None:
        # Ed25519 signatures are deterministic, so this one is a reproducible secret as long as it is never sent.
        signature = identity.sign(_SECRET_TAG + f"{model_digest} {wire_format}".encode())
        self._key = blake2b(signature).digest()
        self._page_bytes = PAGE_TOKENS * token_bytes

    def chain(self, row: bytes | memoryview) -> Digests:
        """Return for each whole page of a row a digest of all inputs up to the page's end. Takes 2 ms per MB.

        `row` has the row's inputs in the client's own format.
        """
        digests: list[bytes] = []
        view = memoryview(row)
        for start in range(0, len(row) - self._page_bytes + 1, self._page_bytes):
            page = blake2b(digests[-1] if digests else b"", key=self._key)
            page.update(view[start : start + self._page_bytes])
            digests.append(page.digest())
        return tuple(digests)

    def at_peer(self, chain: Digests, formats_before: Sequence[str]) -> Digests:
        """Return the pages' names at a peer; `formats_before` is `HopChoice.arithmetic` of each peer before it."""
        salt = ", ".join(formats_before).encode()
        return tuple(blake2b(digest + salt, digest_size=DIGEST_BYTES, key=self._key).digest() for digest in chain)


async def named(name: Callable[[], tuple[Digests, ...]], nbytes: int) -> tuple[Digests, ...]:
    """Return what `name` makes by hashing `nbytes` bytes; in a thread if that would hold up the loop."""
    return name() if nbytes <= NAMED_AT_ONCE_BYTES else await asyncio.to_thread(name)
