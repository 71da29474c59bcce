"""The messages of relays: the reservation of a peer, the frames of one connection, and the check of an address."""

from __future__ import annotations

from dataclasses import dataclass

from ... import relay_pb2 as pb
from ...errors import RemoteProtocolError
from .codec import Codec, Plain, by_name, flag, union
from .opening import SIGNED, Signed
from .session import FAILURE, FailureFrame

TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class ReserveFrame:
    """A request to be told of nodes that want to reach the sender."""

    hello: Signed


@dataclass(frozen=True, slots=True)
class ReservedFrame:
    """The peer can be reached through the relay for as long as the stream lasts."""

    connections: int
    """The most connections that the peer may have at once."""
    bytes_per_second: float
    """Limit for all its connections together, both directions counted."""


@dataclass(frozen=True, slots=True)
class IncomingFrame:
    """A node wants to reach the peer."""

    token: bytes
    """Identifies the connection when the peer accepts it; valid once."""


@dataclass(frozen=True, slots=True)
class ConnectFrame:
    """The first frame of a node that wants to reach a peer through the relay."""

    hello: Signed
    """Hello to the relay."""
    peer_id: str


@dataclass(frozen=True, slots=True)
class AcceptFrame:
    """The first frame of the peer's side of a connection."""

    token: bytes


@dataclass(frozen=True, slots=True)
class TunnelReadyFrame:
    """Both sides are connected."""


@dataclass(frozen=True, slots=True)
class TunnelData:
    """Bytes between the two ends; the relay cannot read them."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ReachRequest:
    """Asks whether the sender can be reached at the address that this call comes from, at this port."""

    hello: Signed
    port: int


@dataclass(frozen=True, slots=True)
class ReachReply:
    """The answer to a `ReachRequest`."""

    host: str
    """The address that the request came from."""
    reached: bool


ReserveReply = ReservedFrame | IncomingFrame | FailureFrame
TunnelCall = ConnectFrame | AcceptFrame | TunnelData
TunnelReply = TunnelReadyFrame | TunnelData | FailureFrame


def _checked_token(token: bytes) -> bytes:
    if len(token) != TOKEN_BYTES:
        raise RemoteProtocolError(f"the token of a connection has {TOKEN_BYTES} bytes")
    return token


def _unpack_data(data: bytes) -> TunnelData:
    if not data:
        raise RemoteProtocolError("a frame of a tunnel is empty")
    return TunnelData(data)


def _unpack_reach_request(message: pb.ReachRequest) -> ReachRequest:
    if not 0 < message.port < 65536:
        raise RemoteProtocolError(f"{message.port} is not a port")
    return ReachRequest(SIGNED.unpack(message.hello), message.port)


RESERVE = by_name(pb.TunnelReserve, ReserveFrame, hello=SIGNED)
RESERVED = by_name(pb.TunnelReserved, ReservedFrame)
CONNECT = by_name(pb.TunnelConnect, ConnectFrame, hello=SIGNED)
INCOMING = Codec(
    pb.TunnelIncoming,
    lambda incoming: pb.TunnelIncoming(token=incoming.token),
    lambda message: IncomingFrame(_checked_token(message.token)),
)
ACCEPT = Codec(
    pb.TunnelAccept,
    lambda accept: pb.TunnelAccept(token=accept.token),
    lambda message: AcceptFrame(_checked_token(message.token)),
)
_DATA: Plain[TunnelData] = Plain(lambda frame: frame.data, _unpack_data)

RESERVE_REPLY: Codec[ReserveReply] = union(
    pb.ReserveReply,
    {
        "reserved": (ReservedFrame, RESERVED),
        "incoming": (IncomingFrame, INCOMING),
        "failure": (FailureFrame, FAILURE),
    },
)
TUNNEL_CALL: Codec[TunnelCall] = union(
    pb.TunnelFrame,
    {"connect": (ConnectFrame, CONNECT), "accept": (AcceptFrame, ACCEPT), "data": (TunnelData, _DATA)},
)
TUNNEL_REPLY: Codec[TunnelReply] = union(
    pb.TunnelFrame,
    {
        "ready": (TunnelReadyFrame, flag(TunnelReadyFrame)),
        "data": (TunnelData, _DATA),
        "failure": (FailureFrame, FAILURE),
    },
)
REACH_REQUEST = Codec(
    pb.ReachRequest,
    lambda request: pb.ReachRequest(hello=SIGNED.pack(request.hello), port=request.port),
    _unpack_reach_request,
)
REACH_REPLY = by_name(pb.ReachReply, ReachReply)
