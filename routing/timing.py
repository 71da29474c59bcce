"""The times that decisions depend on and that all nodes of a swarm must agree on, each defined once.

Placement judges claims, ages and absences by them, so peers with other numbers would plan for a different swarm.  All
other times that nodes must agree on are in `proto/wire/timing.py`, which builds on these; its test asserts how they
depend on each other.  Only `AdmissionTiming` is each peer's own.  All are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

RECORD_LIFETIME_SECONDS = 60.0
"""How long after its issue a record is valid."""
RECORD_REFRESH_SECONDS = 20.0
"""Time between two announcements of a peer, and between the claim of a move and its judgement."""
CLOCK_TOLERANCE_SECONDS = 5.0
"""Largest difference between the clocks of two peers; records whose times imply more are refused at the edge."""
PEER_MEMORY_SECONDS = 120.0
"""How long after its last record plans still include a peer.  When records get lost, some peer has no valid record at
almost any moment: plans that take such a peer for gone would change all the time, and the swarm would never rest."""
CLAIM_LIFETIME_SECONDS = 180.0
"""Age at which a claim that could not be confirmed is withdrawn."""
DRAIN_SECONDS = 120.0
"""How long a peer that is asked to stop waits for its sessions to end."""

# --- waiting for room ------------------------------------------------------------------------------------------------

LEASE_SECONDS = 30.0
"""How long a session holds unused room on some peers of its chain while it waits for room on the others."""
RANK_MEMORY_SECONDS = 180.0
"""How long a peer remembers the rank of a session that left its queue."""

MAX_FORECAST_SECONDS = 7 * 86400.0
"""How far in the future room may be forecast to become free: no session may last longer."""


@dataclass(frozen=True, slots=True)
class AdmissionTiming:
    """The times of a peer's table of sessions; no other node relies on them."""

    min_retry_seconds: float = 1.0
    """Shortest pause before a refused session may come again."""
    forecast_seconds: float = 1.0
    """How long a forecast is reused, so that thousands of refusals cost no more than a few."""
    concurrency_seconds: float = 600.0
    """Time over which the number of open sessions is averaged."""


# --- round trips -----------------------------------------------------------------------------------------------------

MAX_RTT_SECONDS = 30.0
"""A longer round trip is an error or an attack, not a network."""
RTT_SLACK_SECONDS = 0.01
"""Error of a prediction that is always tolerated."""
RTT_MEMORY_SECONDS = 1800.0
"""Age at which a measured round trip no longer counts."""

# --- planning --------------------------------------------------------------------------------------------------------

UNKNOWN_RTT_SECONDS = 0.1
"""Assumed round trip to a peer that has no coordinate yet."""
LEAVING_PENALTY_SECONDS = 1000.0
"""Extra cost of a block on a draining peer, so that it is recommended only if no other peer has the block."""
CLIENT_CELL_SECONDS = 0.01
"""Side of the cells into which clients are sorted; planning treats the clients of a cell as one."""
OVERLOAD_SECONDS = 3600.0
"""Length of the overload for which R is chosen if no R sustains the planned rate; beyond it, only more peers help."""
