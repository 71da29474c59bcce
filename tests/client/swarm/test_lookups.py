"""A client of a large swarm is told of few peers and pings few, and these are the right ones; in virtual time.

The records are really signed, and answered by the peer's own code.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.client.swarm.lookups import LOOK_BYTES, LookupAsker, SwarmLookups
from blockswarm.client.swarm.place import PINGS_A_LOOK
from blockswarm.client.swarm.view import SwarmView
from blockswarm.client.timing import ClientTiming
from blockswarm.peer.offer.lookups import Answer
from blockswarm.peer.offer.nearest import NearestHosts
from blockswarm.peer.session.unary import UnaryCalls
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.messages.calls import LookupReply, LookupRequest
from blockswarm.routing.nearby import Asker
from blockswarm.routing.swarm import PeerId
from support.benchlib import benchlib
from support.virtual_time import VirtualTimeLoop

NOW = 1_800_000_000.0
TIMING = ClientTiming(refresh_seconds=10.0)
FIRST_SESSION_BYTES = 300_000

crowds = benchlib("crowd")


@functools.cache
def crowd_of(count: int) -> Any:
    return crowds.Crowd.of(count, NOW + 60)


def node_with(records: tuple[SignedRecord, ...], seed: int = 1) -> Callable[[LookupRequest], Awaitable[LookupReply]]:
    """The answers of a peer that has found these records."""
    hosts, rng = NearestHosts(crowds.BLOCKS, None), random.Random(seed)

    async def lookup(name: str, network: str, asker: Asker | None, most: int) -> Answer:
        told = hosts.choose(records, asker, most, rng) if asker else rng.sample(records, min(most, len(records)))
        return Answer(told, len(records))

    calls = UnaryCalls(SimpleNamespace(swarm_key=None, lookup=lookup))  # type: ignore[arg-type]
    return lambda request: calls.lookup(request, "192.0.2.2")


class World:
    """A client at a place, some nodes that answer look-ups, and a crowd."""

    def __init__(self, loop: VirtualTimeLoop, crowd: Any, seen: list[tuple[SignedRecord, ...]], **options: Any) -> None:
        self.crowd, rng = crowd, random.Random(7)
        nodes = {Identity.generate().peer_id: node_with(records, i) for i, records in enumerate(seen)}
        self.dialer = crowds.CrowdDialer(crowd, crowds.place_in(crowds.REGIONS[1], rng), nodes)
        answer = node_with(crowd.records)
        nodes.update(dict.fromkeys(crowd.specs, answer))
        initial = [PeerAddress(peer, "192.0.2.1:1") for peer in list(nodes)[: len(seen)]]
        self.view = SwarmView(
            Identity.generate(), self.dialer, initial, crowds.DIGEST, crowds.BLOCKS, None, True,
            lambda: NOW + loop.time(), TIMING, monotonic=loop.time, rng=rng, **options,
        )  # fmt: skip

    def best_rtt(self, block: int, among: Any) -> float:
        """The shortest true round trip to a host of a block."""
        return min(self.dialer.rtt_seconds(peer) for peer in among if block in self.crowd.specs[peer].blocks)


Scenario = Callable[[World], Awaitable[None]]
Seen = Callable[[tuple[SignedRecord, ...]], list[tuple[SignedRecord, ...]]]


class Loop(VirtualTimeLoop):
    """Does the work of threads at once, since it cannot wait for them."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        done = self.create_future()
        done.set_result(func(*args))
        return done


@pytest.fixture
def loop() -> Iterator[VirtualTimeLoop]:
    with closing(Loop()) as virtual:
        yield virtual


def play(
    loop: VirtualTimeLoop, scenario: Scenario, count: int = 300, seen: Seen = lambda records: [records] * 3,
    **options: Any,
) -> None:  # fmt: skip
    """Run a scenario after the first look of a client."""
    crowd = crowd_of(count)

    async def run() -> None:
        world = World(loop, crowd, seen(crowd.records), **options)
        try:
            await world.view.start()
            await scenario(world)
        finally:
            await world.view.close()

    loop.run(run())


def test_a_first_session_costs_few_bytes_and_pings_and_finds_the_near_hosts_of_every_block(
    loop: VirtualTimeLoop,
) -> None:
    async def scenario(world: World) -> None:
        traffic = world.dialer.traffic
        assert traffic.lookup_bytes + traffic.ping_bytes <= FIRST_SESSION_BYTES
        assert len(traffic.pinged) <= PINGS_A_LOOK
        for block in range(crowds.BLOCKS):
            assert world.best_rtt(block, world.view.peers) <= 2.5 * world.best_rtt(block, world.crowd.specs) + 0.01

    play(loop, scenario)


@pytest.mark.long
def test_a_later_look_keeps_the_peers_that_are_known(loop: VirtualTimeLoop) -> None:
    async def scenario(world: World) -> None:
        before, asked = set(world.view.peers), world.dialer.traffic.lookup_bytes
        await world.view.refresh()
        assert before <= set(world.view.peers)
        assert world.dialer.traffic.lookup_bytes - asked <= 1.2 * LOOK_BYTES
        # The records of the crowd are over after a minute, and then nobody is known by them.

    play(loop, scenario)


def test_in_a_small_swarm_all_are_told_of_at_once(loop: VirtualTimeLoop) -> None:
    async def scenario(world: World) -> None:
        assert world.dialer.traffic.lookups == 3
        assert set(world.view.peers) == set(world.crowd.specs)

    play(loop, scenario, count=12)


def test_records_that_one_peer_hides_are_told_by_another(loop: VirtualTimeLoop) -> None:
    """A hostile peer tells of none, or of few, and says that these are all."""

    async def scenario(world: World) -> None:
        assert all(any(block in world.crowd.specs[p].blocks for p in world.view.peers) for block in range(32))

    play(loop, scenario, seen=lambda records: [records[:1], (), records])


@pytest.mark.long
def test_a_client_that_misses_blocks_has_itself_told_more(loop: VirtualTimeLoop) -> None:
    """Chance alone may hide the only host of a block: asking for more ends that."""
    asked: list[int] = []
    crowd = crowd_of(300)
    missing = tuple(r for r in crowd.records if crowd.specs[r.peer_id].blocks.stop <= 30)
    rare = next(r for r in crowd.records if crowd.specs[r.peer_id].blocks.stop == 32)

    async def stingy(request: LookupRequest) -> LookupReply:
        asked.append(request.most_bytes)
        told = missing[: request.most_bytes // 1000]
        more = (rare,) if request.most_bytes >= 4 * LOOK_BYTES else ()
        return LookupReply(tuple(record.encode() for record in (*told, *more)), 300)

    async def run() -> None:
        world = World(loop, crowd, [()])
        world.dialer.nodes = dict.fromkeys(world.dialer.nodes, stingy)
        await world.view.start()
        assert rare.peer_id in world.view.peers
        assert asked[0] == LOOK_BYTES
        await world.view.close()

    loop.run(run())


@pytest.mark.parametrize("options", [{"most_pings": 1000}, {"allowed": frozenset({PeerId("somebody")})}])
def test_a_survey_and_a_client_that_may_use_some_peers_only_ask_for_everything(
    options: dict[str, Any], loop: VirtualTimeLoop
) -> None:
    async def scenario(world: World) -> None:
        assert world.dialer.traffic.lookup_bytes > 3 * 100 * 400
        assert len(world.view.silent) + len(world.view.peers) == 100

    play(loop, scenario, count=100, **options)


def test_an_older_peer_that_tells_everything_is_understood(loop: VirtualTimeLoop) -> None:
    """It does not know of a choice, and tells no number."""
    crowd = crowd_of(20)
    failures = 0

    async def old(request: LookupRequest) -> LookupReply:
        return LookupReply(tuple(record.encode() for record in crowd.records))

    async def failing(request: LookupRequest) -> LookupReply:
        nonlocal failures
        failures += 1
        raise PeerUnavailable("gone")

    async def run() -> None:
        nodes = {Identity.generate().peer_id: answer for answer in (old, failing)}
        dialer = crowds.CrowdDialer(crowd, crowds.place_in(crowds.REGIONS[0], random.Random(1)), nodes)
        asker = LookupAsker(Identity.generate(), dialer, None, lambda: NOW, 5.0)
        lookups = SwarmLookups(asker)
        name = f"blockswarm/1/{crowds.DIGEST}"
        found = await lookups.look(name, [PeerAddress(peer, "192.0.2.1:1") for peer in nodes], None)
        assert len(found) == 20
        assert failures == 1
        assert lookups.is_complete
        assert not lookups.can_look_for_more

    loop.run(run())
