"""How a peer's ways follow from what others say of it, over hours of virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from blockswarm.peer.config import ReachMode
from blockswarm.peer.reach.reach import Listening, OwnReach, through_relay
from blockswarm.peer.reach.verdict import UNCHECKED, ReachStatus, ReachVerdict
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.network.address import HostPort
from blockswarm.proto.wire.messages.relay import ReachReply
from blockswarm.routing.swarm import Coordinate, PeerId
from support.virtual_time import VirtualTimeLoop

YES, NO = (ReachReply("8.8.8.8", True),) * 2, (ReachReply("8.8.8.8", False),) * 2
NOBODY: tuple[ReachReply, ...] = ()
RELAY = PeerId("relay")
TIMING = PeerTiming()


class Keeper:
    """Has a relay two seconds after it is wanted, if there is any."""

    def __init__(self, any_relay: bool) -> None:
        self.wanted = asyncio.Event()
        self.relays: tuple[PeerId, ...] = ()
        self.rtt_seconds = 0.02
        self.released_at: list[float] = []
        self.local: HostPort | None = None
        self.changed: Callable[[], None] = lambda: None
        self._any_relay = any_relay

    async def run(self, local: HostPort) -> None:
        self.local = local
        while True:
            await self.wanted.wait()
            await asyncio.sleep(2.0)
            if self._any_relay and self.wanted.is_set() and not self.relays:
                self.relays = (RELAY,)
                self.changed()

    def release(self) -> None:
        self.relays = ()
        self.released_at.append(asyncio.get_running_loop().time())


class Peer:
    """One peer and the answers that it gets; `answers` may change while it runs."""

    def __init__(
        self,
        answers: Sequence[ReachReply],
        mode: ReachMode = ReachMode.AUTO,
        *,
        any_relay: bool = True,
        announce: tuple[str, ...] = (),
        first: ReachVerdict = UNCHECKED,
        host: str = "0.0.0.0",
    ) -> None:
        self.answers = tuple(answers)
        self.asked: list[tuple[float, int]] = []
        self.changes = 0
        self.keeper = Keeper(any_relay)
        keeper: Any = self.keeper
        listening = Listening(mode, host, lambda port: announce or (f"10.0.0.5:{port}",), bool(announce))
        clock = asyncio.get_running_loop().time
        self.reach = OwnReach(listening, self._ask, keeper, self._changed, clock, TIMING, first)
        self.keeper.changed = self.reach.note_relays

    async def _ask(self, port: int) -> Sequence[ReachReply]:
        self.asked.append((asyncio.get_running_loop().time(), port))
        return self.answers

    def _changed(self) -> None:
        self.changes += 1

    async def run(self, seconds: float) -> None:
        """Keep the ways for a while."""
        try:
            async with asyncio.timeout(seconds):
                await self.reach.run()
        except TimeoutError:
            pass

    @property
    def ways(self) -> tuple[tuple[str, ...], tuple[PeerId, ...]]:
        return self.reach.addresses, self.reach.relays


def in_virtual_time(scenario: Callable[[], Any]) -> None:
    VirtualTimeLoop().run(scenario())


def test_a_peer_that_is_reached_announces_where_others_saw_it() -> None:
    async def scenario() -> None:
        peer = Peer(YES)
        assert not peer.reach.reachable, "nothing is announced before it was tried"
        await peer.reach.start(4000)
        assert peer.ways == (("8.8.8.8:4000", "10.0.0.5:4000"), ())
        assert peer.asked == [(0.0, 4000)]
        await asyncio.wait_for(peer.reach.until_reachable(), 60)
        await peer.run(300)
        assert not peer.keeper.wanted.is_set()
        assert peer.changes == 0

    in_virtual_time(scenario)


def test_a_founder_is_announced_at_once_and_marked_as_unchecked() -> None:
    async def scenario() -> None:
        peer = Peer(NOBODY)
        await peer.reach.start(4000)
        assert peer.ways == (("10.0.0.5:4000",), ())
        assert peer.reach.verdict.reached is ReachStatus.UNCHECKED
        peer.answers = YES
        await peer.run(TIMING.reach_again_seconds + 1)
        assert peer.reach.verdict.reached is ReachStatus.YES
        assert peer.changes == 1, "the address that others see is announced as well"

    in_virtual_time(scenario)


def test_a_peer_that_is_not_reached_waits_for_a_relay_and_then_announces_it() -> None:
    async def scenario() -> None:
        peer = Peer(NO)
        await peer.reach.start(4000)
        assert peer.ways == ((), ())
        running = asyncio.create_task(peer.run(60))
        await asyncio.wait_for(peer.reach.until_reachable(), 60)
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)
        assert peer.ways == ((), (RELAY,))
        assert peer.reach.detour_seconds == 0.02
        assert peer.keeper.local == HostPort("127.0.0.1", 4000), "the tunnel ends at the peer's own port"
        await running

    in_virtual_time(scenario)


def test_direct_is_preferred_as_soon_as_it_works_and_the_relays_stay_a_while() -> None:
    async def scenario() -> None:
        peer = Peer(NO)
        await peer.reach.start(4000)
        running = asyncio.create_task(peer.run(3600))
        await asyncio.sleep(10)
        peer.answers = YES
        await asyncio.sleep(TIMING.reach_again_seconds)
        assert peer.ways == (("8.8.8.8:4000", "10.0.0.5:4000"), ())
        assert peer.keeper.relays == (RELAY,), "sessions go on through it"
        assert peer.reach.detour_seconds == 0.0
        await running
        assert peer.keeper.released_at[0] > 10 + TIMING.relay_linger_seconds
        assert peer.keeper.relays == ()

    in_virtual_time(scenario)


def test_a_peer_asks_twice_before_it_believes_that_it_is_gone_from_sight() -> None:
    async def scenario() -> None:
        peer = Peer(YES)
        await peer.reach.start(4000)
        running = asyncio.create_task(peer.run(3600))
        await asyncio.sleep(TIMING.reach_recheck_seconds - 1)
        peer.answers = NO
        await asyncio.sleep(2)
        assert peer.reach.direct, "one bad answer may be the others' fault"
        await asyncio.sleep(2 * TIMING.reach_pause_seconds + 3)
        assert peer.ways == ((), (RELAY,))
        await running

    in_virtual_time(scenario)


def test_while_nobody_answers_what_was_known_holds() -> None:
    async def scenario() -> None:
        peer = Peer(NO)
        await peer.reach.start(4000)
        running = asyncio.create_task(peer.run(3600))
        await asyncio.sleep(10)
        peer.answers = NOBODY
        await running
        assert peer.ways == ((), (RELAY,))

    in_virtual_time(scenario)


def test_what_the_operator_says_is_not_asked_for() -> None:
    async def scenario() -> None:
        direct = Peer(NO, ReachMode.DIRECT)
        await direct.reach.start(4000)
        await direct.run(3600)
        assert direct.ways == (("10.0.0.5:4000",), ())
        relayed = Peer(YES, ReachMode.RELAY, host="127.0.0.1")
        await relayed.reach.start(4000)
        await relayed.run(3600)
        assert relayed.ways == ((), (RELAY,))
        assert relayed.keeper.local == HostPort("127.0.0.1", 4000)
        assert direct.asked == relayed.asked == []

    in_virtual_time(scenario)


def test_a_forwarded_port_is_checked_and_announced_as_it_was_given() -> None:
    async def scenario() -> None:
        peer = Peer(YES, announce=("home.example:443", "198.51.100.1:80"))
        await peer.reach.start(4000)
        assert peer.asked == [(0.0, 443)]
        assert peer.ways == (("home.example:443", "198.51.100.1:80"), ())

    in_virtual_time(scenario)


def test_the_verdict_of_the_time_when_it_joined_counts() -> None:
    async def scenario() -> None:
        peer = Peer(YES, first=ReachVerdict(ReachStatus.NO))
        await peer.reach.start(4000)
        assert peer.asked == []
        assert not peer.reach.direct

    in_virtual_time(scenario)


def test_a_peer_without_any_way_says_so_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        peer = Peer(NO, any_relay=False)
        await peer.reach.start(4000)
        running = asyncio.create_task(peer.run(3600))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.reach.until_reachable(), 3 * TIMING.reach_warning_seconds + 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with caplog.at_level(logging.WARNING):
        in_virtual_time(scenario)
    assert sum("no relay has a place" in record.message for record in caplog.records) == 3


def test_a_detour_makes_every_way_longer() -> None:
    place = Coordinate((0.1, 0.2), 0.01, 0.3)
    assert through_relay(place, 0.05) == Coordinate((0.1, 0.2), pytest.approx(0.06), 0.3)
    assert through_relay(place, 0.0) == place
    assert through_relay(None, 0.05) is None
