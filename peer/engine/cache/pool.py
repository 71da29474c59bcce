"""The memory of a peer's attention caches: reservations of sessions, bytes of their rows, pages kept for later ones.

A session reserves the most that it may need; its rows allocate as they fill.  Memory that no session has reserved is
lent to the prefix cache, which gives it back as soon as a session reserves it.
"""

from __future__ import annotations

from .prefix_cache import PrefixCache
from .row import KvUsage


class KvPool:
    """Room for `capacity_bytes` of attention cache, of which at most `prefix_limit_bytes` are lent to prefixes.

    It only counts: admission has already decided whether a session gets its reservation. Rows are made with `usage`.
    For one thread, except for `PrefixCache.pin` and for reading the numbers.
    """

    def __init__(self, capacity_bytes: int, prefix_limit_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self.usage = KvUsage()
        self.prefixes = PrefixCache(prefix_limit_bytes)
        self._lend_the_rest()

    @property
    def used_bytes(self) -> int:
        """Bytes that the rows of all sessions occupy now."""
        return self.usage.nbytes

    @property
    def free_bytes(self) -> int:
        """Bytes that sessions may still reserve; prefixes give way."""
        return self.capacity_bytes - self.reserved_bytes

    def reserve(self, nbytes: int) -> None:
        """Set `nbytes` aside for a session; the prefix cache gives them back if it has borrowed them."""
        self.reserved_bytes += nbytes
        self._lend_the_rest()

    def release(self, nbytes: int) -> None:
        """End a reservation of `nbytes`, after the session's rows were released."""
        self.reserved_bytes -= nbytes
        self._lend_the_rest()

    def resize(self, capacity_bytes: int) -> None:
        """Change the capacity, as the hosted blocks changed; sessions keep their reservations, even beyond it."""
        self.capacity_bytes = capacity_bytes
        self._lend_the_rest()

    def _lend_the_rest(self) -> None:
        self.prefixes.shrink_to(max(0, self.free_bytes))
