"""How long the client waits for what: its own time-outs and pauses, in one value that is injected.

Numbers that peers rely on too are in `proto/wire/timing.py`; those that the client acts on begin with the values from
there.  All are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..proto.wire.timing import ANSWER_SECONDS, LEASE_SECONDS, REROUTE_SECONDS

PATIENCE_SECONDS = 30.0
"""Wait of a session for room, and of a running one for the replacement of peers that are gone, unless the user says."""


@dataclass(frozen=True)
class ClientTiming:
    """The time-outs and pauses of one client."""

    # --- the connection ---

    connect_seconds: float = 30.0
    """Wait for the first look at the swarm."""
    close_seconds: float = 5.0
    """Wait for everything to close."""
    leave_seconds: float = 3.0
    """Wait at the end for sessions that have ended here to be told to their peers."""
    operation_seconds: float = 3600.0
    """Longest operation; the deadlines that matter are those of each step."""
    stream_end_seconds: float = 10.0
    """Wait of a cancelled stream for its thread, which has nothing left to do but to unwind."""

    # --- the view of the swarm ---

    refresh_seconds: float = 15.0
    """Pause between two looks at the swarm."""
    lookup_seconds: float = 5.0
    """Wait for a peer to answer a look-up."""
    ping_seconds: float = 3.0
    """Wait for a peer to answer a ping."""
    survey_ping_seconds: float = 5.0
    """The same for `swarm-client ping`, whose user would rather wait."""
    ban_seconds: float = 15.0
    """Time for which a peer that failed is not chosen."""
    min_retry_seconds: float = 1.0
    """Shortest pause before full peers are asked again, whatever they announce."""

    # --- opening a chain ---

    answer_seconds: float = ANSWER_SECONDS
    """Wait for a peer to say whether a session is admitted, queued or refused."""
    lease_seconds: float = LEASE_SECONDS
    """Time that room on some peers is held while a session waits for room on the next one."""
    reroute_seconds: float = REROUTE_SECONDS
    """Wait for the peers of a chain to take their new neighbours."""
    no_chain_pause_seconds: float = 0.5
    """Pause between two searches for a chain where there is none."""
    max_busy_pause_seconds: float = 5.0
    """Longest pause before a peer whose queue is full too is asked again, whatever it says."""

    # --- steps and repairs ---

    min_stall_seconds: float = 3.0
    """Shortest wait for an answer before the chain is examined."""
    stall_factor: float = 6.0
    """Wait for an answer beyond the shortest one, in multiples of the time that the measured speed predicts."""
    probe_seconds: float = 3.0
    """Wait for the peers of a chain to say where they are."""
    min_rebuild_seconds: float = 10.0
    """Shortest wait for a replacement to be rebuilt."""
    rebuild_factor: float = 10.0
    """Wait for it beyond the shortest one, in multiples of the time that the announced speed predicts."""

    # --- leaving peers, and ended sessions ---

    handover_seconds: float = 20.0
    """Longest transfer of an attention cache; instead of a slower one a replay moves less and computes more."""
    transfer_slack_seconds: float = 10.0
    """Time by which a peer gives a transfer up later than the client, which has other ways and keeps the session."""
    handover_wait_seconds: float = 10.0
    """Wait for room at the replacement of a peer that still works."""
    handover_pause_seconds: float = 5.0
    """Pause between two searches for replacements of leaving peers."""
    remember_seconds: float = 10.0
    """Time that peers have to keep the attention cache of a session that ends."""
