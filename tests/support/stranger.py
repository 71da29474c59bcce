"""A stranger that says what it likes to one peer, and a swarm that must go on serving meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import SwarmError, from_wire
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.streams import translated_grpc_errors
from blockswarm.proto.wire.frames import WireStep
from blockswarm.proto.wire.handshake import Grant, sign_capability, sign_hello
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange
from support.raw_peer import RawDialer, RawStub, signed_message, step_message
from support.swarm import LocalPeer, LocalSwarm, local_swarm

HIDDEN = 64
TOKEN_BYTES = 4 * HIDDEN
ANSWER_SECONDS = 30.0
"""How long a refusal may take on a busy machine; it takes milliseconds."""


class Stranger:
    """A client that says what it likes to one peer."""

    def __init__(self, swarm: LocalSwarm, victim: LocalPeer) -> None:
        self.identity = Identity.generate()
        self.dialer = RawDialer()
        self.swarm = swarm
        self.victim = victim

    @property
    def stub(self) -> RawStub:
        return self.dialer.stub(self.victim.address)

    def grant(self, **changes: Any) -> Grant:
        honest = Grant(
            session_id=random.randbytes(16),
            epoch=1,
            client=self.identity.peer_id,
            peer=self.victim.identity.peer_id,
            blocks=self.victim.blocks,
            kv_tokens=64,
            max_rows=2,
            predecessor=None,
            successor=None,
            wire_format="float32",
            input_format="float32",
            expires_at_seconds=time.time() + 60,
            model_digest=self.swarm.digest,
        )
        return replace(honest, **changes)

    def hello(self, session_id: bytes, at_seconds: float | None = None) -> pb.Signed:
        now = time.time() if at_seconds is None else at_seconds
        return signed_message(sign_hello(self.identity, self.victim.identity.peer_id, session_id, now, None))

    def capability(self, grant: Grant) -> pb.Signed:
        return signed_message(sign_capability(self.identity, grant))

    def opening(self, grant: Grant, **fields: Any) -> pb.Open:
        honest = {"hello": self.hello(grant.session_id), "capability": self.capability(grant)}
        return pb.Open(**{**honest, **fields})

    async def begin(self, message: pb.Open) -> Any:
        """Open a session; does not look at the answer."""
        call = self.stub.session()
        await call.write(pb.ClientFrame(open=message))
        return call

    async def opened(self, **changes: Any) -> Any:
        """A session that was opened as it should be."""
        call = await self.begin(self.opening(self.grant(**changes)))
        frame = await read(call)
        assert frame.WhichOneof("kind") == "opened", frame
        return call

    async def push(self, session_id: bytes) -> Any:
        """A push stream; does not look at the answer."""
        call = self.stub.push()
        await call.write(pb.PushFrame(open=pb.PushOpen(hello=self.hello(session_id))))
        return call


async def read(call: Any) -> Any:
    async with asyncio.timeout(ANSWER_SECONDS):
        with translated_grpc_errors("the peer"):
            return await call.read()


async def refusal(call: Any) -> SwarmError:
    """The error that a stream ends with."""
    try:
        while hasattr(frame := await read(call), "WhichOneof"):
            if frame.WhichOneof("kind") == "failure":
                return from_wire(frame.failure.code, frame.failure.message)
    except SwarmError as error:
        return error
    raise AssertionError("the stream ended without a status")


def tokens(count: int, seed: int = 0) -> bytes:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed)).numpy().tobytes()


def step(seq: int = 1, rows: tuple[tuple[int, int, int, int], ...] = ((0, 0, 1, 1),), **fields: Any) -> pb.Step:
    """The head of a step that is in order, with some `fields` replaced. Rows: (row, start, count, answers)."""
    plan = StepPlan(tuple(RowSlice(*row) for row in rows))
    head = step_message(WireStep(1, seq, plan, tokens(min(plan.tokens, 64)), 0, 10.0))
    head.total_bytes = plan.tokens * TOKEN_BYTES
    head.source_rows.extend(fields.pop("source_rows", ()))
    head.adopted_tokens.extend(fields.pop("adopted_tokens", ()))
    for name, value in fields.items():
        setattr(head, name, value)
    return head


def frame(*args: Any, **fields: Any) -> pb.ClientFrame:
    return pb.ClientFrame(step=step(*args, **fields))


def check_close(got: bytes, wanted: bytes) -> None:
    """Whole stages and three of them differ in the last bits."""
    tensors = (torch.frombuffer(bytearray(data), dtype=torch.float32) for data in (got, wanted))
    torch.testing.assert_close(*tensors, atol=2e-5, rtol=1e-4)


class World:
    """Three peers, and one loop that lives as long as they do."""

    def __init__(self, folder: Path, timing: PeerTiming | None = None) -> None:
        self._runner = asyncio.Runner()
        self._context = local_swarm(folder, "0:2", "2:4", "4:6", timing=timing or PeerTiming())
        self.swarm = self._runner.run(self._context.__aenter__())
        self._whole = Engine(load_stage(open_checkpoint(folder), BlockRange(0, 6)), KvPool(0, prefix_limit_bytes=0))

    def survive(self, attack: Callable[[Stranger], Awaitable[None]], victim: int = 1) -> None:
        """Run `attack` on a peer while a session goes through it; the session and the peer must not care."""

        async def scenario() -> None:
            session = await self.swarm.session(kv_tokens=200)
            truth = self._whole.open(BlockRange(0, 6), self._whole.wire_format("float32"), 200, 1)
            stranger = Stranger(self.swarm, self.swarm.peers[victim])
            try:
                for position in range(3):
                    plan = StepPlan((RowSlice(0, position, 1, 1),))
                    answer = await session.run(plan, tokens(1, position))
                    check_close(answer, truth.step(plan, tokens(1, position)).data)
                    if position == 1:
                        await attack(stranger)
                assert session.chain[victim][0] == stranger.victim.identity.peer_id
            finally:
                await stranger.dialer.close()
                await session.close()
                await self.swarm.views.pop().close()
                await self.swarm.dialers.pop().close()
            async with asyncio.timeout(ANSWER_SECONDS):
                for peer in self.swarm.peers:
                    await peer.service.wait_idle()

        self._runner.run(scenario())
        for peer in self.swarm.peers:
            assert peer.parts.sessions.kv_token_blocks_free == peer.parts.sessions.kv_token_blocks_total
            assert peer.parts.replay.nbytes == 0
            assert len(peer.parts.replay) == 0
            assert not peer.service.open_ids
            assert (peer.parts.engine.pool.reserved_bytes, peer.parts.engine.pool.used_bytes) == (0, 0)

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._whole.close()
        self._runner.close()
