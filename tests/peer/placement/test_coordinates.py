"""The own coordinate: from pings, towards the truth, and unharmed by peers that announce nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from blockswarm.peer.placement.coordinates import OwnCoordinate
from blockswarm.proto.directory.records import PeerRecord
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.routing.coordinates import ORIGIN
from blockswarm.routing.swarm import ComputeCost, Coordinate, PeerSpec
from support.virtual_time import VirtualTimeLoop


def CLOCK() -> float:
    return 0.0


HERE = Coordinate((0.03, 0.0, 0.0), height=0.002, error=0.1)


def at(coordinate: Coordinate | None) -> PeerRecord:
    spec = PeerSpec(Identity.generate().peer_id, None, ComputeCost(1.0), coordinate=coordinate)
    return PeerRecord("ab" * 32, spec, ("127.0.0.1:1",))


PEERS = [at(Coordinate((x, y, 0.0), height=0.001, error=0.1)) for x in (0.0, 0.05) for y in (0.0, 0.04)]


def test_pings_lead_to_where_the_peer_is() -> None:
    async def ping(record: PeerRecord) -> float:
        assert record.spec.coordinate is not None
        return HERE.rtt_seconds(record.spec.coordinate)

    own = OwnCoordinate(ping, random.Random(1), CLOCK)
    asyncio.run(own.measure(PEERS, 4))
    assert own.value is not None
    for record in PEERS:
        assert record.spec.coordinate is not None
        wanted = HERE.rtt_seconds(record.spec.coordinate)
        assert own.value.rtt_seconds(record.spec.coordinate) == pytest.approx(wanted, rel=0.2)


def test_pings_wait_for_each_other_s_answers_together() -> None:
    """A peer that begins pings eight; silent ones, one after the other, cost it most of a minute."""

    async def silent(record: PeerRecord) -> float:
        await asyncio.sleep(5)
        raise PeerUnavailable("nobody is there")

    with contextlib.closing(VirtualTimeLoop()) as loop:
        loop.run(OwnCoordinate(silent, random.Random(1), CLOCK).measure(PEERS * 4, 8))
        assert loop.time() == 5


def test_the_first_peer_is_the_origin_and_others_wait_for_an_answer() -> None:
    async def silent(record: PeerRecord) -> float:
        raise PeerUnavailable("nobody is there")

    first, second = (OwnCoordinate(silent, random.Random(1), CLOCK) for _ in range(2))
    asyncio.run(first.measure([at(None)]))
    assert first.value == ORIGIN
    asyncio.run(second.measure(PEERS))
    assert second.value is None


@pytest.mark.parametrize("place", [Coordinate((1.0,)), Coordinate((900.0, 0.0, 0.0))])
@pytest.mark.parametrize("seconds", [0.0, 0.01, 1e9])
def test_nonsense_moves_nobody(place: Coordinate, seconds: float) -> None:
    async def ping(record: PeerRecord) -> float:
        return seconds

    own = OwnCoordinate(ping, random.Random(1), CLOCK)
    asyncio.run(own.measure([at(place)]))
    assert own.value is None
