"""The attention cache that outlives its session: pages with which later sessions of the same client may begin.

A page holds the keys and values of `PAGE_TOKENS` tokens in some blocks, copied out of a row and never changed. Its key
is the client's id and the page's digest, which the client has chosen.

Pages are never shared between clients, and there is no switch for it. If they were, the time of an answer would tell a
client whether another one has sent the same text. Worse, a peer that gets hidden states cannot check that they
belong to the digest: one client could store a wrong cache under the digest of a popular prompt, and change the answers
of all others. Within one client neither matters: a client that lies about a digest harms itself. To share between
processes, give them the same identity.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from ....proto.wire.prefixes import PAGE_TOKENS
from ....routing.swarm import BlockRange, PeerId
from .row import BlockKV, RowKV

_Key = tuple[PeerId, bytes]


@dataclass
class _Page:
    blocks: dict[int, BlockKV] = field(default_factory=dict)
    pins: int = 0

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def covers(self, blocks: BlockRange) -> bool:
        return all(block in self.blocks for block in blocks)


class PinnedPrefix:
    """Pages from the start of a row that stay until `release` is called."""

    def __init__(self, cache: PrefixCache, pages: Sequence[_Page]) -> None:
        self._cache = cache
        self._pages = pages

    @property
    def tokens(self) -> int:
        return len(self._pages) * PAGE_TOKENS

    def pages(self, tokens: int) -> list[Mapping[int, BlockKV]]:
        """The pages of the first `tokens` tokens, for `RowKV.append`. Raises ValueError if there are no such pages."""
        if not 0 <= tokens <= self.tokens or tokens % PAGE_TOKENS:
            raise ValueError(f"{tokens} tokens are not some of the {self.tokens} that are held, in whole pages")
        return [page.blocks for page in self._pages[: tokens // PAGE_TOKENS]]

    def release(self) -> None:
        """Let the pages be evicted from now on. Idempotent."""
        self._cache._unpin(self._pages)
        self._pages = ()


class PrefixCache:
    """The pages of all clients, at most `limit_bytes`; the least recently used ones go first.

    Pinned pages stay. A session pins no more than it has reserved and not filled yet, so pinned pages fit into reserved
    memory, and the others into the rest (`shrink_to`). `pin` may be called from any thread and returns quickly;
    everything else copies or frees memory, and is called from one thread.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self.evicted_pages = 0
        self._room_bytes = limit_bytes
        self._pages: OrderedDict[_Key, _Page] = OrderedDict()
        """Least recently used first; within a row the last pages first, which are useless without those before."""
        self._lock = threading.Lock()
        """Guards `_pages` and the pins; not held while memory is copied or freed."""

    def __len__(self) -> int:
        return len(self._pages)

    def content(self) -> dict[tuple[PeerId, bytes], Mapping[int, BlockKV]]:
        """Return (client, digest) -> the blocks of the page, the least recently used first."""
        with self._lock:
            return {key: dict(page.blocks) for key, page in self._pages.items()}

    def pin(self, client: PeerId, digests: Sequence[bytes], blocks: BlockRange) -> PinnedPrefix:
        """Pin the longest run of the pages `digests`, from the first one on, that is held for all of `blocks`."""
        found = []
        with self._lock:
            for digest in digests:
                page = self._pages.get((client, digest))
                if page is None or not page.covers(blocks):
                    break
                page.pins += 1
                found.append(page)
            self._touch(client, digests[: len(found)])
        return PinnedPrefix(self, found)

    def keep(self, client: PeerId, digests: Sequence[bytes], row: RowKV) -> None:
        """Keep the first pages of a row under `digests`, as far as there is room. Copies what is not held yet.

        Raises ValueError if the row is shorter than these pages.
        """
        if len(digests) * PAGE_TOKENS > row.length:
            raise ValueError(f"{len(digests)} pages are more than a row of {row.length} tokens has")
        run = {(client, digest) for digest in digests}
        for index, digest in enumerate(digests):
            if not self._keep_page((client, digest), row, index * PAGE_TOKENS, run):
                break
        with self._lock:
            self._touch(client, digests)

    def shrink_to(self, room_bytes: int) -> None:
        """Limit the pages to `room_bytes` from now on, and never above `limit_bytes`; evict the rest."""
        self._room_bytes = min(self.limit_bytes, room_bytes)
        self._make_room(0)

    def _keep_page(self, key: _Key, row: RowKV, start: int, run: set[_Key]) -> bool:
        """Copy the missing blocks of a page, without evicting a page of `run`; return False if there is no room."""
        page = self._pages.get(key)
        if page is not None and page.covers(row.blocks):
            return True
        content = zip(row.blocks, row.read(start, start + PAGE_TOKENS), strict=True)
        missing = {block: kv for block, kv in content if page is None or block not in page.blocks}
        needed_bytes = sum(kv.nbytes for kv in missing.values())
        if not self._make_room(needed_bytes, run):
            return False
        with self._lock:
            self._pages.setdefault(key, _Page()).blocks.update(missing)
        self.nbytes += needed_bytes
        return True

    def _make_room(self, needed_bytes: int, spare: Set[_Key] = frozenset()) -> bool:
        """Evict pages until there is room, sparing pinned ones and those of `spare`; return whether there is room."""
        evicted = []
        with self._lock:
            if self.nbytes + needed_bytes > self._room_bytes >= needed_bytes:
                for key in [key for key, page in self._pages.items() if page.pins == 0 and key not in spare]:
                    evicted.append(self._pages.pop(key))
                    self.nbytes -= evicted[-1].nbytes
                    if self.nbytes + needed_bytes <= self._room_bytes:
                        break
        self.evicted_pages += len(evicted)
        return self.nbytes + needed_bytes <= self._room_bytes

    def _touch(self, client: PeerId, digests: Sequence[bytes]) -> None:
        for digest in reversed(digests):
            if (client, digest) in self._pages:
                self._pages.move_to_end((client, digest))

    def _unpin(self, pages: Sequence[_Page]) -> None:
        with self._lock:
            for page in pages:
                page.pins -= 1
        self._make_room(0)
