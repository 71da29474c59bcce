"""Receives a session's attention cache: one at a time, of the size that was announced, in the time that was given."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ...proto import swarm_pb2 as pb
from ...proto.errors import DeadlineExceeded, RemoteProtocolError
from ...proto.wire.steps import MAX_POSITIONS, MAX_ROWS
from ...proto.wire.timing import MAX_TRANSFER_SECONDS


@dataclass(frozen=True, slots=True)
class KvImport:
    """A cache that arrived; what is in `data` is checked by the engine."""

    applied_seq: int
    lengths: tuple[int, ...]
    data: bytes


def transfer_seconds(timeout_seconds: float) -> float:
    """The time a client gives a transfer. Raises RemoteProtocolError for an impossible one."""
    if not (math.isfinite(timeout_seconds) and 0 < timeout_seconds <= MAX_TRANSFER_SECONDS):
        raise RemoteProtocolError("the transfer of an attention cache has an impossible deadline")
    return timeout_seconds


@asynccontextmanager
async def one_transfer(turn: asyncio.Semaphore, timeout_seconds: float) -> AsyncIterator[None]:
    """Wait for the turn and hold it, both for at most `timeout_seconds`. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(timeout_seconds), turn:
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"an attention cache did not move within {timeout_seconds:.0f} s") from None


async def receive_kv(
    head: pb.KvState, read: Callable[[], Awaitable[object]], largest: Callable[[tuple[int, ...]], int]
) -> KvImport | object:
    """The cache that begins with `head`; or the first frame that is not a part of it: the client has given it up.

    `largest` gives the bytes that a cache of such rows may have. Raises RemoteProtocolError.
    """
    lengths = tuple(head.lengths)
    if len(lengths) > MAX_ROWS or max(lengths, default=0) > MAX_POSITIONS:
        raise RemoteProtocolError("an attention cache has impossible rows")
    if head.total_bytes > largest(lengths):
        raise RemoteProtocolError(f"an attention cache of {head.total_bytes} bytes is too large for its rows")
    parts = [head.data]
    missing = head.total_bytes - len(head.data)
    while missing > 0:
        frame = await read()
        if not isinstance(frame, pb.ClientFrame) or not frame.HasField("chunk"):
            return frame
        if not frame.chunk.data:
            raise RemoteProtocolError("a chunk is empty")
        parts.append(frame.chunk.data)
        missing -= len(frame.chunk.data)
    if missing < 0:
        raise RemoteProtocolError("an attention cache has more bytes than it announced")
    return KvImport(head.applied_seq, lengths, b"".join(parts))
