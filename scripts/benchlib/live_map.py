"""How many peers a client pings, and how good the chains are that it chooses then, against the true round trips.

Peers on a synthetic planet have found their coordinates as peers do (`routing/sim/studies/places.py`, five minutes,
10 % of noise).  A client's real looks (`client/swarm/meeting.py`) ping them over a network that takes the true times,
and the real router chooses a chain.  *Ratio*: the true time of a decode step through that chain over that of the best
chain of all peers, by an exact search that knows all true round trips.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.look import Found
from blockswarm.client.swarm.meeting import Meetings
from blockswarm.client.swarm.place import PINGS_A_LOOK
from blockswarm.client.swarm.snapshot import PreparedSwarm
from blockswarm.client.swarm.weights import WeightTrust
from blockswarm.client.timing import ClientTiming
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import PingReply
from blockswarm.routing.route.predict import predict_step
from blockswarm.routing.route.router import RouteFinder, RouteQuery
from blockswarm.routing.sim.studies.places import Lie, PlacedSwarm
from blockswarm.routing.sim.worlds.geography import Planet
from blockswarm.routing.swarm import BlockRange, Hop, ModelSpec, PeerId, PeerSpec, RequestSpec, Swarm

from .routes import BLOCKS, random_peer

CLIENTS, LOOKS = 6, 3
REQUEST = RequestSpec(16, 256)
TURNS = 30


@dataclass(frozen=True)
class World:
    """Peers, then clients, and their true round trips."""

    peers: tuple[PeerSpec, ...]
    rtt_seconds: np.ndarray
    """(peers + clients, peers + clients)"""

    @classmethod
    def of(cls, count: int, lying: float) -> World:
        rng = random.Random(count)
        rtt = Planet().rtt_seconds(count + CLIENTS, rng)
        liars = dict.fromkeys(rng.sample(range(1, count), round(lying * count)), Lie.WANDER)
        placed = PlacedSwarm(rtt[:count, :count], rng, liars=liars)
        placed.run(TURNS)
        shapes = np.random.default_rng(count)
        peers = (random_peer(shapes, number, 0.0) for number in range(count))
        return cls(tuple(replace(peer, coordinate=placed.place(j)) for j, peer in enumerate(peers)), rtt)

    def rtts_of(self, client: int) -> dict[PeerId, float]:
        row = self.rtt_seconds[len(self.peers) + client]
        return {peer.id: float(row[j]) for j, peer in enumerate(self.peers)}

    def between(self, a: PeerId, b: PeerId) -> float:
        return float(self.rtt_seconds[number_of(a), number_of(b)])


def number_of(peer: PeerId) -> int:
    """Its row, from the id that `random_peer` made."""
    return int(peer.removeprefix("peer"))


class Dialer:
    """Answers pings after the true round trip, and counts them."""

    def __init__(self, rtt_seconds: Mapping[PeerId, float]) -> None:
        self._rtt_seconds = rtt_seconds
        self.asked: set[PeerId] = set()
        self.pings = 0

    def stub(self, reach: PeerAddress) -> Any:
        async def ping(request: object, timeout: float) -> PingReply:
            self.asked.add(reach.peer)
            self.pings += 1
            await asyncio.sleep(self._rtt_seconds[reach.peer])
            return PingReply(protocol=PROTOCOL_VERSION)

        return SimpleNamespace(ping=ping)


def found_of(spec: PeerSpec) -> Found:
    return Found(SimpleNamespace(spec=spec, incarnation=1), b"", (PeerAddress(spec.id, "h:1"),))  # type: ignore[arg-type]


async def look(world: World, client: int, most_pings: int) -> tuple[PreparedSwarm, dict[str, float]]:
    """The swarm as a client has prepared it after some looks, and its pings."""
    dialer = Dialer(world.rtts_of(client))
    meetings = Meetings(
        dialer,
        BLOCKS,
        ClientTiming(),
        random.Random(client),
        most_pings=most_pings,  # type: ignore[arg-type]
    )
    known: Mapping[PeerId, KnownPeer] = {}
    found = {spec.id: found_of(spec) for spec in world.peers}
    pings = []
    for _ in range(LOOKS):
        dialer.asked.clear()
        known = await meetings.look(found, known)
        pings.append(len(dialer.asked))
    prepared = PreparedSwarm.of(known, BLOCKS, True, WeightTrust({}), place=meetings.place.value)
    return prepared, {"first": pings[0], "later": pings[-1]}


def chain_of(finder: RouteFinder) -> tuple[Hop, ...]:
    usable = np.ones(len(finder.peers), dtype=bool)
    return finder.cheapest_route(RouteQuery(REQUEST, BlockRange(0, BLOCKS), usable, 0.0)).hops


def true_seconds(world: World, client: int, hops: tuple[Hop, ...]) -> float:
    specs = {peer.id: peer for peer in world.peers}
    return predict_step(
        [(specs[hop.peer], hop.blocks) for hop in hops],
        tokens=1,
        client_rtt_seconds=world.rtts_of(client),
        peer_rtt_seconds=world.between,
    ).step_seconds


def best_seconds(world: World, client: int) -> float:
    swarm = Swarm(ModelSpec(BLOCKS), tuple(sorted(world.peers, key=lambda peer: peer.id)))
    return true_seconds(world, client, chain_of(RouteFinder(swarm, world.rtts_of(client), world.between)))


def without_coordinates(world: World) -> World:
    return World(tuple(replace(peer, coordinate=None) for peer in world.peers), world.rtt_seconds)


CASES: dict[str, tuple[Callable[[World], World], int]] = {
    "every peer pinged, no coordinates": (without_coordinates, 10**6),
    "every peer pinged, coordinates": (lambda world: world, 10**6),
    f"{PINGS_A_LOOK} pings, coordinates": (lambda world: world, PINGS_A_LOOK),
}


def live_map() -> dict[str, Any]:
    """By number of peers, share of liars, and what the client does."""
    report: dict[str, Any] = {}
    for count, lying in ((30, 0.0), (100, 0.0), (300, 0.0), (300, 0.1)):
        world = World.of(count, lying)
        best = [best_seconds(world, client) for client in range(CLIENTS)]
        for name, (seen, most_pings) in CASES.items():
            pings, ratios = [], []
            for client in range(CLIENTS):
                prepared, count_of = asyncio.run(look(seen(world), client, most_pings))
                pings.append(count_of)
                ratios.append(true_seconds(world, client, chain_of(prepared.finder)) / best[client])
            label = f"{count} peers, {lying:.0%} lie, {name}"
            report[label] = {
                "first_look_peers": float(np.mean([each["first"] for each in pings])),
                "later_look_peers": float(np.mean([each["later"] for each in pings])),
                "ratio_mean": float(np.mean(ratios)),
                "ratio_worst": float(np.max(ratios)),
            }
            print(f"{label}: {report[label]}", file=sys.stderr, flush=True)
    return report
