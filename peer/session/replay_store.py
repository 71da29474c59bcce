"""The replay buffers of all sessions of a peer, in bounded host memory: the client that holds most loses first."""

from __future__ import annotations

from collections import Counter, OrderedDict

from ...proto.wire.replay import ReplayBuffer
from ...proto.wire.steps import StepPlan
from ...routing.swarm import PeerId

DEFAULT_LIMIT_BYTES = 256 << 20
FULL_SHARE = 15 / 16
"""The largest share of the memory that is in use after an eviction."""


class ReplayStore:
    """The tensors that this peer sent to its successors, by session. An evicted buffer does not come back."""

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._buffers: OrderedDict[bytes, ReplayBuffer] = OrderedDict()
        """The least recently used one comes first."""
        self._clients: dict[bytes, PeerId] = {}
        self._bounds: dict[bytes, int] = {}
        """Upper bounds on the bytes of each buffer: truncation and shared rows show only when all are counted again."""
        self._used_bytes = 0
        """The sum of these."""

    def __len__(self) -> int:
        """Return the number of sessions that have a buffer."""
        return len(self._buffers)

    @property
    def nbytes(self) -> int:
        return self._used_bytes

    def begin(self, session_id: bytes, client: PeerId, token_bytes: int) -> None:
        """Start an empty buffer for a session, in place of the one it may have had."""
        self.end(session_id)
        self._buffers[session_id] = ReplayBuffer(token_bytes)
        self._clients[session_id] = client
        self._bounds[session_id] = 0

    def append(self, session_id: bytes, plan: StepPlan, data: bytes, lost: int = 0) -> None:
        """Record what a step sent on, its last `lost` tokens as zeros. May evict.

        Does nothing for a session whose buffer was evicted.
        """
        buffer = self._buffers.get(session_id)
        if buffer is None:
            return
        buffer.apply(plan, data, lost)
        self._buffers.move_to_end(session_id)
        self._bounds[session_id] += len(data)
        self._used_bytes += len(data)
        if self._used_bytes > self._limit_bytes:
            self._evict()

    def get(self, session_id: bytes) -> ReplayBuffer | None:
        """The session's buffer; None if it was evicted or never begun."""
        return self._buffers.get(session_id)

    def end(self, session_id: bytes) -> None:
        """Forget a session. O(1), because clients end sessions at no cost, and a buffer may have a million parts."""
        if session_id in self._buffers:
            del self._buffers[session_id], self._clients[session_id]
            self._used_bytes -= self._bounds.pop(session_id)

    def _evict(self) -> None:
        """Count all buffers; then evict the least recently used one of the client that holds most, until there is room
        for several steps: counting at every step would take long."""
        self._bounds = {session_id: buffer.nbytes for session_id, buffer in self._buffers.items()}
        self._used_bytes = sum(self._bounds.values())
        used = Counter[PeerId]()
        for session_id, size in self._bounds.items():
            used[self._clients[session_id]] += size
        while self._used_bytes > FULL_SHARE * self._limit_bytes:
            largest = max(used.values())
            victim = next(s for s in self._buffers if self._bounds[s] and used[self._clients[s]] == largest)
            used[self._clients[victim]] -= self._bounds[victim]
            self.end(victim)
