"""gRPC's options, for the dialling side and for the serving side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..wire.messages.limits import MAX_FRAME_BYTES
from ..wire.timing import (
    CONNECTION_IDLE_SECONDS,
    KEEPALIVE_ANSWER_SECONDS,
    KEEPALIVE_SECONDS,
    MIN_KEEPALIVE_SECONDS,
    TLS_HANDSHAKE_SECONDS,
)

MAX_CONNECTIONS = 4096

# Unread bytes that one stream may have sent. gRPC would let the window grow with bandwidth times measured round trip,
# which is large when a busy node answers late: many streams could fill its memory.
STREAM_WINDOW_BYTES = 1 << 20

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_ANSWER_SECONDS * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A dead peer is noticed and replaced by the session; gRPC should not wait long before it dials again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
]
_SERVER_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_ANSWER_SECONDS * 1000)),
    ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.so_reuseport", 0),
]


@dataclass(frozen=True)
class PortLimits:
    """Limits on the connections that a server accepts."""

    most: int = MAX_CONNECTIONS
    """Further ones are ended at once."""
    handshake_seconds: float = TLS_HANDSHAKE_SECONDS
    idle_seconds: float = CONNECTION_IDLE_SECONDS


def server_options(limits: PortLimits) -> list[tuple[str, Any]]:
    """The options of a server with these limits."""
    return [
        *_SERVER_OPTIONS,
        ("grpc.max_allowed_incoming_connections", limits.most),
        ("grpc.server_handshake_timeout_ms", int(limits.handshake_seconds * 1000)),
        ("grpc.max_connection_idle_ms", int(limits.idle_seconds * 1000)),
    ]
