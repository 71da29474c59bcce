"""Where a request's time went, as users read it: per hop of its chain, and per step."""

from __future__ import annotations

from dataclasses import dataclass

from ..routing.swarm import BlockRange, PeerId
from ..routing.trust import Evidence


@dataclass(frozen=True, slots=True)
class HopReport:
    """Mean seconds per step on one hop; `network_seconds` is the way from the node before it."""

    peer: PeerId
    blocks: BlockRange
    network_seconds: float
    queue_seconds: float
    compute_seconds: float
    numeric_format: str = ""
    """The format that the peer announces to compute in."""
    weights: Evidence = Evidence.UNOPPOSED
    """Why the weights that the peer announces are believed."""


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Mean seconds per step, over the last steps that went through the whole of the present chain."""

    chain: tuple[tuple[PeerId, BlockRange], ...] = ()
    """The peers in use, and the blocks each computes; of a request that has ended, those used last."""
    hops: tuple[HopReport, ...] = ()
    """Empty before the first answer of this chain."""
    return_seconds: float = 0.0
    """The way from the last hop back to the client."""
    step_seconds: float = 0.0
    """The whole step, as the client saw it."""
    steps: int = 0
    """The number of steps that the means are of."""
    gap_seconds: float = 0.0
    """How much sooner the request may have been done on another chain, as predicted when this one was chosen.

    0: it was proven to be the best. More: the search for it ended with its budget; infinite if nothing is known.
    """

    @property
    def exact(self) -> bool:
        """Whether the chain was proven to be the best."""
        return self.gap_seconds == 0.0
