"""A move of the online rule, and the policy that the rule follows."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, replace

from ..swarm import BlockRange, PeerId, PeerState, RequestSpec, Swarm
from ..timing import (
    CLAIM_LIFETIME_SECONDS,
    CLOCK_TOLERANCE_SECONDS,
    PEER_MEMORY_SECONDS,
    RECORD_LIFETIME_SECONDS,
    RECORD_REFRESH_SECONDS,
)


@dataclass(frozen=True, slots=True)
class ClaimTiming:
    """The times by which claims and records are judged: those of routing/timing.py, or a faster swarm's in a test."""

    refresh_seconds: float = RECORD_REFRESH_SECONDS
    record_lifetime_seconds: float = RECORD_LIFETIME_SECONDS
    clock_tolerance_seconds: float = CLOCK_TOLERANCE_SECONDS
    claim_lifetime_seconds: float = CLAIM_LIFETIME_SECONDS
    peer_memory_seconds: float = PEER_MEMORY_SECONDS


@dataclass(frozen=True, slots=True)
class ReplanPolicy:
    """The assumptions of the rule; the same on all peers of a swarm."""

    request: RequestSpec = field(default_factory=lambda: RequestSpec(prompt_tokens=512, new_tokens=256))
    """The request that the swarm is planned for."""
    horizon_seconds: float = 4 * 3600.0
    """How long an improvement is expected to last.  Saved time is counted for as many consecutive requests as the swarm
    would serve in this time if it were placed from scratch."""
    load_bytes_per_second: float = 25e6
    """Assumed speed at which a peer fetches and loads weights, until it has measured it (`PeerSpec.load_seconds`)."""
    min_gain: float = 0.03
    """Improvements of less than this fraction of the request time are not begun."""
    timing: ClaimTiming = field(default_factory=ClaimTiming)

    def __post_init__(self) -> None:
        for name in ("horizon_seconds", "load_bytes_per_second"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        if not 0 < self.min_gain < 1:
            raise ValueError(f"min_gain must be between 0 and 1, not {self.min_gain}")


class Reason(enum.Enum):
    """Why a move is worth making."""

    JOIN = "join"
    REPAIR = "repair"
    IMPROVE = "improve"


@dataclass(frozen=True, slots=True)
class Move:
    """`peer` should host `after` instead of `before` (None: it hosts nothing yet)."""

    peer: PeerId
    before: BlockRange | None
    after: BlockRange
    reason: Reason

    @property
    def loaded_blocks(self) -> int:
        """The number of blocks that the peer has to load."""
        return len(set(self.after) - set(self.before or ()))


def after_move(swarm: Swarm, move: Move) -> Swarm:
    """The snapshot in which the move has been made and its peer serves."""
    peers = tuple(
        replace(peer, blocks=move.after, block_hashes=(), state=PeerState.SERVING, claim=None)
        if peer.id == move.peer
        else peer
        for peer in swarm.peers
    )
    return replace(swarm, peers=peers)
