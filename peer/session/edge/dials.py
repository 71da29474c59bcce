"""A limit on failed dials, for the dials that a peer makes because clients name successors.

The addresses are those that a successor has signed, but ids and signatures cost nothing, so a client can name any
public address.  A peer that dialled them all would be a port scanner for hire, under its owner's address.  So failed
dials are counted for each client and for each address, and so are the addresses that failed.  An address at which a
peer answered before costs nothing until it fails, so that a spent budget spares links between peers that have met.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ....proto.errors import PushFailed
from ....proto.network.address import Reach
from ....proto.network.dialling import AddressRefused
from ....routing.swarm import PeerId

MAX_FAILED_PER_CLIENT = 8
MAX_FAILED_PER_ADDRESS = 8
MAX_FAILED_ADDRESSES = 64
MAX_KNOWN = 1024
"""Addresses remembered because a peer has answered there."""

_Dial = tuple[float, PeerId, Reach]


class DialBudget:
    """Counts recent dials that have failed, or have not succeeded yet."""

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds`: for how long a failed dial counts."""
        self._seconds = seconds
        self._clock = clock
        self._failed: deque[_Dial] = deque()
        self._known: dict[Reach, None] = {}

    @contextmanager
    def dial(self, client: PeerId, reach: Reach) -> Iterator[None]:
        """Count the dial that the block makes for a client. Raises PushFailed before it if the budget is spent."""
        this = self._clock(), client, reach
        counted = reach not in self._known
        if counted:
            self._check(client, reach)
            self._failed.append(this)
        try:
            yield
        except AddressRefused:  # nobody was dialled
            self._forget(this)
            raise
        except BaseException:
            self._known.pop(reach, None)
            if not counted:
                self._failed.append(this)
            raise
        self._forget(this)
        self._known.pop(reach, None)
        self._known[reach] = None
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _check(self, client: PeerId, reach: Reach) -> None:
        oldest = self._clock() - self._seconds
        while self._failed and self._failed[0][0] < oldest:
            self._failed.popleft()
        by_client = sum(1 for _, other, _ in self._failed if other == client)
        addresses = [other for _, _, other in self._failed]
        spent = by_client >= MAX_FAILED_PER_CLIENT or addresses.count(reach) >= MAX_FAILED_PER_ADDRESS
        if spent or len(set(addresses) - {reach}) >= MAX_FAILED_ADDRESSES:
            raise PushFailed("too many dials have failed lately")

    def _forget(self, dial: _Dial) -> None:
        if dial in self._failed:
            self._failed.remove(dial)
