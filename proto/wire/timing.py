"""The times that both sides of the protocol rely on, each defined once; all are seconds.

A time belongs here if the other side would fail with a different one: how long a record lives and how often it is
renewed, which side gives up first when nothing comes, how long something is remembered.  Times of one program only are
in its own `Timing`.  The inequalities between the times are part of the protocol; tests/proto/wire/test_timing.py
asserts each with its reason.
"""

from __future__ import annotations

from ...routing.timing import (
    CLAIM_LIFETIME_SECONDS,
    CLOCK_TOLERANCE_SECONDS,
    DRAIN_SECONDS,
    LEASE_SECONDS,
    PEER_MEMORY_SECONDS,
    RANK_MEMORY_SECONDS,
    RECORD_LIFETIME_SECONDS,
    RECORD_REFRESH_SECONDS,
)

__all__ = [
    "ANSWER_SECONDS",
    "CAPABILITY_SECONDS",
    "CLAIM_LIFETIME_SECONDS",
    "CLOCK_STEP_SECONDS",
    "CLOCK_TOLERANCE_SECONDS",
    "CONNECTION_IDLE_SECONDS",
    "CROWDING_SECONDS",
    "DHT_CALL_AGE_SECONDS",
    "DRAIN_SECONDS",
    "HANDSHAKE_SECONDS",
    "HELLO_CLOCK_SKEW_SECONDS",
    "JOIN_CLOCK_SKEW_SECONDS",
    "KEEPALIVE_ANSWER_SECONDS",
    "KEEPALIVE_SECONDS",
    "LEAF_LIFETIME_SECONDS",
    "LEASE_SECONDS",
    "MAX_CAPABILITY_SECONDS",
    "MAX_RECORD_LIFETIME_SECONDS",
    "MAX_RETRY_AFTER_SECONDS",
    "MAX_STEP_SECONDS",
    "MAX_TRANSFER_SECONDS",
    "MAX_WAIT_SECONDS",
    "MIN_KEEPALIVE_SECONDS",
    "OVERDUE_REFRESHES",
    "PEER_MEMORY_SECONDS",
    "PREVIOUS_STREAM_SECONDS",
    "PUSH_CONNECT_SECONDS",
    "RANK_MEMORY_SECONDS",
    "RECORD_LIFETIME_SECONDS",
    "RECORD_REFRESH_JITTER",
    "RECORD_REFRESH_SECONDS",
    "RELAY_ACCEPT_SECONDS",
    "RELAY_FULL_SECONDS",
    "RELAY_IDLE_SECONDS",
    "RESOLVE_SECONDS",
    "ROOT_LIFETIME_SECONDS",
    "SERVER_LOOK_SECONDS",
    "TLS_HANDSHAKE_SECONDS",
    "TRANSFER_SILENCE_SECONDS",
    "UNFED_ROOM_SECONDS",
    "UNUSED_ROOM_SECONDS",
]

# --- records ---------------------------------------------------------------------------------------------------------

RECORD_REFRESH_JITTER = 0.2
"""Largest relative deviation from the refresh time: peers that start together must not stay in step."""
OVERDUE_REFRESHES = 1.5
"""Age of a record, in refresh times, at which it should have been renewed."""
MAX_RECORD_LIFETIME_SECONDS = 120.0
"""Longest remaining life with which a record is accepted, so that a peer that is gone is soon forgotten."""

CLOCK_STEP_SECONDS = 2.0
"""Jump of a machine's clock beyond which it counts as set, not only corrected."""
DHT_CALL_AGE_SECONDS = 60.0
"""Largest age of a call between nodes of a private swarm's DHT, by both clocks; nonces are kept for twice as long."""

# --- certificates ----------------------------------------------------------------------------------------------------

LEAF_LIFETIME_SECONDS = 30 * 86400.0
"""Validity of the certificate that a node presents; it is renewed after half of this time."""
ROOT_LIFETIME_SECONDS = 10 * 365 * 86400.0
"""Validity of the root that a dialler makes for one connection."""

# --- the opening of a stream: identity and rights --------------------------------------------------------------------

JOIN_CLOCK_SKEW_SECONDS = 3.0
"""Largest difference between the clocks of two nodes of the DHT when one joins: hivemind's own number."""
HELLO_CLOCK_SKEW_SECONDS = 30.0
"""Largest difference between the sender's clock in a hello and the receiver's; nonces are kept for twice as long."""
CAPABILITY_SECONDS = 86400.0
"""Life of the capabilities that a client signs, and so the longest time that one session may last."""
MAX_CAPABILITY_SECONDS = 7 * 86400.0
"""Longest remaining life with which a capability is accepted."""

# --- opening a session -----------------------------------------------------------------------------------------------

PREVIOUS_STREAM_SECONDS = 5.0
"""Wait of a new stream for the previous stream of the same session to close."""
ANSWER_SECONDS = 10.0
"""Wait of a client for a peer to admit, queue or refuse a session; also granted after the session's wait for room."""
PUSH_CONNECT_SECONDS = 10.0
"""Wait of a peer for its successor to accept its push stream."""
HANDSHAKE_SECONDS = 15.0
"""Wait of a peer for the first frame of a stream."""

# --- waiting for room ------------------------------------------------------------------------------------------------

MAX_WAIT_SECONDS = 3600.0
"""Longest wait for room that a session may ask for."""
UNUSED_ROOM_SECONDS = 60.0
"""Time after which a peer ends a session that has not computed anything with its room."""
UNFED_ROOM_SECONDS = 300.0
"""The same for a session whose steps come from a predecessor: all peers before it compute the first step first."""
MAX_RETRY_AFTER_SECONDS = 3600.0
"""Longest pause that a busy peer may ask for."""

# --- steps and transfers ---------------------------------------------------------------------------------------------

MAX_STEP_SECONDS = 3600.0
"""Longest deadline of a step or a replay."""
MAX_TRANSFER_SECONDS = 300.0
"""Longest deadline of a transfer of an attention cache."""
TRANSFER_SILENCE_SECONDS = 0.5
"""Silence between two pieces of a part of an attention cache after which the peer gives its turn to the next one: a
client whose steps wait for a last part waits for longer than this."""

# --- relays ---------------------------------------------------------------------------------------------------------

RELAY_ACCEPT_SECONDS = 10.0
"""Wait of a relay for the peer to accept a connection."""
RELAY_FULL_SECONDS = 60.0
"""Pause that a relay without a place proposes."""
RELAY_IDLE_SECONDS = 60.0
"""Time without a byte after which a relay ends a connection; the two ends ping more often."""

# --- connections -----------------------------------------------------------------------------------------------------

KEEPALIVE_SECONDS = 20.0
"""Time between two pings on a connection, by either side."""
KEEPALIVE_ANSWER_SECONDS = 10.0
"""Wait for the answer to such a ping, after which the connection is closed."""
MIN_KEEPALIVE_SECONDS = 5.0
"""Shortest time between two pings that a server allows; a dialler that pings faster is disconnected."""
RESOLVE_SECONDS = 5.0
"""Wait of a dialler for a name to be resolved."""
TLS_HANDSHAKE_SECONDS = 10.0
"""Wait of a server for the TLS handshake of a new connection."""
SERVER_LOOK_SECONDS = 10.0
"""Interval at which a server tries its own port: gRPC may close it without a word."""
CONNECTION_IDLE_SECONDS = 300.0
"""Time without a call after which a server ends a connection; the next call dials again."""
CROWDING_SECONDS = 2.0
"""Time between two counts of the connections at a port."""
