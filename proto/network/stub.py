"""The calls that the dialling side makes to a peer, over one line."""

from __future__ import annotations

from typing import TypeVar

from ..errors import RemoteProtocolError
from ..wire.messages.calls import (
    LOOKUP_REPLY,
    LOOKUP_REQUEST,
    PING_REPLY,
    PING_REQUEST,
    LookupReply,
    LookupRequest,
    PingReply,
    PingRequest,
)
from ..wire.messages.codec import Codec
from ..wire.messages.relay import (
    REACH_REPLY,
    REACH_REQUEST,
    RESERVE,
    RESERVE_REPLY,
    TUNNEL_CALL,
    TUNNEL_REPLY,
    ReachReply,
    ReachRequest,
    ReserveFrame,
    ReserveReply,
)
from ..wire.messages.streams import (
    CLIENT_FRAME,
    PEER_FRAME,
    PUSH_FRAME,
    PUSH_REPLY,
    ClientFrame,
    PeerFrame,
    PushFrame,
    PushReply,
)
from .line import Line, LineCall
from .streams import CalledStream, DialedStream, decoded, translated_grpc_errors
from .tunnel import TunnelStream

SERVICE = "blockswarm.v1.Peer"
RELAY_SERVICE = "blockswarm.v1.Relay"

In = TypeVar("In")


class PeerStub:
    """The calls to one peer, over one line. They raise SwarmErrors that name the peer."""

    def __init__(self, line: Line, peer: str) -> None:
        self._line = line
        self._peer = peer

    def session(self) -> DialedStream[PeerFrame, ClientFrame]:
        return CalledStream(LineCall(self._line, f"/{SERVICE}/Session"), self._peer, PEER_FRAME, CLIENT_FRAME)

    def push(self) -> DialedStream[PushReply, PushFrame]:
        return CalledStream(LineCall(self._line, f"/{SERVICE}/Push"), self._peer, PUSH_REPLY, PUSH_FRAME)

    def reserve(self) -> DialedStream[ReserveReply, ReserveFrame]:
        return CalledStream(LineCall(self._line, f"/{RELAY_SERVICE}/Reserve"), self._peer, RESERVE_REPLY, RESERVE)

    def connect(self) -> TunnelStream:
        return CalledStream(LineCall(self._line, f"/{RELAY_SERVICE}/Connect"), self._peer, TUNNEL_REPLY, TUNNEL_CALL)

    def accept(self) -> TunnelStream:
        return CalledStream(LineCall(self._line, f"/{RELAY_SERVICE}/Accept"), self._peer, TUNNEL_REPLY, TUNNEL_CALL)

    async def reach(self, request: ReachRequest, timeout_seconds: float) -> ReachReply:
        return await self._ask("Reach", REACH_REQUEST.encode(request), REACH_REPLY, timeout_seconds)

    async def lookup(self, request: LookupRequest, timeout_seconds: float) -> LookupReply:
        return await self._ask("Lookup", LOOKUP_REQUEST.encode(request), LOOKUP_REPLY, timeout_seconds)

    async def ping(self, request: PingRequest, timeout_seconds: float) -> PingReply:
        return await self._ask("Ping", PING_REQUEST.encode(request), PING_REPLY, timeout_seconds)

    async def _ask(self, method: str, question: bytes, answer: Codec[In], timeout_seconds: float) -> In:
        with translated_grpc_errors(self._peer):
            data = await self._line.ask(f"/{SERVICE}/{method}", question, timeout_seconds)
        if data is None:
            raise RemoteProtocolError(f"{self._peer}: the call {method} succeeded without an answer")
        return decoded(answer, data, self._peer)
