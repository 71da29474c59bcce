"""Admission: how many sessions a peer holds, and how much attention cache they may use.

The cache is counted in tokens x blocks and reserved when a session opens, for its declared maximum: a session that was
admitted never runs out half-way.  No I/O and no clock here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..proto.errors import OutOfMemory, PeerBusy, RemoteProtocolError
from ..proto.handshake import Grant

MAX_SESSIONS = 256
RETRY_AFTER_SECONDS = 5.0


class SessionTable:
    """The reservations of a peer; at most `max_sessions`, together at most `kv_token_blocks`."""

    def __init__(self, kv_token_blocks: int, max_sessions: int = MAX_SESSIONS) -> None:
        if kv_token_blocks < 1 or max_sessions < 1:
            raise ValueError("a peer offers room for at least one token and one session")
        self.kv_token_blocks_total = kv_token_blocks
        self._max_sessions = max_sessions
        self._reserved: dict[bytes, int] = {}

    @property
    def sessions(self) -> int:
        return len(self._reserved)

    @property
    def kv_token_blocks_free(self) -> int:
        return self.kv_token_blocks_total - sum(self._reserved.values())

    @contextmanager
    def reserve(self, grant: Grant) -> Iterator[None]:
        """Hold the reservation of a session. Raises PeerBusy if it does not fit now, OutOfMemory if it never will."""
        need = grant.kv_tokens * len(grant.blocks)
        if need > self.kv_token_blocks_total:
            raise OutOfMemory(
                f"the session reserves {need} KV tokens x blocks, the peer has {self.kv_token_blocks_total} in all",
                hint="Ask for a shorter max_length or fewer rows, or use a peer with more memory.",
            )
        if grant.session_id in self._reserved:
            raise RemoteProtocolError("the session is open on this peer already")
        if len(self._reserved) >= self._max_sessions:
            raise PeerBusy(RETRY_AFTER_SECONDS, f"the peer serves {self._max_sessions} sessions already")
        if need > self.kv_token_blocks_free:
            raise PeerBusy(
                RETRY_AFTER_SECONDS,
                f"the session needs {need} KV tokens x blocks, {self.kv_token_blocks_free} are free now",
            )
        self._reserved[grant.session_id] = need
        try:
            yield
        finally:
            del self._reserved[grant.session_id]
