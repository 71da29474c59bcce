"""Random swarms of volunteers: the kinds of peers that a swarm is made of, and where they are."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ...swarm import ComputeCost, Coordinate, ModelSpec, PeerId, PeerSpec, PeerState


@dataclass(frozen=True, slots=True)
class Population:
    """The kinds of peers that a swarm is made of. Memory in bytes, times in seconds per block."""

    model: ModelSpec
    fast_fraction: float = 0.2
    fast_memory_bytes: tuple[float, ...] = (24e9, 40e9, 80e9)
    fast_decode_seconds: tuple[float, float] = (0.002, 0.005)
    slow_memory_bytes: tuple[float, ...] = (8e9, 10e9, 12e9, 16e9, 24e9)
    slow_decode_seconds: tuple[float, float] = (0.005, 0.02)

    def peer(self, number: int, rng: random.Random) -> PeerSpec:
        """A new peer that hosts nothing yet, somewhere on three continents."""
        fast = rng.random() < self.fast_fraction
        decode = rng.uniform(*(self.fast_decode_seconds if fast else self.slow_decode_seconds))
        centre = rng.choice(((0.0, 0.0), (0.045, 0.01), (0.02, 0.08)))
        return PeerSpec(
            id=PeerId(f"peer{number:05d}"),
            blocks=None,
            cost=ComputeCost(decode_fixed=decode, prefill_fixed=2 * decode, prefill_per_token=decode / 100),
            state=PeerState.JOINING,
            memory_bytes=rng.choice(self.fast_memory_bytes if fast else self.slow_memory_bytes),
            coordinate=Coordinate(
                (centre[0] + rng.gauss(0, 0.008), centre[1] + rng.gauss(0, 0.008), rng.gauss(0, 0.004)),
                height=rng.lognormvariate(-4.8, 0.6),
                error=0.1,
            ),
        )


BLOOM = ModelSpec(num_blocks=70, block_bytes=1.3234e9, kv_bytes_per_token=57344.0)
"""The model of the published experiments: 70 blocks of 1.3 GB in four bits, 56 KiB of cache per token and block."""
