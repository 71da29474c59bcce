"""Names for the beginnings of texts, under which peers keep their attention caches for the next session.

A page is named by what was fed to block 0 from the start of its row to its end: not by token ids, so that embeddings
given by the caller and changed embedding tables have names of their own. The hash is keyed with a secret that only the
owner of the client's identity can derive: a peer behind the first one sees hidden states and names, and must not be
able to test guesses of the text against the names (the first one can read the text anyway).

What a peer has cached also depends on the peers before it: which blocks they compute, in which numeric format, and in
which format their outputs reach the next one. That is the format of their stream, or the one that the user has chosen
for all links, so both are part of the names.
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
    """The names that one client gives to pages of one model's inputs, by how it has links formatted."""

    def __init__(self, identity: Identity, model_digest: str, wire_format: str, token_bytes: int) -> None:
        # Ed25519 signatures are deterministic, so this one is a secret that can be had again, and is told to nobody.
        signature = identity.sign(_SECRET_TAG + f"{model_digest} {wire_format}".encode())
        self._key = blake2b(signature).digest()
        self._page_bytes = PAGE_TOKENS * token_bytes

    def chain(self, row: bytes | memoryview) -> Digests:
        """For each whole page of a row's inputs, as the client keeps them, a digest of all inputs up to its end.

        2 ms per MB.
        """
        digests: list[bytes] = []
        view = memoryview(row)
        for start in range(0, len(row) - self._page_bytes + 1, self._page_bytes):
            page = blake2b(digests[-1] if digests else b"", key=self._key)
            page.update(view[start : start + self._page_bytes])
            digests.append(page.digest())
        return tuple(digests)

    def at_peer(self, chain: Digests, formats_before: Sequence[str]) -> Digests:
        """The names of those pages at a peer; `formats_before` is `HopChoice.arithmetic` of the peers before it."""
        salt = ", ".join(formats_before).encode()
        return tuple(blake2b(digest + salt, digest_size=DIGEST_BYTES, key=self._key).digest() for digest in chain)


async def named(name: Callable[[], tuple[Digests, ...]], nbytes: int) -> tuple[Digests, ...]:
    """The names that `name` makes by hashing `nbytes` bytes: beside the loop, if that takes long."""
    return name() if nbytes <= NAMED_AT_ONCE_BYTES else await asyncio.to_thread(name)
