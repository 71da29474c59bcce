"""The requests and replies of the unary calls: look-ups and pings."""

from __future__ import annotations

from dataclasses import dataclass

from ....routing.swarm import Coordinate
from ... import swarm_pb2 as pb
from .codec import Codec, by_name
from .limits import MAX_REPLY_BYTES
from .opening import SIGNED, Signed, pack_place, unpack_place


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """Asks for the records under a name."""

    key: str
    hello: Signed
    """Private swarms answer only members."""
    most_bytes: int = 0
    """If the records exceed this size, only the best ones for a node at `place`; 0: all, as far as they fit."""
    place: Coordinate | None = None
    """The coordinate of the asking node; None: not known."""


@dataclass(frozen=True, slots=True)
class LookupReply:
    """Encoded records, which are signed by their owners."""

    records: tuple[bytes, ...] = ()
    known: int = 0
    """Number of records that the peer has under the name; 0: the peer does not choose among them."""

    @property
    def is_complete(self) -> bool:
        """Whether the reply has all records that the peer knows."""
        return self.known <= len(self.records)


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Asks for a peer's round trip, clock and load."""

    protocol: int
    """The protocol version of the sender; 0: the sender is too old to state it."""
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


LOOKUP_REQUEST: Codec[LookupRequest] = Codec(
    pb.LookupRequest,
    lambda asked: pb.LookupRequest(
        key=asked.key, hello=SIGNED.pack(asked.hello), most_bytes=asked.most_bytes, place=pack_place(asked.place)
    ),
    lambda message: LookupRequest(
        message.key, SIGNED.unpack(message.hello), message.most_bytes, unpack_place(message.place)
    ),
)
LOOKUP_REPLY: Codec[LookupReply] = Codec(
    pb.LookupReply,
    lambda reply: pb.LookupReply(records=reply.records, known=reply.known),
    lambda message: LookupReply(tuple(message.records), message.known),
    max_bytes=MAX_REPLY_BYTES,
)
PING_REQUEST = by_name(pb.PingRequest, PingRequest)
PING_REPLY = by_name(pb.PingReply, PingReply)
