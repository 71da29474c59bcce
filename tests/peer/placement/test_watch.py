"""A peer plans with what it sees, and does not plan when it sees nobody."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

import pytest
from blockswarm.peer.placement.watch import SwarmWatch
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.transport import Dialer
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec

DIGEST, NOW = "ab" * 32, 1.7e9


def test_a_peer_that_is_cut_off_does_not_plan_as_if_the_others_were_gone() -> None:
    """Its node of the DHT finds what it has itself; taking that for the swarm it would move to everybody's blocks."""
    other = Identity.generate()
    spec = PeerSpec(
        other.peer_id, BlockRange(0, 2), ComputeCost(1e-3), block_hashes=(b"8" * 8,) * 2, issued_seconds=NOW
    )
    found: list[SignedRecord] = []
    isolated = True

    async def records() -> Sequence[SignedRecord]:
        return found

    async def scenario() -> None:
        nonlocal isolated
        own, dialer = Identity.generate().peer_id, Dialer()
        watch = SwarmWatch(own, 4, records, None, dialer, lambda: NOW, random.Random(1), PeerTiming(), lambda: isolated)
        own_spec = PeerSpec(own, None, ComputeCost(1e-3))
        alone = await watch.snapshot(lambda: own_spec)  # nobody was ever seen: a first peer that is started again
        assert [peer.id for peer in alone.peers] == [own]
        isolated, found[:] = False, [sign_peer_record(other, PeerRecord(DIGEST, spec), None, NOW + 60)]
        assert len((await watch.snapshot(lambda: own_spec)).peers) == 2
        isolated = True
        found.clear()
        with pytest.raises(PeerUnavailable, match="no other node"):
            await watch.snapshot(lambda: own_spec)
        await dialer.close()

    asyncio.run(scenario())


def test_a_peer_hears_of_others_with_other_weights(caplog: pytest.LogCaptureFixture) -> None:
    other, own = Identity.generate(), Identity.generate().peer_id
    spec = PeerSpec(
        other.peer_id, BlockRange(0, 2), ComputeCost(1e-3), block_hashes=(b"8" * 8,) * 2, issued_seconds=NOW
    )
    mine = PeerSpec(own, BlockRange(1, 3), ComputeCost(1e-3), block_hashes=(b"9" * 8,) * 2, issued_seconds=NOW)

    async def records() -> Sequence[SignedRecord]:
        return [sign_peer_record(other, PeerRecord(DIGEST, spec), None, NOW + 60)]

    async def scenario() -> None:
        dialer = Dialer()
        watch = SwarmWatch(own, 4, records, None, dialer, lambda: NOW, random.Random(1), PeerTiming())
        await watch.snapshot(lambda: mine)
        await dialer.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert f"peer {other.peer_id} announces other weights for blocks 1:2" in caplog.text
