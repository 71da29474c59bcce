"""A client of one toy peer that says each frame itself: for what a whole `ChainSession` would never do."""

from __future__ import annotations

import itertools
from typing import Any

from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.frames import StepFrame, WireStep, cut_step
from blockswarm.proto.wire.handshake import Grant, sign_capability, sign_hello
from blockswarm.proto.wire.messages.opening import OpenedFrame, OpenFrame, PushOpenFrame, Signed
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import PeerId
from support.memory_net import MemoryCall
from support.toy_engine import pack
from support.toy_swarm import DIGEST, WHOLE, Peer, World


class ToyClient:
    """One identity, and the sessions that it opens on `peer`."""

    def __init__(self, world: World, peer: Peer) -> None:
        self.identity = Identity.generate()
        self._world = world
        self._peer = peer
        self._numbers = itertools.count()

    @property
    def _stub(self) -> Any:
        address = PeerAddress(self._peer.identity.peer_id, "10.0.0.1:1")
        return self._world.net.dialer(self.identity.peer_id).stub(address)

    def grant(self, kv_tokens: int = 8, epoch: int = 1, predecessor: PeerId | None = None) -> Grant:
        session_id = next(self._numbers).to_bytes(16, "big")
        return Grant(
            session_id, epoch, self.identity.peer_id, self._peer.identity.peer_id, WHOLE, kv_tokens, 4, predecessor,
            None, "float32", "float32", self._world.clock() + 86400, DIGEST,
        )  # fmt: skip

    def capability(self, grant: Grant) -> Signed:
        return sign_capability(self.identity, grant)

    def hello(self, session_id: bytes) -> Signed:
        return sign_hello(self.identity, self._peer.identity.peer_id, session_id, self._world.clock(), None)

    async def send_opening(self, grant: Grant, **fields: Any) -> MemoryCall:
        """A session's stream, with its opening sent."""
        call: MemoryCall = self._stub.session()
        await call.write(OpenFrame(self.hello(grant.session_id), self.capability(grant), **fields))
        return call

    async def open(self, grant: Grant) -> MemoryCall:
        """An open session."""
        call = await self.send_opening(grant)
        assert isinstance(await call.read(), OpenedFrame)
        return call

    async def push(self, grant: Grant) -> MemoryCall:
        """A push stream into a session, with its opening sent."""
        call: MemoryCall = self._stub.push()
        await call.write(PushOpenFrame(self.hello(grant.key)))
        return call


def one_token(seq: int, epoch: int = 1) -> StepFrame:
    """Step `seq` of a session that computes token after token."""
    plan = StepPlan((RowSlice(0, seq - 1, 1, 1),))
    (head,) = cut_step(WireStep(epoch, seq, plan, pack([seq]), 0, 10.0))
    assert isinstance(head, StepFrame)
    return head
