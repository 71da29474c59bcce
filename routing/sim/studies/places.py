"""Do network coordinates predict round trips, how soon, and does a swarm rest, with and without nodes that lie?

The nodes of a matrix of round trips measure each other as peers do: one that joins pings eight random nodes that have a
place, and from then on one every ten seconds; a place is announced as `placed` says.  A measured round trip is the true
one and noise.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...coordinates import (
    DIMENSIONS,
    MAX_PLACE,
    MIN_HEIGHT,
    ORIGIN,
    Accuracy,
    Samples,
    accuracy,
    placed,
)
from ...swarm import Coordinate, PeerId

PINGS_AT_START = 8


class Lie(enum.Enum):
    """Ways to lie; each liar announces an error of 0, so that it is believed most."""

    WANDER = "wander"
    """It announces random places, and answers pings up to half a second late."""
    CROWD = "crowd"
    """All of them announce one place that is far away, and answer late likewise."""
    NEAR = "near"
    """It announces the origin, where it is not."""
    FAR = "far"
    """It announces a place at the end of the world."""


@dataclass
class PlacedSwarm:
    """The nodes of a network that find their places; node 0 is the first one, and honest."""

    rtt_seconds: NDArray[np.float64]
    """(n, n). May be exchanged while it runs."""
    rng: random.Random
    jitter: float = 0.1
    """Mean of the noise, relative to the round trip; exponential, and another 0.3 ms by the machines."""
    liars: Mapping[int, Lie] = field(default_factory=dict)
    turn_seconds: float = 10.0
    turns: int = 0
    changes: list[int] = field(default_factory=list)
    """The number of honest nodes that announced something else, for each turn."""

    def __post_init__(self) -> None:
        count = len(self.rtt_seconds)
        self._ids = [PeerId(str(node)) for node in range(count)]
        self._samples = [Samples() for _ in range(count)]
        self._places: dict[PeerId, Coordinate] = {self._ids[0]: ORIGIN}

    @property
    def honest(self) -> list[int]:
        return [node for node in range(len(self._ids)) if node not in self.liars]

    @property
    def places(self) -> tuple[Coordinate, ...]:
        """Those of the honest nodes."""
        return tuple(self._places.get(self._ids[node], ORIGIN) for node in self.honest)

    def place(self, node: int) -> Coordinate | None:
        """Where a node, honest or not, says that it is."""
        return self._places.get(self._ids[node])

    def run(self, turns: int) -> None:
        """Let every node have its turn that many times, in random order."""
        for _ in range(turns):
            self.changes.append(0)
            for node in self.rng.sample(range(len(self._ids)), len(self._ids)):
                if node in self.liars:
                    self._places[self._ids[node]] = self._lie(self.liars[node], node)
                else:
                    self.changes[-1] += self._turn(node)
            self.turns += 1

    def accuracy(self) -> Accuracy:
        """How well the honest nodes' coordinates predict their round trips."""
        return accuracy(self.places, self.rtt_seconds[np.ix_(self.honest, self.honest)])

    def _turn(self, node: int) -> bool:
        """Whether the node announces another place afterwards."""
        own, now = self._ids[node], self.turns * self.turn_seconds
        others = [peer for peer in self._places if peer != own]
        before = self._places.get(own)
        pings = PINGS_AT_START if before is None else 1
        for peer in self.rng.sample(others, min(pings, len(others))):
            self._samples[node].add(peer, self._measured(node, int(peer)), now)
        place = placed(before, self._samples[node].with_places(self._places, now), self.rng)
        if place is None or place == before:
            return False
        self._places[own] = place
        return True

    def _measured(self, node: int, other: int) -> float:
        seconds = float(self.rtt_seconds[node, other])
        if self.jitter:
            seconds += self.rng.expovariate(1 / (self.jitter * seconds)) + self.rng.expovariate(1 / 3e-4)
        late = self.liars.get(other) in (Lie.WANDER, Lie.CROWD)
        return seconds + (self.rng.uniform(0.0, 0.5) if late else 0.0)

    def _lie(self, lie: Lie, node: int) -> Coordinate:
        here = self._places.get(self._ids[node])
        match lie:
            case Lie.WANDER if here is not None and self.turns % 10:
                return here
            case Lie.WANDER:
                return Coordinate(tuple(self.rng.uniform(-0.3, 0.3) for _ in range(DIMENSIONS)), 0.001, 0.0)
            case Lie.CROWD:
                return Coordinate((0.5,) * DIMENSIONS, MIN_HEIGHT, 0.0)
            case Lie.NEAR:
                return Coordinate((0.0,) * DIMENSIONS, MIN_HEIGHT, 0.0)
            case Lie.FAR:
                return Coordinate((MAX_PLACE,) * DIMENSIONS, MAX_PLACE, 0.0)
