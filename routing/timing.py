"""The times that decisions rest on and that every node of a swarm must agree on, each once.

Placement judges claims, ages and absences by them, so peers with other numbers would plan other swarms.  The rest of
what nodes must agree on in time is in `proto/wire/timing.py`, which begins with these; how they depend on each other
is asserted in its test.  `AdmissionTiming` alone is each peer's own.  All are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

RECORD_LIFETIME_SECONDS = 60.0
"""Time after its issue during which a record says that its peer serves."""
RECORD_REFRESH_SECONDS = 20.0
"""Time between two announcements of a peer, and between the claim of a move and its judgement."""
CLOCK_TOLERANCE_SECONDS = 5.0
"""Largest difference between the clocks of two peers; a record that would need more is refused at the edge."""
PEER_MEMORY_SECONDS = 120.0
"""Time after its last record during which a peer is planned with.  Where records get lost, some peer has no
valid record at almost any moment: a plan that takes it for gone is made for another swarm, and never rests."""
CLAIM_LIFETIME_SECONDS = 180.0
"""Age at which a claim that could not be confirmed is withdrawn."""
DRAIN_SECONDS = 120.0
"""Time that a peer which is asked to stop leaves its sessions to end."""

# --- waiting for room ------------------------------------------------------------------------------------------------

LEASE_SECONDS = 30.0
"""Time that a session holds unused room on some peers of its chain while it waits for room on the others."""
RANK_MEMORY_SECONDS = 180.0
"""Time that a peer remembers the rank of a session that left its queue."""

MAX_FORECAST_SECONDS = 7 * 86400.0
"""Farthest moment, from now, at which room is expected to become free: no session may last longer."""


@dataclass(frozen=True, slots=True)
class AdmissionTiming:
    """The times of a peer's table of sessions; no other node relies on them."""

    min_retry_seconds: float = 1.0
    """Shortest pause that a session which got no room is asked for."""
    forecast_seconds: float = 1.0
    """How long a forecast is reused, so that thousands of refusals cost no more than a few."""
    concurrency_seconds: float = 600.0
    """Time over which the number of open sessions is averaged."""


# --- round trips -----------------------------------------------------------------------------------------------------

MAX_RTT_SECONDS = 30.0
"""A longer round trip is an error or an attack, not a network."""
RTT_SLACK_SECONDS = 0.01
"""A prediction may be wrong by this in any case."""
RTT_MEMORY_SECONDS = 1800.0
"""Age at which a measured round trip no longer counts."""

# --- planning --------------------------------------------------------------------------------------------------------

UNKNOWN_RTT_SECONDS = 0.1
"""Assumed round trip to a peer that has no coordinate yet."""
LEAVING_PENALTY_SECONDS = 1000.0
"""A block on a peer that drains costs this much more: it is told of only where nobody else has the block."""
CLIENT_CELL_SECONDS = 0.01
"""Side of the cells into which clients are sorted: those in one cell are planned for as one."""
OVERLOAD_SECONDS = 3600.0
"""Time under the planned rate for which R is chosen where no R carries it; for longer, only more peers help."""
