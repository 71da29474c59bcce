"""The questions and answers of the calls that have one answer: look-ups and pings."""

from __future__ import annotations

from dataclasses import dataclass

from ... import swarm_pb2 as pb
from .codec import Codec, by_name
from .limits import MAX_REPLY_BYTES
from .opening import SIGNED, Signed


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """Which records are there under this name?"""

    key: str
    hello: Signed
    """Private swarms answer to members only."""


@dataclass(frozen=True, slots=True)
class LookupReply:
    """Encoded records; they prove themselves."""

    records: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PingRequest:
    """How far, how late and how busy is the peer?"""

    protocol: int
    """The version that the sender speaks; 0: it is too old to say it."""
    padding: bytes = b""


@dataclass(frozen=True, slots=True)
class PingReply:
    """A peer's clock and its public status."""

    clock: float = 0.0
    """Seconds since 1970."""
    peer_id: str = ""
    protocol: int = 0
    model_digest: str = ""
    model_name: str = ""
    steps_pushed: int = 0
    steps_relayed: int = 0
    steps_answered: int = 0
    rebuilt_tokens: int = 0
    sessions: int = 0
    queued: int = 0
    """Sessions that wait for room."""
    kv_tokens_free: int = 0
    replay_bytes: int = 0
    dht_addresses: tuple[str, ...] = ()


LOOKUP_REQUEST = by_name(pb.LookupRequest, LookupRequest, hello=SIGNED)
LOOKUP_REPLY: Codec[LookupReply] = Codec(
    pb.LookupReply,
    lambda reply: pb.LookupReply(records=reply.records),
    lambda message: LookupReply(tuple(message.records)),
    max_bytes=MAX_REPLY_BYTES,
)
PING_REQUEST = by_name(pb.PingRequest, PingRequest)
PING_REPLY = by_name(pb.PingReply, PingReply)
