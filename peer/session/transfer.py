"""Receives a session's attention cache: one at a time, of the size that was announced, in the time that was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ...proto.errors import DeadlineExceeded, RemoteProtocolError
from ...proto.wire.frames import Assembly, ChunkFrame
from ...proto.wire.messages.session import KvStateFrame
from ...proto.wire.messages.streams import ClientFrame


@dataclass(frozen=True, slots=True)
class KvImport:
    """A cache that arrived; what is in `data` is checked by the engine."""

    applied_seq: int
    lengths: tuple[int, ...]
    data: bytes


@asynccontextmanager
async def one_transfer(turn: asyncio.Semaphore, timeout_seconds: float) -> AsyncIterator[None]:
    """Wait for the turn and hold it, both for at most `timeout_seconds`. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(timeout_seconds), turn:
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"an attention cache did not move within {timeout_seconds:.0f} s") from None


async def receive_kv(
    head: KvStateFrame, read: Callable[[], Awaitable[ClientFrame | None]], largest: Callable[[tuple[int, ...]], int]
) -> KvImport | ClientFrame | None:
    """The cache that begins with `head`; or the first frame that is not a part of it: the client has given it up.

    `largest` gives the bytes that a cache of such rows may have. Raises RemoteProtocolError.
    """
    if head.total_bytes > largest(head.lengths):
        raise RemoteProtocolError(f"an attention cache of {head.total_bytes} bytes is too large for its rows")
    assembly = Assembly(head.total_bytes)
    data = assembly.take(head.data)
    while data is None:
        frame = await read()
        if not isinstance(frame, ChunkFrame):
            return frame
        data = assembly.take(frame.data)
    return KvImport(head.applied_seq, head.lengths, data)
