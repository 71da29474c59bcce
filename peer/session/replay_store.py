"""The replay buffers of all sessions of a peer, in bounded host memory; the least recently used one is evicted."""

from __future__ import annotations

from collections import OrderedDict

from ...proto.wire.replay import ReplayBuffer
from ...proto.wire.steps import StepPlan

DEFAULT_LIMIT_BYTES = 256 << 20


class ReplayStore:
    """The tensors that this peer sent to its successors, by session. An evicted buffer does not come back."""

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._buffers: OrderedDict[bytes, ReplayBuffer] = OrderedDict()
        self._used_bytes = 0
        """An upper bound: truncation and shared rows only show when it is counted again."""

    def __len__(self) -> int:
        """The number of sessions that have a buffer."""
        return len(self._buffers)

    @property
    def nbytes(self) -> int:
        return self._used_bytes

    def begin(self, session_id: bytes, token_bytes: int) -> None:
        """Start an empty buffer for a session, in place of the one it may have had."""
        self._buffers[session_id] = ReplayBuffer(token_bytes)
        self._buffers.move_to_end(session_id)

    def append(self, session_id: bytes, plan: StepPlan, data: bytes) -> None:
        """Record what a step sent on; does nothing for a session whose buffer was evicted. May evict."""
        buffer = self._buffers.get(session_id)
        if buffer is None:
            return
        buffer.apply(plan, data)
        self._buffers.move_to_end(session_id)
        self._used_bytes += len(data)
        if self._used_bytes > self._limit_bytes:
            self._evict()

    def get(self, session_id: bytes) -> ReplayBuffer | None:
        """The session's buffer; None if it was evicted or never begun."""
        return self._buffers.get(session_id)

    def end(self, session_id: bytes) -> None:
        """Forget a session."""
        if self._buffers.pop(session_id, None) is not None:
            self._used_bytes = self._count()

    def _evict(self) -> None:
        self._used_bytes = self._count()
        while self._used_bytes > self._limit_bytes and self._buffers:
            self._buffers.popitem(last=False)
            self._used_bytes = self._count()

    def _count(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())
