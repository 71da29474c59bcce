"""The parts of a peer's reach together: two of them, one behind the other, over real gRPC on loopback."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from blockswarm.peer.config import ReachMode, RelayQuota
from blockswarm.peer.reach.parts import PeerReach, ReachNeeds
from blockswarm.peer.reach.reach import Listening
from blockswarm.peer.reach.verdict import UNCHECKED, ReachStatus
from blockswarm.peer.session.edge.handshakes import Handshakes
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.records import PeerRecord
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress, RelayedAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, introduction, ping, serve
from blockswarm.proto.wire.handshake import HelloChecker
from blockswarm.proto.wire.messages.relay import ReachRequest
from blockswarm.routing.swarm import ComputeCost, PeerSpec, PeerState
from support.relays import answering

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

DIGEST = "ab" * 32
TIMING = PeerTiming(relay_retry_seconds=0.05, reach_pause_seconds=0.0)


@dataclass
class Peer:
    """A peer that answers pings, and the reach of it."""

    identity: Identity
    reach: PeerReach
    dialer: Dialer
    server: Any
    port: int
    changes: list[float]

    def record(self, state: PeerState = PeerState.SERVING) -> PeerRecord:
        ways = self.reach.ways
        spec = PeerSpec(self.identity.peer_id, None, ComputeCost(0.01), state)
        return PeerRecord(DIGEST, spec, ways.addresses, ways.relays, relay_places=self.reach.relay_places)


@asynccontextmanager
async def peer(
    others: Sequence[Peer], mode: ReachMode = ReachMode.AUTO, quota: RelayQuota | None = None, closed: bool = False,
    state: PeerState = PeerState.SERVING, initial: Sequence[PeerAddress] = (), away: bool = False,
) -> AsyncIterator[Peer]:  # fmt: skip
    """`closed`: others find nothing at the port that it has them check."""
    identity, dialer, changes = Identity.generate(), Dialer(rule=EVERY_RANGE), []

    async def records() -> list[PeerRecord]:
        if away:
            raise PeerUnavailable("the directory is away")
        return [other.record(state) for other in others]

    needs = ReachNeeds(
        identity.peer_id,
        Listening(mode, "127.0.0.1", lambda port: (f"127.0.0.1:{1 if closed else port}",), announced=closed),
        quota, initial, records, dialer, introduction(identity, None),
        HelloChecker(identity.peer_id, time.time, None), Handshakes(15.0).handshake, time.monotonic,
        random.Random(1), TIMING, UNCHECKED,
    )  # fmt: skip
    reach = PeerReach(needs, lambda: changes.append(time.monotonic()))
    server, port = await serve(identity, reach.serving(answering(identity)), "127.0.0.1", 0)
    await reach.ways.start(port)
    running = asyncio.create_task(reach.run())
    try:
        yield Peer(identity, reach, dialer, server, port, changes)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await dialer.close()
        await server.stop(grace=0)


def test_a_peer_behind_another_is_reached_through_it() -> None:
    async def main() -> None:
        async with peer([], quota=RelayQuota(peers=3)) as relay, peer([relay], closed=True) as hidden:
            assert relay.reach.address == PeerAddress(relay.identity.peer_id, f"127.0.0.1:{relay.port}")
            assert relay.reach.relay_places == 3
            await asyncio.wait_for(hidden.reach.ways.until_reachable(), 60)
            address = hidden.reach.address
            assert isinstance(address, RelayedAddress)
            assert address.relay.peer == relay.identity.peer_id
            await ping(relay.dialer.stub(address), address, 10)
            assert hidden.changes, "the record has to say so"
            assert (relay.reach.relay_places, relay.reach.readings["relayed_peers"]) == (2, 1)
            assert relay.reach.readings["relayed_bytes"] > 0
            assert hidden.reach.readings["relays_in_use"] == 1

    asyncio.run(main())


def test_two_that_are_asked_make_an_address_checked() -> None:
    async def main() -> None:
        async with peer([]) as one_of_them, peer([]) as another, peer([one_of_them, another]) as third:
            assert third.reach.ways.verdict.reached is ReachStatus.YES

    asyncio.run(main())


def test_initial_peers_are_asked_also_while_the_directory_is_away() -> None:
    async def main() -> None:
        async with peer([]) as first:
            address = first.reach.address
            assert isinstance(address, PeerAddress)
            async with peer([], initial=[address], closed=True, away=True) as joining:
                assert joining.reach.ways.verdict.reached is ReachStatus.NO

    asyncio.run(main())


def test_a_hidden_peer_relays_for_nobody_and_checks_nobody() -> None:
    """It offers to, as long as it is reached; behind a relay it would only hand on what another one carries."""

    async def main() -> None:
        async with peer([], quota=RelayQuota()) as relay, peer([relay], quota=RelayQuota(), closed=True) as hidden:
            await asyncio.wait_for(hidden.reach.ways.until_reachable(), 60)
            assert hidden.reach.relay_places == 0
            assert hidden.record().relay_places == 0
            async with peer([hidden], ReachMode.RELAY) as third:
                await asyncio.sleep(0.3)
                assert third.reach.address is None
            asker = Identity.generate()
            request = ReachRequest(introduction(asker, None)(hidden.identity.peer_id), relay.port)
            address = hidden.reach.address
            assert address is not None
            with pytest.raises(PeerUnavailable, match="does not see"):
                await relay.dialer.stub(address).reach(request, 10)

    asyncio.run(main())


@pytest.mark.parametrize("state", [PeerState.JOINING, PeerState.DRAINING, PeerState.LEAVING])
def test_peers_that_do_not_serve_are_no_relays_to_count_on(state: PeerState) -> None:
    async def main() -> None:
        async with (
            peer([], quota=RelayQuota()) as relay,
            peer([relay], ReachMode.RELAY, state=state) as hidden,
        ):
            await asyncio.sleep(0.3)
            assert hidden.reach.address is None

    asyncio.run(main())


def test_a_peer_that_offers_no_relaying_has_no_such_calls() -> None:
    async def main() -> None:
        async with peer([]) as plain:
            assert plain.reach.serving(answering(plain.identity)).relay is None
            assert plain.reach.relay_places == 0

    asyncio.run(main())
