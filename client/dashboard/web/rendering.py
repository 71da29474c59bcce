"""Makes the bodies of answers in threads, each once for all concurrent requests for it, and caches them."""

from __future__ import annotations

import asyncio
import gzip
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from ...web.tags import tag_of

MOST_AT_ONCE = 2
"""How many bodies are made concurrently: more Python threads would not be faster."""
MOST_WAITING = 64
"""The most bodies being made or waiting; requests for further ones are refused with 503."""
MOST_REMEMBERED_BYTES = 32 << 20
ENTRY_BYTES = 4 << 10
"""Counted for each cached body in addition to its bytes: its key may have a URL of two kilobytes, and no body."""
LEAST_COMPRESSED_BYTES = 1024


class Overloaded(Exception):
    """Too many bodies are being made."""


@dataclass(frozen=True, slots=True)
class Body:
    """The body of an answer."""

    plain: bytes
    packed: bytes | None
    """Compressed by gzip; None if that is not shorter."""
    etag: str

    @classmethod
    def of(cls, plain: bytes) -> Body:
        packed = gzip.compress(plain, 5, mtime=0) if len(plain) >= LEAST_COMPRESSED_BYTES else None
        if packed is not None and len(packed) >= len(plain):
            packed = None
        return cls(plain, packed, tag_of(plain))

    @property
    def size(self) -> int:
        """The memory that it counts for in the cache, in bytes."""
        return ENTRY_BYTES + len(self.plain) + len(self.packed or b"")


class BodyMaker:
    """Makes and caches bodies. Used on one loop."""

    def __init__(self) -> None:
        self._remembered: OrderedDict[Hashable, Body] = OrderedDict()
        self._bytes = 0
        self._making: dict[Hashable, asyncio.Task[Body]] = {}
        self._places = asyncio.Semaphore(MOST_AT_ONCE)

    async def body(self, key: Hashable, make: Callable[[], bytes]) -> Body:
        """Return the body for this key: cached, or made by `make` in a thread.

        Raises Overloaded, and what `make` raises.
        """
        if (body := self._remembered.get(key)) is not None:
            self._remembered.move_to_end(key)
            return body
        task = self._making.get(key)
        if task is None:
            if len(self._making) >= MOST_WAITING:
                raise Overloaded
            task = self._making[key] = asyncio.create_task(self._made(key, make), name="make a body")
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    async def _made(self, key: Hashable, make: Callable[[], bytes]) -> Body:
        async with self._places:
            body = await asyncio.to_thread(lambda: Body.of(make()))
        self._remember(key, body)
        return body

    def _remember(self, key: Hashable, body: Body) -> None:
        self._remembered[key] = body
        self._bytes += body.size
        while self._bytes > MOST_REMEMBERED_BYTES:
            _, oldest = self._remembered.popitem(last=False)
            self._bytes -= oldest.size

    def _ended(self, key: Hashable, task: asyncio.Task[Body]) -> None:
        del self._making[key]
        if not task.cancelled():
            task.exception()  # mark it as retrieved: all requests that waited for it may be gone
