"""The ways in which this peer is reached, and their upkeep: directly if that works, else through relays.

Rules:

* An address is announced once others have reached it, or if nobody is there to check it (a founder); `--reach direct`
  announces it unchecked.
* A peer whose address others do not reach uses relays.  It goes on checking, and is direct again as soon as that works;
  it then keeps its relays for a while, for the sessions that use them.
* A peer that was reached asks once more before it believes that it is not.
* A peer does not announce that it serves until there is a way to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from ...proto.network.address import LOOPBACK, HostPort
from ...proto.wire.messages.relay import ReachReply
from ...routing.swarm import Coordinate, PeerId
from ..config import ReachMode
from ..tasks import Changes, run_until_first
from ..timing import PeerTiming
from .keeper import RelayKeeper
from .verdict import UNCHECKED, ReachStatus, ReachVerdict, judge

logger = logging.getLogger(__name__)

ANY_HOSTS = ("0.0.0.0", "::", "[::]")


@dataclass(frozen=True)
class Listening:
    """The operator's choices."""

    mode: ReachMode
    host: str
    """The host to listen on."""
    addresses: Callable[[int], tuple[str, ...]]
    """Port that the peer listens on -> the host:port strings that it would announce."""
    announced: bool
    """Whether the operator gave the addresses (--announce)."""


class OwnReach:
    """The ways to this peer."""

    def __init__(
        self,
        listening: Listening,
        ask: Callable[[int], Awaitable[Sequence[ReachReply]]],
        keeper: RelayKeeper,
        on_change: Callable[[], None],
        clock: Callable[[], float],
        timing: PeerTiming,
        first: ReachVerdict = UNCHECKED,
    ) -> None:
        """`ask` has others check a port; `first` is the verdict from when this peer joined."""
        self.verdict = first
        self._listening = listening
        self._ask = ask
        self._keeper = keeper
        self._on_change = on_change
        self._clock = clock
        self._timing = timing
        self._port = 0
        self._own: tuple[str, ...] = ()
        self._direct_since = clock()
        self._changes = Changes()

    @property
    def direct(self) -> bool:
        """Whether this peer announces addresses of its own."""
        return bool(self.addresses)

    @property
    def addresses(self) -> tuple[str, ...]:
        """host:port to announce, best first; none before `start`."""
        if self._listening.mode is ReachMode.RELAY or self.verdict.reached is ReachStatus.NO:
            return ()
        return self._own if self._listening.announced else self.verdict.addresses(self._own, self._port)

    @property
    def relays(self) -> tuple[PeerId, ...]:
        """The relays to announce, nearest first."""
        return () if self.direct else self._keeper.relays

    @property
    def detour_seconds(self) -> float:
        """The round trip to the nearest relay if this peer is reached through relays, else 0."""
        return 0.0 if self.direct else self._keeper.rtt_seconds

    @property
    def reachable(self) -> bool:
        return bool(self.addresses or self.relays)

    def note_relays(self) -> None:
        """Note that the keeper's relays have changed."""
        self._changes.notify()
        if not self.direct:
            self._on_change()

    async def start(self, port: int) -> None:
        """Find out how this peer, which listens on `port`, is reached, before it is announced."""
        self._port, self._own = port, self._listening.addresses(port)
        if self._listening.mode is ReachMode.AUTO and self.verdict.reached is ReachStatus.UNCHECKED:
            self.verdict = await self._check()
        self._follow()

    async def until_reachable(self) -> None:
        """Wait until there is a way to this peer."""
        if not self.reachable:
            logger.info("this peer is not reached from outside and looks for a relay")
        while not self.reachable:
            try:
                async with asyncio.timeout(self._timing.reach_warning_seconds):
                    await self._changes.wait_for(lambda: self.reachable)
            except TimeoutError:
                logger.warning(
                    "this peer is not reached from outside, and no relay has a place: forward a port and announce it"
                    " (--announce), or have another peer offer --relay; it tries on"
                )

    async def run(self) -> None:
        """Keep the ways to this peer until cancelled."""
        host = self._listening.host
        local = HostPort(LOOPBACK if host in ANY_HOSTS else host, self._port)
        await run_until_first(self._keeper.run(local), self._keep_checking())

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(self._pause_seconds)
            if self.direct and self._clock() - self._direct_since > self._timing.relay_linger_seconds:
                self._keeper.release()
            if self._listening.mode is not ReachMode.AUTO:
                continue
            verdict = await self._check()
            if verdict.reached is ReachStatus.NO and self.direct:
                await asyncio.sleep(self._timing.reach_pause_seconds * 2)
                verdict = await self._check()
            if verdict.reached is ReachStatus.UNCHECKED and self.verdict.reached is not ReachStatus.UNCHECKED:
                continue  # too few have answered: the earlier verdict holds
            before, self.verdict = self.addresses, verdict
            if self.addresses != before:
                self._note(before)

    @property
    def _pause_seconds(self) -> float:
        timing = self._timing
        return timing.reach_recheck_seconds if self.verdict.reached is ReachStatus.YES else timing.reach_again_seconds

    async def _check(self) -> ReachVerdict:
        port = HostPort.parse(self._own[0]).port if self._listening.announced else self._port
        return judge(await self._ask(port))

    def _note(self, before: Sequence[str]) -> None:
        if self.addresses and not before:
            self._direct_since = self._clock()
            logger.info("this peer is reached directly now")
        elif before and not self.addresses:
            logger.warning("this peer is not reached directly any more and looks for a relay")
        self._follow()
        self._changes.notify()
        self._on_change()

    def _follow(self) -> None:
        """Have the keeper look for relays if, and only if, they are needed."""
        if self.direct:
            self._keeper.wanted.clear()
        else:
            self._keeper.wanted.set()


def through_relay(coordinate: Coordinate | None, detour_seconds: float) -> Coordinate | None:
    """The coordinate to announce for a peer that others reach through a relay, `detour_seconds` of round trip away.

    Its own pings went straight to the others; theirs come through the relay.  By the triangle inequality these take
    between zero and two round trips to the relay longer, so one is added to every distance to this peer.
    """
    if coordinate is None or not detour_seconds:
        return coordinate
    return replace(coordinate, height=coordinate.height + detour_seconds)
