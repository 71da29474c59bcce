"""Where this client is among the peers, from its own pings; and which peers are worth a ping where there are many.

A client pings few peers in one look: those that are best for some block, as far as coordinates tell, and some at
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
"""Answers with which a look is content, if there is a peer for every block."""
FIRST_PINGS = 10
"""Answers after which a client knows where it is."""
RANDOM_PINGS = 8
"""Pings of a look, of those, to peers at random: they find what coordinates do not tell."""
HOSTS_PER_BLOCK = 3
"""Hosts of each block that are pinged."""


class ClientPlace:
    """The client's own coordinate; None until it is known."""

    def __init__(self, rng: random.Random, monotonic: Callable[[], float]) -> None:
        self.value: Coordinate | None = None
        self._rng = rng
        self._monotonic = monotonic
        self._samples = Samples()

    def note(self, peer: PeerId, rtt_seconds: float) -> None:
        """Take a round trip that was measured."""
        self._samples.add(peer, rtt_seconds, self._monotonic())

    def settle(self, known: Mapping[PeerId, KnownPeer]) -> None:
        """Find the place that the round trips to these peers tell of."""
        places = {peer: those.record.spec.coordinate for peer, those in known.items()}
        self.value = placed(self.value, self._samples.with_places(places, self._monotonic()), self._rng)

    def order(self, specs: Sequence[PeerSpec], known: Mapping[PeerId, KnownPeer], num_blocks: int) -> list[PeerId]:
        """These peers, the ones that are most worth a ping first."""
        measured = {peer: those.rtt_seconds for peer, those in known.items()}
        rtt_seconds = {spec.id: rtt for spec in specs if (rtt := self._rtt_seconds(spec, measured)) is not None}
        chosen = best_hosts(specs, rtt_seconds, num_blocks)[: PINGS_A_LOOK - RANDOM_PINGS]
        taken = frozenset(chosen)
        rest = [spec.id for spec in specs if spec.id not in taken]
        some = self._rng.sample(rest, min(RANDOM_PINGS, len(rest)))
        return [*chosen, *some, *_without(rest, frozenset(some))]

    def _rtt_seconds(self, spec: PeerSpec, measured: Mapping[PeerId, float]) -> float | None:
        """As it was measured, else as it is predicted."""
        if spec.id in measured:
            return measured[spec.id]
        if self.value is None or spec.coordinate is None or not is_plausible(spec.coordinate):
            return None
        return self.value.rtt_seconds(spec.coordinate)


def rough(place: Coordinate | None) -> Coordinate | None:
    """The middle of the cell in which planning puts a client anyway: more is nobody's business."""
    if place is None:
        return None
    axes = (CLIENT_CELL_SECONDS * round(x / CLIENT_CELL_SECONDS) for x in (*place.vector, place.height))
    *vector, height = axes
    return Coordinate(tuple(vector), height, place.error)


def best_hosts(specs: Sequence[PeerSpec], rtt_seconds: Mapping[PeerId, float], num_blocks: int) -> list[PeerId]:
    """The peers that are cheapest for some block: first one host for each block, then a second and a third one.

    What a block costs on a peer is its computation and its share of a visit.  O(n log n + blocks hosted).
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
