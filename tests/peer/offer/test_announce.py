"""A peer's own record is always among those that it serves, however slow the directory is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from blockswarm.peer.offer.announce import Announcer
from blockswarm.peer.offer.lookups import RecentLookups
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.records import PeerRecord
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.directory.swarm_key import swarm_key_name
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec, PeerState

DIGEST = "ab" * 32
NAME = swarm_key_name(DIGEST, None)


class SlowDirectory:
    """Finds nothing, late."""

    def __init__(self) -> None:
        self.announced: list[SignedRecord] = []
        self.answer = asyncio.Event()

    async def announce(self, record: SignedRecord) -> None:
        self.announced.append(record)

    async def lookup(self, name: str) -> Sequence[SignedRecord]:
        await self.answer.wait()
        return ()

    async def close(self) -> None:
        """Nothing to do."""


def test_who_asks_at_once_finds_the_peer_itself() -> None:
    async def scenario() -> None:
        now = 1_000_000.0
        identity, directory = Identity.generate(), SlowDirectory()
        lookups = RecentLookups(directory, DIGEST, None, lambda: now, PeerTiming())
        directory.answer.set()
        assert await lookups.records() == ()  # seen before the peer was announced
        directory.answer.clear()

        def record(state: PeerState, issued_seconds: float) -> PeerRecord:
            assert issued_seconds == now
            spec = PeerSpec(identity.peer_id, BlockRange(0, 2), ComputeCost(1e-3), state, block_hashes=(b"8" * 8,) * 2)
            return PeerRecord(
                model_digest=DIGEST, spec=spec, addresses=("127.0.0.1:1",), incarnation=7,
                protocol_version=PROTOCOL_VERSION,
            )  # fmt: skip

        rng, timing = random.Random(1), PeerTiming()
        announcer = Announcer(directory, identity, None, record, lambda: now, rng, lookups.announced, timing)
        await announcer.change(PeerState.SERVING)
        assert await lookups.lookup(NAME) == [directory.announced[0].encode()]
        now += 10
        await announcer.change(PeerState.LEAVING)
        assert await lookups.lookup(NAME) == [directory.announced[1].encode()]
        now += 1000
        directory.answer.set()
        assert await lookups.lookup(NAME) == []
        await lookups.close()

    asyncio.run(scenario())
