"""A look takes a bounded time whatever is announced, and finds the peers that are there; in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.look import MAX_OTHERS_A_LOOK, Found
from blockswarm.client.swarm.meeting import MAX_ASKED_AT_ONCE, Meetings
from blockswarm.client.swarm.place import PINGS_A_LOOK
from blockswarm.client.timing import ClientTiming
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.network.address import PeerAddress, Reach
from blockswarm.proto.network.dialling import AddressRefused
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec
from support.virtual_time import VirtualTimeLoop

TIMING = ClientTiming()
LONGEST_LOOK_SECONDS = TIMING.look_seconds + TIMING.ping_seconds
WHOLE = BlockRange(0, 4)


class Net:
    """A dialer to peers that answer, and to others that say nothing."""

    def __init__(self) -> None:
        self.answers: dict[Reach, Callable[[], PingReply]] = {}
        self.asked: Counter[Reach] = Counter()
        self.at_once = self.most_at_once = 0

    def stub(self, reach: Reach) -> Any:
        async def ping(request: object, timeout: float) -> PingReply:
            self.asked[reach] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                await asyncio.sleep(0.02 if reach in self.answers else timeout)
            finally:
                self.at_once -= 1
            if reach not in self.answers:
                raise PeerUnavailable("no answer")
            return self.answers[reach]()

        return SimpleNamespace(ping=ping)


def announced(name: str, ways: int = 1, blocks: BlockRange = WHOLE) -> Found:
    spec = PeerSpec(PeerId(name), blocks, ComputeCost(0.01), block_hashes=(b"8" * 8,) * len(blocks))
    reaches = tuple(PeerAddress(PeerId(name), f"192.0.2.1:{number + 1}") for number in range(ways))
    return Found(SimpleNamespace(spec=spec, incarnation=1), b"", reaches)  # type: ignore[arg-type]


def crowd(count: int, ways: int = 8) -> dict[PeerId, Found]:
    """Peers that say nothing."""
    return {PeerId(f"quiet {number}"): announced(f"quiet {number}", ways) for number in range(count)}


Scenario = Callable[[Net, Meetings], Awaitable[None]]


def play(scenario: Scenario, most_pings: int = PINGS_A_LOOK, allowed: frozenset[PeerId] | None = None) -> None:
    loop, net = VirtualTimeLoop(), Net()
    with closing(loop):
        meetings = Meetings(net, 4, TIMING, random.Random(1), loop.time, most_pings, allowed)  # type: ignore[arg-type]
        loop.run(scenario(net, meetings))


def there(net: Net, found: Found, number: int = 0) -> PeerId:
    """Have a peer answer by one of its ways."""
    net.answers[found.ways[number]] = lambda: PingReply(protocol=PROTOCOL_VERSION)
    return found.record.spec.id


async def timed(look: Awaitable[Any]) -> tuple[Any, float]:
    loop = asyncio.get_running_loop()
    begun_at = loop.time()
    return await look, loop.time() - begun_at


@pytest.mark.parametrize("silent", [45, 135])
def test_records_of_silent_addresses_delay_a_start_by_one_time_out(silent: int) -> None:
    """45 such records kept every client from starting within 30 s."""

    async def scenario(net: Net, meetings: Meetings) -> None:
        good = announced("good", ways=8)
        peer = there(net, good)
        met, seconds = await timed(meetings.look({**crowd(silent), peer: good}, {}))
        assert set(met) == {peer}
        assert seconds <= LONGEST_LOOK_SECONDS
        assert net.most_at_once <= MAX_ASKED_AT_ONCE
        assert all(count == 1 for reach, count in net.asked.items() if reach.peer != peer)

    play(scenario)


def test_a_look_is_no_longer_however_much_is_announced() -> None:
    async def scenario(net: Net, meetings: Meetings) -> None:
        met: dict[PeerId, KnownPeer] = {}
        those = crowd(900)
        for _ in range(3):
            asked_before = net.asked.total()
            met, seconds = await timed(meetings.look(those, met))
            assert not met
            assert seconds <= LONGEST_LOOK_SECONDS
            assert net.asked.total() - asked_before <= MAX_OTHERS_A_LOOK

    play(scenario)


def test_known_peers_are_met_in_every_look_whatever_the_crowd() -> None:
    async def scenario(net: Net, meetings: Meetings) -> None:
        honest = [announced(f"good {number}", ways=2) for number in range(20)]
        known = {there(net, found, 1): found for found in honest}
        met = await meetings.look(known, {})
        assert set(met) == set(known)
        for _ in range(5):
            met, seconds = await timed(meetings.look({**crowd(900), **known}, met))
            assert set(met) == set(known)
            assert seconds <= LONGEST_LOOK_SECONDS

    play(scenario)


def test_few_honest_peers_among_many_silent_ones_are_found_soon() -> None:
    async def scenario(net: Net, meetings: Meetings) -> None:
        honest = [announced(f"good {number}", 1, BlockRange(number % 4, number % 4 + 1)) for number in range(40)]
        those = crowd(860) | {there(net, found): found for found in honest}
        met = await meetings.look(those, {})
        looks = 1
        while meetings.worth_another_look(those, met):
            met = await meetings.look(those, met)
            looks += 1
        assert not meetings.missing(met.values())
        assert looks <= 4

    play(scenario)


def test_silent_peers_are_asked_by_their_other_ways_only_while_blocks_are_missing() -> None:
    async def scenario(net: Net, meetings: Meetings) -> None:
        half, other = announced("half", 1, BlockRange(0, 2)), announced("other", 2, BlockRange(2, 4))
        peers = {there(net, half): half, there(net, other, 1): other}
        met = await meetings.look(peers, {})
        assert met[other.record.spec.id].address == other.ways[1]
        late = announced("late", 2)
        name = there(net, late, 1)
        met = await meetings.look({**peers, name: late}, met)
        assert name not in met
        assert name in await meetings.look({**peers, name: late}, met), "its other way is tried in the next look"

    play(scenario)


def test_a_known_peer_whose_way_is_lost_is_met_by_another_one_in_the_same_look() -> None:
    async def scenario(net: Net, meetings: Meetings) -> None:
        sure, moves = announced("sure"), announced("moves", 2)
        peers = {there(net, sure): sure, there(net, moves, 0): moves}
        met = await meetings.look(peers, {})
        del net.answers[moves.ways[0]]
        there(net, moves, 1)
        met = await meetings.look(peers, met)
        assert met[moves.record.spec.id].address == moves.ways[1]

    play(scenario)


def test_addresses_that_are_not_dialled_are_noted_and_cost_no_time() -> None:
    async def scenario(net: Net, meetings: Meetings) -> None:
        def refuse() -> PingReply:
            raise AddressRefused("private")

        those = crowd(30, ways=1)
        net.answers = {found.ways[0]: refuse for found in those.values()}
        met, seconds = await timed(meetings.look(those, {}))
        assert not met
        assert meetings.refused == set(those)
        assert seconds < 1

    play(scenario)


def test_known_peers_stay_known_where_there_is_no_time_to_ask_them() -> None:
    """Hundreds that fall silent at once: that is this machine's network, or its time is better spent elsewhere."""

    async def scenario(net: Net, meetings: Meetings) -> None:
        those = {there(net, found): found for found in (announced(f"good {number}") for number in range(250))}
        met = await meetings.look(those, {})
        assert len(met) == 250
        net.answers.clear()
        met, seconds = await timed(meetings.look(those, met))
        assert seconds <= LONGEST_LOOK_SECONDS
        assert 250 - 2 * MAX_ASKED_AT_ONCE <= len(met) < 250

    play(scenario, most_pings=1000)


def parts(count: int) -> list[Found]:
    """Peers that answer, with one of four blocks each."""
    return [announced(f"part {number}", blocks=BlockRange(number % 4, number % 4 + 1)) for number in range(count)]


def test_a_look_at_a_large_swarm_pings_few_and_knows_more_each_time() -> None:
    """Every client would ping every peer every 15 seconds; those that are known stay known without."""

    async def scenario(net: Net, meetings: Meetings) -> None:
        those = {there(net, found): found for found in parts(200)}
        met = await meetings.look(those, {})
        assert len(met) == PINGS_A_LOOK
        assert not meetings.missing(met.values())
        assert net.asked.total() == 2 * PINGS_A_LOOK  # the first ping of each pays for the connection
        again = await meetings.look(those, met)
        assert met.keys() < again.keys()
        assert net.asked.total() <= 4 * PINGS_A_LOOK

    play(scenario)


def test_a_look_goes_on_while_blocks_are_missing() -> None:
    """The only host of a block is one of two hundred."""

    async def scenario(net: Net, meetings: Meetings) -> None:
        those = {
            there(net, found): found for found in (announced(f"a {n}", blocks=BlockRange(0, 2)) for n in range(99))
        }
        rare = announced("rare", blocks=BlockRange(2, 4))
        those[there(net, rare)] = rare
        met = await meetings.look(those, {})
        assert rare.record.spec.id in met

    play(scenario)


def test_the_peers_that_the_client_may_use_are_asked_first() -> None:
    allowed = frozenset({PeerId("part 150"), PeerId("part 151"), PeerId("part 152"), PeerId("part 153")})

    async def scenario(net: Net, meetings: Meetings) -> None:
        those = {there(net, found): found for found in parts(200)}
        assert allowed <= (await meetings.look(those, {})).keys()

    play(scenario, allowed=allowed)


def test_silent_peers_do_not_use_up_the_pings_of_a_look() -> None:
    """More are asked at once where nobody answers, so a few more than the pings of a look may."""

    async def scenario(net: Net, meetings: Meetings) -> None:
        good = {there(net, found): found for found in parts(60)}
        met, seconds = await timed(meetings.look({**crowd(60, ways=1), **good}, {}))
        assert PINGS_A_LOOK <= len(met) < 2 * PINGS_A_LOOK - 20
        assert seconds <= LONGEST_LOOK_SECONDS

    play(scenario)
