"""A peer keeps two relays that work, and finds out which do not: real relays on loopback."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from blockswarm.peer.reach.keeper import RelayKeeper
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, RelayHandlers, introduction, ping
from support.relays import LocalRelay, local_relay

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

TIMING = PeerTiming(
    relay_retry_seconds=0.05, relay_proof_seconds=0.1, relay_shun_seconds=60.0, relay_answer_seconds=1.0
)


class Kept:
    """A peer with a keeper, and the relays that are offered to it."""

    def __init__(self, relays: Sequence[LocalRelay], timing: PeerTiming) -> None:
        self.identity, self.dialer = Identity.generate(), Dialer(rule=EVERY_RANGE)
        self.offered = [relay.address for relay in relays]
        self.changes = 0
        self.keeper = RelayKeeper(
            self.identity.peer_id, self._offers, self.dialer, introduction(self.identity, None), self._changed,
            time.monotonic, random.Random(1), timing,
        )  # fmt: skip

    async def _offers(self) -> Sequence[PeerAddress]:
        if not self.offered:
            raise PeerUnavailable("the directory is away")
        return self.offered

    def _changed(self) -> None:
        self.changes += 1

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - the keeper tells one listener only
                await asyncio.sleep(0.01)


@asynccontextmanager
async def kept(
    count: int, timing: PeerTiming = TIMING, **changes: Callable[[RelayHandlers], RelayHandlers]
) -> AsyncIterator[tuple[Kept, list[LocalRelay]]]:
    """`changes`: what the relay of that number ("r0") does instead of the usual."""
    async with AsyncExitStack() as stack:
        relays = [
            await stack.enter_async_context(local_relay(change=changes.get(f"r{number}", lambda usual: usual)))
            for number in range(count)
        ]
        peer = Kept(relays, timing)
        local = await relays[0].serve_peer(peer.identity)
        running = asyncio.create_task(peer.keeper.run(local))
        try:
            yield peer, relays
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert peer.keeper.relays == (), "no place is held when the keeper has ended"
            await peer.dialer.close()


def test_a_peer_holds_two_places_while_it_wants_them() -> None:
    async def main() -> None:
        async with kept(3) as (peer, relays):
            await asyncio.sleep(0.2)
            assert peer.keeper.relays == (), "not wanted yet"
            peer.keeper.wanted.set()
            await peer.until(lambda: len(peer.keeper.relays) == 2)
            assert 0 < peer.keeper.rtt_seconds < 5
            nearest = peer.keeper.nearest
            assert nearest is not None
            assert nearest.peer == peer.keeper.relays[0]
            used = [relay for relay in relays if relay.address.peer in peer.keeper.relays]
            for relay in used:
                address = relay.reach(peer.identity)
                await ping(relay.dialer().stub(address), address, 10)
            assert sum(relay.service.table.peers for relay in relays) == 2
            peer.keeper.wanted.clear()
            peer.keeper.release()
            await peer.until(lambda: not peer.keeper.relays)
            await peer.until(lambda: sum(relay.service.table.peers for relay in relays) == 0)

    asyncio.run(main())


def test_when_a_relay_dies_another_one_takes_its_place() -> None:
    async def main() -> None:
        async with kept(3) as (peer, relays):
            peer.keeper.wanted.set()
            await peer.until(lambda: len(peer.keeper.relays) == 2)
            first = peer.keeper.relays
            dead = next(relay for relay in relays if relay.address.peer == first[0])
            before = peer.changes
            await dead.server.stop(grace=0)
            await peer.until(lambda: first[0] not in peer.keeper.relays)
            assert peer.changes > before, "the record has to say so"
            await peer.until(lambda: len(peer.keeper.relays) == 2)
            assert first[1] in peer.keeper.relays

    asyncio.run(main())


def test_a_relay_that_takes_a_place_and_passes_nothing_on_is_not_used() -> None:
    def swallowing(usual: RelayHandlers) -> RelayHandlers:
        async def connect(stream: Any, host: str) -> None:
            while await stream.read() is not None:
                pass

        return dataclasses.replace(usual, connect=connect)

    async def main() -> None:
        timing = dataclasses.replace(TIMING, relay_answer_seconds=0.3)
        async with kept(2, timing, r0=swallowing, r1=lambda usual: usual) as (peer, relays):
            peer.keeper.wanted.set()
            await peer.until(lambda: bool(peer.keeper.relays))
            await asyncio.sleep(1.0)
            assert peer.keeper.relays == (relays[1].address.peer,)

    asyncio.run(main())


@pytest.mark.long
def test_a_relay_that_stops_passing_on_is_left() -> None:
    stopped = [False]

    def breaking(usual: RelayHandlers) -> RelayHandlers:
        async def connect(stream: Any, host: str) -> None:
            if stopped[0]:
                while await stream.read() is not None:
                    pass
            else:
                await usual.connect(stream, host)

        return dataclasses.replace(usual, connect=connect)

    async def main() -> None:
        async with kept(1, dataclasses.replace(TIMING, relay_answer_seconds=0.3), r0=breaking) as (peer, _):
            peer.keeper.wanted.set()
            await peer.until(lambda: bool(peer.keeper.relays))
            stopped[0] = True
            await peer.until(lambda: not peer.keeper.relays)
            await asyncio.sleep(0.3)
            assert peer.keeper.relays == (), "it is left for a while"

    asyncio.run(main())


def test_without_an_offer_it_looks_on() -> None:
    async def main() -> None:
        async with kept(1) as (peer, relays):
            offered, peer.offered = peer.offered, []
            peer.keeper.wanted.set()
            await asyncio.sleep(0.2)
            assert peer.keeper.relays == ()
            relays[0].offering = False
            peer.offered = offered
            await asyncio.sleep(0.2)
            assert peer.keeper.relays == (), "it has refused"

    asyncio.run(main())


def test_a_peer_never_uses_itself() -> None:
    async def main() -> None:
        async with kept(1) as (peer, relays):
            peer.offered = [PeerAddress(peer.identity.peer_id, relays[0].address.target)]
            peer.keeper.wanted.set()
            await asyncio.sleep(0.2)
            assert peer.keeper.relays == ()

    asyncio.run(main())
