"""This client's network coordinate, from its own pings; and which peers to ping if there are many.

A client pings only a few peers in one look: those that coordinates predict to be best for some block, and some at
random. No I/O.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence

from ...routing.coordinates import Samples, is_plausible, placed
from ...routing.nearby import cover
from ...routing.swarm import Coordinate, PeerId, PeerSpec, PeerState
from ...routing.timing import CLIENT_CELL_SECONDS
from .known import KnownPeer

PINGS_A_LOOK = 40
"""A look may end after this many answers, if they include a host for every block."""
FIRST_PINGS = 10
"""The number of answers from which a client computes its first coordinate."""
RANDOM_PINGS = 8
"""How many of a look's pings go to random peers: they find what coordinates miss."""
HOSTS_PER_BLOCK = 3
"""How many hosts of each block are pinged."""


class ClientPlace:
    """The client's own coordinate; None until it is known."""

    def __init__(self, rng: random.Random, monotonic: Callable[[], float]) -> None:
        self.value: Coordinate | None = None
        self._rng = rng
        self._monotonic = monotonic
        self._samples = Samples()

    def note(self, peer: PeerId, rtt_seconds: float) -> None:
        """Record a measured round trip."""
        self._samples.add(peer, rtt_seconds, self._monotonic())

    def settle(self, known: Mapping[PeerId, KnownPeer]) -> None:
        """Update the coordinate from the round trips to these peers."""
        places = {peer: those.record.spec.coordinate for peer, those in known.items()}
        self.value = placed(self.value, self._samples.with_places(places, self._monotonic()), self._rng)

    def order(self, specs: Sequence[PeerSpec], known: Mapping[PeerId, KnownPeer], num_blocks: int) -> list[PeerId]:
        """Return these peers, the most useful ones to ping first."""
        measured = {peer: those.rtt_seconds for peer, those in known.items()}
        rtt_seconds = {spec.id: rtt for spec in specs if (rtt := self._rtt_seconds(spec, measured)) is not None}
        chosen = best_hosts(specs, rtt_seconds, num_blocks)[: PINGS_A_LOOK - RANDOM_PINGS]
        taken = frozenset(chosen)
        rest = [spec.id for spec in specs if spec.id not in taken]
        some = self._rng.sample(rest, min(RANDOM_PINGS, len(rest)))
        return [*chosen, *some, *_without(rest, frozenset(some))]

    def _rtt_seconds(self, spec: PeerSpec, measured: Mapping[PeerId, float]) -> float | None:
        """Return the measured round trip to a peer, else the predicted one, else None."""
        if spec.id in measured:
            return measured[spec.id]
        if self.value is None or spec.coordinate is None or not is_plausible(spec.coordinate):
            return None
        return self.value.rtt_seconds(spec.coordinate)


def rough(place: Coordinate | None) -> Coordinate | None:
    """Round a coordinate to the middle of its cell: placement needs no more, and peers should know no more."""
    if place is None:
        return None
    axes = (CLIENT_CELL_SECONDS * round(x / CLIENT_CELL_SECONDS) for x in (*place.vector, place.height))
    *vector, height = axes
    return Coordinate(tuple(vector), height, place.error)


def best_hosts(specs: Sequence[PeerSpec], rtt_seconds: Mapping[PeerId, float], num_blocks: int) -> list[PeerId]:
    """Return the cheapest peers for every block: first one host of each block, then a second and a third one.

    The cost of a block on a peer is its computation plus its share of a visit.  O(n log n + blocks hosted).
    """
    ranked = sorted(
        (spec.cost.decode_seconds() + (spec.cost.visit + rtt_seconds[spec.id]) / len(spec.blocks), spec.id, spec.blocks)
        for spec in specs
        if spec.blocks is not None and spec.state is PeerState.SERVING and spec.id in rtt_seconds
    )
    ranges = [(blocks.start, blocks.stop) for _, _, blocks in ranked]
    return [ranked[i][1] for i in cover(ranges, num_blocks, HOSTS_PER_BLOCK, most=len(ranked))]


def _without(peers: Sequence[PeerId], others: Collection[PeerId]) -> list[PeerId]:
    return [peer for peer in peers if peer not in others]
