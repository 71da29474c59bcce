"""The time-outs of a peer, in one frozen value that is passed to whatever waits.

Numbers that the other side of the protocol relies on come from proto/wire/timing.py; tests give smaller ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..proto.wire.timing import (
    DRAIN_SECONDS,
    HANDSHAKE_SECONDS,
    MAX_WAIT_SECONDS,
    PREVIOUS_STREAM_SECONDS,
    PUSH_CONNECT_SECONDS,
    RECORD_REFRESH_JITTER,
    RELAY_ACCEPT_SECONDS,
    RELAY_IDLE_SECONDS,
    TRANSFER_SILENCE_SECONDS,
    UNFED_ROOM_SECONDS,
    UNUSED_ROOM_SECONDS,
)
from ..routing.place.moves import ClaimTiming
from ..routing.timing import AdmissionTiming
from .engine.scheduler import StepTiming


@dataclass(frozen=True, slots=True)
class PeerTiming:
    """The waits and intervals of a peer, in seconds."""

    # Joining and leaving.
    join_ping_seconds: float = 10.0
    """Wait for each initial peer to answer."""
    join_patience_seconds: float = 2.0
    """Time after which a peer that joins says that it waits, or goes on with the initial peers that have answered."""
    join_seconds: float = 60.0
    """Time for which the DHT of the initial peers is tried."""
    join_remembered_seconds: float = 30.0
    """Time for which a peer that begins a swarm tries those that it met in an earlier run."""
    replaced_seconds: float = 120.0
    """Longest wait of a stopping peer until others serve the blocks that only it has: two refreshes and a load."""
    drain_seconds: float = DRAIN_SECONDS
    """Wait of a stopping peer for its open sessions to end, after that."""
    cleanup_seconds: float = 0.7
    """Time for a peer that is stopped before it serves to clean up; then the process exits, whatever runs in it."""
    goodbye_seconds: float = 3.0
    """Wait for the directory to take the last records; without them the old one expires by itself."""

    # Computing.
    steps: StepTiming = field(default_factory=StepTiming)
    calibration_seconds: float = 2.0
    """Budget of the timed runs that measure the blocks at the start. A stage that is too slow for it is measured with
    fewer of its blocks and shorter steps."""
    cost_half_life_seconds: float = 200.0
    """Time of serving after which a step counts half in the announced cost."""
    owner_sample_seconds: float = 1.0
    """Time between two looks at how busy the machine is, if the peer yields to its owner."""
    owner_pause_seconds: float = 2.0
    """Longest pause between two steps for the owner's sake."""

    # The directory.
    record_refresh_jitter: float = RECORD_REFRESH_JITTER
    """Largest relative deviation from `record_refresh_seconds`."""
    client_memory_seconds: float = 600.0
    """Time after a client's last opening for which its place counts among the announced ones."""
    watch_seconds: float = 1.0
    """Time between two looks for changes to announce at once, and between two readings of the metrics."""
    min_announce_seconds: float = 5.0
    """Shortest time between two announcements of a changed cost."""
    lookup_max_age_seconds: float = 2.0
    """Age at which a look at the directory is renewed."""
    lookup_stale_seconds: float = 45.0
    """Age at which an old look no longer answers a caller."""
    lookup_patience_seconds: float = 0.5
    """Wait of a caller for a new look while the old one still answers."""
    lookup_retry_seconds: float = 2.0
    """When a look-up of another model may come back for which there is no room now."""

    # Placement.
    claims: ClaimTiming = field(default_factory=ClaimTiming)
    """The times by which claims and records are judged, and how often the peer's own record is renewed."""
    join_turn_seconds: float = 2.0
    """Time between two looks at the claims of others, for a peer that joins or waits to be replaced."""
    release_seconds: float = 120.0
    """Wait for sessions to leave blocks that are dropped so that others can be loaded."""
    overdue_ping_seconds: float = 5.0
    """Wait for a pinged peer to answer, for all its addresses together."""
    failed_move_seconds: float = 60.0
    """Rest after a failed load; every further failure in a row doubles it."""
    max_failed_move_seconds: float = 3600.0
    """Longest such rest."""
    outcome_seconds: float = 600.0
    """Time after a claim at which the log says what the move has brought."""

    # A session's streams.
    handshake_seconds: float = HANDSHAKE_SECONDS
    """Wait for a stream to say what it wants."""
    previous_stream_seconds: float = PREVIOUS_STREAM_SECONDS
    """Wait of a new stream for the previous stream of the same session to close."""
    unused_room_seconds: float = UNUSED_ROOM_SECONDS
    """Time in which a session has to compute its first step; for one that crowds others out, also each later step."""
    unfed_room_seconds: float = UNFED_ROOM_SECONDS
    """The same for a session whose steps come from a predecessor."""
    idle_seconds: float = 1800.0
    """Time without a step after which a session that has computed some is ended."""
    frame_seconds: float = 0.5
    """Wait for a frame that is being written, before its writer is cancelled."""
    write_seconds: float = 60.0
    """Wait for the other side of a stream to take a frame; its session ends, or the push is given up."""
    transfer_silence_seconds: float = TRANSFER_SILENCE_SECONDS
    """Silence after which a part of an attention cache that has begun to move loses its turn..."""
    transfer_hold_seconds: float = 2.0
    """...and the longest turn of one part, its wait for the engine included; a part without its turn goes on beside the
    next ones."""
    transfer_link_share: float = 0.5
    """Parts of attention caches move for at most this share of the time: the rest of it belongs to steps."""
    usage_seconds: float = 600.0
    """Time between two log lines about the use of the peer, after the first session has had its own."""
    refusals_seconds: float = 10.0
    """Time between two log lines about sessions that were refused or ended."""
    push_connect_seconds: float = PUSH_CONNECT_SECONDS
    """Wait for the successor to accept a push stream."""

    # Relays.
    relay_accept_seconds: float = RELAY_ACCEPT_SECONDS
    """Wait of a relay for the peer to accept a connection."""
    relay_idle_seconds: float = RELAY_IDLE_SECONDS
    """Time without a byte after which a relay ends a connection."""
    relay_answer_seconds: float = 10.0
    """Wait for a relay to say whether it has a place, and for the answer to a ping through it."""

    relay_retry_seconds: float = 5.0
    """Pause of a peer that has too few relays, before it looks for another one."""
    relay_proof_seconds: float = 30.0
    """Time between two tries of a peer to reach itself through a relay."""
    relay_shun_seconds: float = 60.0
    """Time for which a relay that has failed is not tried again."""
    relay_linger_seconds: float = 600.0
    """Time for which a peer that is reached directly again keeps its relays, for the sessions that use them."""

    # The check of an address.
    reach_dial_seconds: float = 5.0
    """Wait for the answer of a peer that is dialled back."""
    reach_answer_seconds: float = 12.0
    """Wait for a peer that dials back to report the outcome."""
    reach_pause_seconds: float = 5.0
    """Shortest time between two dials for the same network."""
    reach_warning_seconds: float = 60.0
    """Time between two warnings of a peer that nobody can reach."""
    reach_again_seconds: float = 120.0
    """Time between two checks of a peer that is not reached."""
    reach_recheck_seconds: float = 600.0
    """The same for a peer that is; one that finds itself not reached asks once more before it believes it."""

    # Waiting for room.
    admission: AdmissionTiming = field(default_factory=AdmissionTiming)
    max_wait_seconds: float = MAX_WAIT_SECONDS
    """Longest wait of a session, whatever it asks for."""
    news_seconds: float = 1.0
    """Shortest time between two rounds of telling the waiting sessions their places."""
    news_seconds_per_waiting: float = 0.01
    """Additional pause between two frames to the same client for each waiting session."""
    tell_seconds: float = 10.0
    """Wait for a client to take a frame about its place."""

    @property
    def record_refresh_seconds(self) -> float:
        """Time between two announcements: others judge the records by it."""
        return self.claims.refresh_seconds
