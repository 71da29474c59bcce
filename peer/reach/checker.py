"""Dials back peers that ask whether they can be reached: once, at the address where they are seen, within a budget.

The asking peer can have nothing dialled but the machine that the call came from, and only a server with its own key
counts as an answer there.  The budget bounds what askers can make this peer do, for each network and for all.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from ...proto.errors import PeerBusy, PeerUnavailable, SwarmError
from ...proto.network.address import HostPort, PeerAddress, network_of_host
from ...proto.network.transport import Dialer, ping
from ...proto.wire.handshake import HelloChecker
from ...proto.wire.messages.relay import ReachReply, ReachRequest
from ..timing import PeerTiming

MAX_DIALS_AT_ONCE = 8
MAX_NETWORKS = 1024
"""Networks whose last dial is remembered."""


class CheckBudget:
    """Limits dials: one per network in `pause_seconds`, and `at_once` at a time for all networks."""

    def __init__(self, pause_seconds: float, at_once: int = MAX_DIALS_AT_ONCE, most: int = MAX_NETWORKS) -> None:
        self._pause_seconds = pause_seconds
        self._free = at_once
        self._most = most
        self._last: OrderedDict[str, float] = OrderedDict()

    def begin(self, network: str, now: float) -> None:
        """Take a place for a dial; `end` gives it back. Raises PeerBusy if there is none."""
        wait = self._last.get(network, float("-inf")) + self._pause_seconds - now
        if wait > 0 or self._free <= 0:
            raise PeerBusy(max(wait, 1.0), "this peer has checked enough addresses for now")
        self._free -= 1
        self._last[network] = now
        self._last.move_to_end(network)
        while len(self._last) > self._most:
            self._last.popitem(last=False)

    def end(self) -> None:
        self._free += 1


class ReachChecker:
    """Serves the call `Reach`."""

    def __init__(
        self,
        hellos: HelloChecker,
        dialer: Dialer,
        offers: Callable[[], bool],
        clock: Callable[[], float],
        timing: PeerTiming,
    ) -> None:
        """`offers`: whether this peer checks now; one behind a relay does not see the addresses of callers."""
        self._hellos = hellos
        self._dialer = dialer
        self._offers = offers
        self._clock = clock
        self._timing = timing
        self._budget = CheckBudget(timing.reach_pause_seconds)

    async def check(self, request: ReachRequest, host: str) -> ReachReply:
        """Check whether the sender of the hello, seen at `host`, answers there at its port. Raises SwarmError."""
        peer, _ = self._hellos.check(request.hello)
        if not self._offers() or not host:
            raise PeerUnavailable("this peer does not see the address of the caller")
        self._budget.begin(network_of_host(host), self._clock())
        try:
            return ReachReply(host, await self._answers(PeerAddress(peer, str(HostPort(host, request.port)))))
        finally:
            self._budget.end()

    async def _answers(self, address: PeerAddress) -> bool:
        try:
            async with asyncio.timeout(self._timing.reach_dial_seconds), self._dialer.dialed_once(address) as stub:
                await ping(stub, address, self._timing.reach_dial_seconds)
        except (SwarmError, TimeoutError):
            return False
        return True
