"""One session's part of the pool: its reservation, what it may begin with, and what it leaves for later sessions."""

from __future__ import annotations

from collections.abc import Sequence

from ....proto.errors import RemoteProtocolError
from ....proto.wire.prefixes import PAGE_TOKENS, Digests
from ....routing.swarm import BlockRange, PeerId
from .pool import KvPool
from .row import KvUsage, RowKV


class SessionMemory:
    """Pins the held pages of `prefixes` (per row) until `unpin`; made in any thread, used in the engine's.

    It takes `nbytes` of the pool from `reserve` to `close`.
    """

    def __init__(
        self, pool: KvPool, client: PeerId, blocks: BlockRange, nbytes: int, prefixes: Sequence[Digests] = ()
    ) -> None:
        self._pool = pool
        self._client = client
        self._nbytes = nbytes
        self._reserved = False
        self._pinned = tuple(pool.prefixes.pin(client, digests, blocks) for digests in prefixes)
        self.held_tokens = tuple(pinned.tokens for pinned in self._pinned)
        """Per prefix, the first tokens that a row may begin with."""

    @property
    def usage(self) -> KvUsage:
        """The counter for the bytes of the session's rows."""
        return self._pool.usage

    def reserve(self) -> None:
        """Take the reservation, before the first row; pages of earlier sessions give way. Idempotent."""
        if not self._reserved:
            self._reserved = True
            self._pool.reserve(self._nbytes)

    def adopt(self, row: RowKV, index: int, tokens: int) -> None:
        """Have row `index`, which may have adopted fewer before, begin with `tokens` tokens of its prefix.

        Raises RemoteProtocolError if fewer are held. O(new tokens).
        """
        if tokens == 0:
            return
        held = self._pinned[index].tokens if index < len(self._pinned) else 0
        if tokens > held:
            raise RemoteProtocolError(f"row {index} cannot begin with {tokens} tokens: {held} are held")
        pages = self._pinned[index].pages(-(-tokens // PAGE_TOKENS) * PAGE_TOKENS)
        row.append(pages[row.length // PAGE_TOKENS :], room_tokens=held)
        row.truncate(tokens)

    def unpin(self) -> None:
        """Release the pinned pages: no row will begin with held tokens any more. Idempotent."""
        pinned, self._pinned = self._pinned, ()
        for prefix in pinned:
            prefix.release()

    def keep(self, row: RowKV, digests: Digests) -> None:
        """Keep the first pages of a row for later sessions. Raises RemoteProtocolError if it is shorter."""
        if len(digests) * PAGE_TOKENS > row.length:
            raise RemoteProtocolError(f"a row of {row.length} tokens has no {len(digests)} pages to keep")
        self._pool.prefixes.keep(self._client, digests, row)

    def close(self) -> None:
        """Give the reservation back, after the session's rows were released. Idempotent."""
        self.unpin()
        if self._reserved:
            self._reserved = False
            self._pool.release(self._nbytes)
