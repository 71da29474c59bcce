"""Any number of peers that exist in their records only, really signed, and answer pings after the round trip to them.

They live in a few regions, host some blocks each, and announce coordinates from which their true round trips differ by
up to a tenth.  Look-ups are answered by the nodes that are given for that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import (
    LOOKUP_REPLY,
    LOOKUP_REQUEST,
    PING_REPLY,
    PING_REQUEST,
    LookupReply,
    LookupRequest,
    PingReply,
    PingRequest,
)
from blockswarm.routing.swarm import BlockRange, ComputeCost, Coordinate, PeerId, PeerSpec

DIGEST = "ab" * 32
BLOCKS = 32
REGIONS = ((0.0, 0.0), (0.08, 0.0), (0.09, 0.06), (0.02, 0.12))
"""Where peers live, in seconds of round trip."""
WIDTH = 0.008
NOISE = 0.1

Answer = Callable[[LookupRequest], Awaitable[LookupReply]]


@dataclass(frozen=True)
class Crowd:
    """Peers with records and true places."""

    records: tuple[SignedRecord, ...]
    specs: Mapping[PeerId, PeerSpec]
    true_places: Mapping[PeerId, Coordinate]

    @classmethod
    def of(cls, count: int, expires_at: float, seed: int = 1) -> Crowd:
        """The same one for the same arguments, but for the identities."""
        rng = random.Random(seed)
        records, specs, places = [], {}, {}
        for number in range(count):
            identity = Identity.generate()
            place = place_in(rng.choice(REGIONS), rng)
            spec = _spec(identity.peer_id, place, rng, expires_at, number)
            said = PeerRecord(
                DIGEST, spec, addresses=(f"198.51.{number // 250}.{number % 250 + 1}:31330",),
                dht_maddrs=(f"/ip4/198.51.{number // 250}.{number % 250 + 1}/tcp/31331",),
                incarnation=number + 1, protocol_version=PROTOCOL_VERSION, software_version="1.0.0",
            )  # fmt: skip
            records.append(sign_peer_record(identity, said, None, expires_at))
            specs[spec.id], places[spec.id] = spec, place
        return cls(tuple(records), specs, places)


def place_in(region: tuple[float, float], rng: random.Random) -> Coordinate:
    """Somewhere in a region."""
    x, y = (rng.gauss(middle, WIDTH) for middle in region)
    return Coordinate((x, y, rng.gauss(0.0, WIDTH / 4)), abs(rng.gauss(0.002, 0.002)) + 1e-4, 0.1)


def _spec(peer: PeerId, place: Coordinate, rng: random.Random, expires_at: float, number: int) -> PeerSpec:
    """The first eight peers have all blocks between them."""
    length = rng.randint(4, 12)
    start = rng.randint(0, BLOCKS - length) if number >= 8 else min(4 * number, BLOCKS - length)
    wrong = [x * rng.uniform(1 - NOISE, 1 + NOISE) for x in (*place.vector, place.height)]
    return PeerSpec(
        peer, BlockRange(start, start + length), ComputeCost(rng.uniform(0.001, 0.006), 1e-4, 1e-7, 1e-3, 1e-4, 1e-3),
        memory_bytes=int(8e9), block_bytes=2e8, kv_bytes_per_token=4096, load_seconds=2.5,
        kv_tokens_total=100_000, kv_tokens_free=60_000,
        coordinate=Coordinate(tuple(wrong[:-1]), wrong[-1], 0.1),
        concurrency=1.5, block_hashes=tuple(f"{block:08d}".encode() for block in range(start, start + length)),
        numeric_format="bfloat16", stream_format="bfloat16", issued_seconds=expires_at - 60,
    )  # fmt: skip


@dataclass
class Traffic:
    """The calls of one client."""

    lookups: int = 0
    lookup_bytes: int = 0
    """Questions and answers."""
    pings: int = 0
    ping_bytes: int = 0
    pinged: set[PeerId] = field(default_factory=set)


class CrowdDialer:
    """Stands for the network between a client at a place and a crowd, and counts what goes over it."""

    def __init__(self, crowd: Crowd, place: Coordinate, nodes: Mapping[PeerId, Answer]) -> None:
        """`nodes`: those that answer look-ups, besides pings."""
        self.traffic = Traffic()
        self._crowd = crowd
        self._place = place
        self.nodes = dict(nodes)

    def rtt_seconds(self, peer: PeerId) -> float:
        """The true round trip."""
        place = self._crowd.true_places.get(peer)
        return self._place.rtt_seconds(place) if place is not None else 0.0

    def renew(self, address: PeerAddress) -> None:
        """There are no connections."""

    def stub(self, address: PeerAddress) -> Any:
        async def lookup(request: LookupRequest, timeout: float) -> LookupReply:
            await asyncio.sleep(self.rtt_seconds(address.peer))
            reply = await self.nodes[address.peer](request)
            self.traffic.lookups += 1
            self.traffic.lookup_bytes += len(LOOKUP_REQUEST.encode(request)) + len(LOOKUP_REPLY.encode(reply))
            return reply

        async def ping(request: PingRequest, timeout: float) -> PingReply:
            await asyncio.sleep(self.rtt_seconds(address.peer))
            reply = PingReply(
                1.8e9, address.peer, PROTOCOL_VERSION, DIGEST, "a-model-with-a-name-of-usual-length", 10**6, 10**4,
                10**6, 10**3, 3, 0, 60_000, 10**8, tuple(f"/ip4/{host}/tcp/31331" for host in ("198.51.100.1",) * 2),
            )  # fmt: skip
            self.traffic.pings += 1
            self.traffic.pinged.add(address.peer)
            self.traffic.ping_bytes += len(PING_REQUEST.encode(request)) + len(PING_REPLY.encode(reply))
            return reply

        return SimpleNamespace(lookup=lookup, ping=ping)
