"""A peer's calls as the generated stubs know them, without our codecs: for clients that say what they like."""

from __future__ import annotations

import time
from typing import Any

import grpc
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.identity import synthetic_root_pem, tls_name
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.transport import SERVICE
from blockswarm.proto.wire.frames import StepFrame, WireStep, cut_step
from blockswarm.proto.wire.messages.opening import SIGNED, Signed
from blockswarm.proto.wire.messages.steps import STEP


class RawStub:
    """The calls of a peer over a channel; messages in, messages out."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.session = channel.stream_stream(
            f"/{SERVICE}/Session", pb.ClientFrame.SerializeToString, pb.PeerFrame.FromString
        )
        self.push = channel.stream_stream(f"/{SERVICE}/Push", pb.PushFrame.SerializeToString, pb.PushReply.FromString)
        self.lookup = channel.unary_unary(
            f"/{SERVICE}/Lookup", pb.LookupRequest.SerializeToString, pb.LookupReply.FromString
        )


class RawDialer:
    """One channel to each peer, as a client of any kind may make it."""

    def __init__(self) -> None:
        self._stubs: dict[PeerAddress, RawStub] = {}

    def stub(self, address: PeerAddress) -> RawStub:
        if address not in self._stubs:
            credentials = grpc.ssl_channel_credentials(synthetic_root_pem(address.peer, time.time()))
            options = [("grpc.ssl_target_name_override", tls_name(address.peer)), ("grpc.use_local_subchannel_pool", 1)]
            self._stubs[address] = RawStub(grpc.aio.secure_channel(address.target, credentials, options=options))
        return self._stubs[address]

    async def close(self) -> None:
        for stub in self._stubs.values():
            await stub.channel.close(grace=None)


def signed_message(signed: Signed) -> Any:
    return SIGNED.pack(signed)


def step_message(step: WireStep) -> Any:
    """The head of a step."""
    return STEP.pack(next(head for head in cut_step(step) if isinstance(head, StepFrame)))
