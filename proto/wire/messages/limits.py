"""The limits of every field whose size or range the sender chooses, as data, and the one walk that enforces them.

The walk runs over a parsed message before anything is built from it: it checks lengths first, so no Python object is
created for an element beyond the limit.  Parsing comes before it and is bounded by `MAX_FRAME_BYTES`: measured, a
megabyte of empty rows, the most expensive to parse, takes 20 ms and 20 MB.  `docs/protocol.md` shows this table;
`scripts/limits` writes it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from ...errors import MAX_WIRE_MESSAGE_CHARS, RemoteProtocolError
from ..frames import CHUNK_BYTES, MAX_HOPS
from ..prefixes import DIGEST_BYTES, MAX_PREFIX_TOKENS, PAGE_TOKENS
from ..steps import MAX_POSITIONS, MAX_ROWS
from ..timing import MAX_STEP_SECONDS, MAX_TRANSFER_SECONDS

MAX_FRAME_BYTES = 1 << 20
"""Largest encoded frame of a stream."""
MAX_TUNNEL_BYTES = 256 << 10
"""Most bytes of TLS in one frame of a tunnel: as many as are read from a socket at once."""
MAX_REPLY_BYTES = 4 << 20
"""Largest answer to a call: gRPC's own limit."""
MAX_RECORD_BYTES = 3072
"""Largest size of an encoded record, signature included: every announcement within its bounds fits."""
MAX_RECORDS_PER_KEY = 900
"""The number of records of the largest size that fit into one answer, and that one look-up verifies."""
MAX_PREFIX_BYTES = MAX_PREFIX_TOKENS // PAGE_TOKENS * DIGEST_BYTES
"""Most bytes of the names of pages, all rows together."""


@dataclass(frozen=True, slots=True)
class Size:
    """At most `most` bytes, or characters of a text."""

    most: int

    def allows(self, value: Any) -> bool:
        return len(value) <= self.most


@dataclass(frozen=True, slots=True)
class Number:
    """A number between `least` and `most`, which are finite; if `positive`, also above 0."""

    least: float
    most: float
    positive: bool = False

    def allows(self, value: Any) -> bool:
        return self.least <= value <= self.most and (value > 0 or not self.positive)


@dataclass(frozen=True, slots=True)
class Count:
    """At most `most` elements, each within the limit `each`."""

    most: int
    each: Size | Number | None = None

    def allows(self, value: Any) -> bool:
        return len(value) <= self.most and (self.each is None or all(map(self.each.allows, value)))


Limit = Size | Number | Count

_PEER_ID = Size(64)
_MOMENT = Number(-1e12, 1e12)
_DURATION = Number(0.0, 1e12)
_STEP_TIME = Number(0.0, MAX_STEP_SECONDS, positive=True)
_ROW_LENGTHS = Count(MAX_ROWS, Number(0, MAX_POSITIONS))
_RECORD = Size(MAX_RECORD_BYTES)
_DATA = Size(CHUNK_BYTES)
_PLACE = Count(4, Number(-2.0, 2.0))

LIMITS: Mapping[str, Mapping[str, Limit]] = {
    "Signed": {"payload": Size(1024), "signer": _PEER_ID, "signature": Size(64)},
    "Hello": {
        "peer_id": _PEER_ID, "session_id": Size(16), "issued_at": _MOMENT, "nonce": Size(16), "swarm_proof": Size(32),
    },
    "Capability": {
        "session_id": Size(16), "peer_id": _PEER_ID, "predecessor": _PEER_ID, "successor": _PEER_ID,
        "wire_format": Size(32), "input_format": Size(32), "expires_at": _MOMENT, "model_digest": Size(64),
    },
    "Open": {"successor_record": _RECORD, "wait_seconds": _DURATION, "prefixes": Count(MAX_ROWS), "place": _PLACE},
    "Prefix": {"digests": Size(MAX_PREFIX_BYTES)},
    "Opened": {"held_tokens": _ROW_LENGTHS},
    "Queued": {"estimate_seconds": _DURATION},
    "HopTiming": {"peer_id": _PEER_ID, "received_at": _MOMENT, "started_at": _MOMENT, "finished_at": _MOMENT},
    "Rebuild": {"last_peer": _PEER_ID},
    "Step": {
        "rows": Count(MAX_ROWS), "source_rows": Count(MAX_ROWS), "timeout_seconds": _STEP_TIME, "data": _DATA,
        "timings": Count(MAX_HOPS), "adopted_tokens": Count(MAX_ROWS),
    },
    "Chunk": {"data": _DATA},
    "Reroute": {"successor_record": _RECORD},
    "Replay": {"lengths": _ROW_LENGTHS, "timeout_seconds": _STEP_TIME},
    "Failure": {"message": Size(2 * MAX_WIRE_MESSAGE_CHARS)},
    "KvExport": {"timeout_seconds": Number(0.0, MAX_TRANSFER_SECONDS, positive=True), "starts": _ROW_LENGTHS},
    "KvState": {
        "lengths": _ROW_LENGTHS, "data": _DATA, "timeout_seconds": Number(0.0, MAX_TRANSFER_SECONDS),
        "starts": _ROW_LENGTHS,
    },
    "Remember": {"prefixes": Count(MAX_ROWS)},
    "LookupRequest": {"key": Size(256), "place": _PLACE},
    "LookupReply": {"records": Count(MAX_RECORDS_PER_KEY, _RECORD)},
    "PingRequest": {"padding": Size(1 << 16)},
    "PingReply": {
        "clock": _MOMENT, "peer_id": _PEER_ID, "model_digest": Size(64), "dht_addresses": Count(64, Size(512)),
        "model_name": Size(512),
    },
    "TunnelReserved": {"bytes_per_second": _DURATION},
    "TunnelIncoming": {"token": Size(16)},
    "TunnelConnect": {"peer_id": _PEER_ID},
    "TunnelAccept": {"token": Size(16)},
    "TunnelFrame": {"data": Size(MAX_TUNNEL_BYTES)},
    "ReachReply": {"host": Size(64)},
}  # fmt: skip
"""By message and field. Other integers may have any value of their type, or are checked by meaning elsewhere."""


def check_limits(message: Message) -> None:
    """Raise RemoteProtocolError for the first field of `message`, or of a message in it, that exceeds its limit."""
    for name, limit, repeated, nested in _checked_fields(message.DESCRIPTOR):
        if nested and not repeated and not message.HasField(name):
            continue
        value = getattr(message, name)
        if limit is not None and not limit.allows(value):
            raise RemoteProtocolError(f"{name} of a {message.DESCRIPTOR.name} exceeds its limit")
        if nested and repeated:
            for element in value:
                check_limits(element)
        elif nested:
            check_limits(value)


@functools.cache
def _checked_fields(descriptor: Descriptor) -> tuple[tuple[str, Limit | None, bool, bool], ...]:
    """(name, limit, whether it is repeated, whether it holds messages with limits) of the fields to check."""
    limits = LIMITS.get(descriptor.name, {})
    found = []
    for field in descriptor.fields:
        nested = field.type == FieldDescriptor.TYPE_MESSAGE and bool(_checked_fields(field.message_type))
        if nested or field.name in limits:
            found.append((field.name, limits.get(field.name), field.is_repeated, nested))
    return tuple(found)
