"""Wrong input from strangers: it is refused with a clear status, nobody else notices, and nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from blockswarm.client.chain.session import ChainSession
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import (
    AuthenticationError,
    BadActivations,
    ClockSkew,
    DeadlineExceeded,
    LocalProtocolError,
    ModelMismatch,
    OutOfMemory,
    PeerBusy,
    ProtocolError,
    SessionLost,
    SwarmError,
    WrongSwarm,
    from_wire,
)
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.streams import translated_grpc_errors
from blockswarm.proto.network.transport import SERVICE
from blockswarm.proto.wire.frames import CREDITS, WireStep
from blockswarm.proto.wire.handshake import Grant, sign_capability, sign_hello
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange
from support.directories import until
from support.raw_peer import RawDialer, RawStub, signed_message, step_message
from support.swarm import LocalPeer, LocalSwarm, local_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm

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


def check_close(got: bytes, wanted: bytes) -> None:
    """Whole stages and three of them differ in the last bits."""
    tensors = (torch.frombuffer(bytearray(data), dtype=torch.float32) for data in (got, wanted))
    torch.testing.assert_close(*tensors, atol=2e-5, rtol=1e-4)


# --- a swarm that goes on serving ---


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def world(folder: Path) -> Iterator[World]:
    made = World(folder)
    yield made
    made.close()


@pytest.fixture
def impatient_world(folder: Path) -> Iterator[World]:
    """Peers that give a stream little time to say what it wants, and to take what is said."""
    made = World(folder, PeerTiming(handshake_seconds=1.0, write_seconds=1.0))
    yield made
    made.close()


# --- opening ---


def other_peers_key(stranger: Stranger) -> pb.Open:
    grant = stranger.grant()
    return stranger.opening(grant, capability=signed_message(sign_capability(Identity.generate(), grant)))


def broken_signature(stranger: Stranger) -> pb.Open:
    message = stranger.opening(stranger.grant())
    message.capability.signature = bytes([message.capability.signature[0] ^ 1]) + message.capability.signature[1:]
    return message


def changed_payload(stranger: Stranger) -> pb.Open:
    grant = stranger.grant()
    message = stranger.opening(grant)
    wanted = sign_capability(stranger.identity, replace(grant, kv_tokens=grant.kv_tokens + 1))
    message.capability.payload = wanted.payload
    return message


def hello_for_another(stranger: Stranger) -> pb.Open:
    grant = stranger.grant()
    other = stranger.swarm.peers[0].identity.peer_id
    hello = sign_hello(stranger.identity, other, grant.session_id, time.time(), None)
    return stranger.opening(grant, hello=signed_message(hello))


def hello_of_another_session(stranger: Stranger) -> pb.Open:
    return stranger.opening(stranger.grant(), hello=stranger.hello(bytes(16)))


def hello_at(offset_seconds: float) -> Callable[[Stranger], pb.Open]:
    def make(stranger: Stranger) -> pb.Open:
        grant = stranger.grant()
        return stranger.opening(grant, hello=stranger.hello(grant.session_id, time.time() + offset_seconds))

    return make


def other_protocol(stranger: Stranger) -> pb.Open:
    grant = stranger.grant()
    hello = pb.Hello.FromString(stranger.hello(grant.session_id).payload)
    hello.protocol = 99
    payload = hello.SerializeToString()
    signature = stranger.identity.sign(b"blockswarm-hello-1\0" + payload)
    signed = pb.Signed(payload=payload, signer=stranger.identity.peer_id, signature=signature)
    return stranger.opening(grant, hello=signed)


def granting(**changes: Any) -> Callable[[Stranger], pb.Open]:
    return lambda stranger: stranger.opening(stranger.grant(**changes))


def for_another_peer(stranger: Stranger) -> pb.Open:
    return stranger.opening(stranger.grant(peer=stranger.swarm.peers[0].identity.peer_id))


def lasting(seconds: float) -> Callable[[Stranger], pb.Open]:
    return lambda stranger: stranger.opening(stranger.grant(expires_at_seconds=time.time() + seconds))


def naming(*prefixes: bytes) -> Callable[[Stranger], pb.Open]:
    named = [pb.Prefix(digests=digests) for digests in prefixes]
    return lambda stranger: stranger.opening(stranger.grant(), prefixes=named)


def with_successor(record: bytes) -> Callable[[Stranger], pb.Open]:
    def make(stranger: Stranger) -> pb.Open:
        grant = stranger.grant(successor=Identity.generate().peer_id)
        return stranger.opening(grant, successor_record=record)

    return make


def somebody_elses_record(stranger: Stranger) -> pb.Open:
    records = next(iter(stranger.swarm.store.records.values()))
    record = records[stranger.swarm.peers[0].identity.peer_id]
    return stranger.opening(stranger.grant(successor=stranger.swarm.peers[2].identity.peer_id), successor_record=record)


BAD_OPENINGS = {
    "capability signed by another": (other_peers_key, AuthenticationError),
    "capability with a broken signature": (broken_signature, AuthenticationError),
    "capability changed after signing": (changed_payload, AuthenticationError),
    "capability for another peer": (for_another_peer, AuthenticationError),
    "capability for another range": (granting(blocks=BlockRange(3, 5)), SessionLost),
    "capability for another model": (granting(model_digest="0" * 64), ModelMismatch),
    "capability that has expired": (lasting(-1), AuthenticationError),
    "capability for years": (lasting(1e9), AuthenticationError),
    "capability without end": (lasting(math.nan), LocalProtocolError),
    "no room": (granting(kv_tokens=0), LocalProtocolError),
    "absurd room": (granting(kv_tokens=1 << 60), LocalProtocolError),
    "more room than there is": (granting(kv_tokens=1 << 20), OutOfMemory),
    "more room than is free": (granting(kv_tokens=4000), PeerBusy),
    "absurd rows": (granting(max_rows=1 << 20), LocalProtocolError),
    "no rows": (granting(max_rows=0), LocalProtocolError),
    "a neighbour that is no peer": (granting(predecessor="nobody"), AuthenticationError),
    "an unknown wire format": (granting(wire_format="float1"), LocalProtocolError),
    "an unknown format of inputs": (granting(input_format="float64"), LocalProtocolError),
    "no format of inputs": (granting(input_format=""), LocalProtocolError),
    "hello for another peer": (hello_for_another, AuthenticationError),
    "hello of another session": (hello_of_another_session, AuthenticationError),
    "hello from the past": (hello_at(-60), ClockSkew),
    "hello from the future": (hello_at(60), ClockSkew),
    "hello of no time": (hello_at(math.nan), LocalProtocolError),
    "hello of another protocol": (other_protocol, WrongSwarm),
    "prefixes larger than the room": (naming(bytes(32)), LocalProtocolError),
    "more prefixes than rows": (naming(b"", b"", b""), LocalProtocolError),
    "half the name of a page": (naming(bytes(8)), LocalProtocolError),
    "an empty opening": (lambda stranger: pb.Open(), AuthenticationError),
    "a successor without record": (with_successor(b""), SwarmError),
    "a successor with a broken record": (with_successor(b"\xff" * 100), LocalProtocolError),
    "the record of another successor": (somebody_elses_record, AuthenticationError),
}


@pytest.mark.parametrize("name", BAD_OPENINGS)
def test_an_opening_that_is_refused(world: World, name: str) -> None:
    make, wanted = BAD_OPENINGS[name]

    async def attack(stranger: Stranger) -> None:
        error = await refusal(await stranger.begin(make(stranger)))
        assert isinstance(error, wanted), repr(error)
        assert str(error)
        if isinstance(error, PeerBusy):
            assert error.retry_after_seconds > 0

    world.survive(attack)


def test_a_replayed_opening(world: World) -> None:
    """A recording of what a client sent is of no use to anybody else."""

    async def attack(stranger: Stranger) -> None:
        message = stranger.opening(stranger.grant())
        first = await stranger.begin(message)
        assert (await read(first)).HasField("opened")
        error = await refusal(await stranger.begin(message))
        assert isinstance(error, AuthenticationError)
        assert "used before" in str(error)
        first.cancel()

    world.survive(attack)


def test_a_session_is_opened_once(world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        grant = stranger.grant()
        first = await stranger.begin(stranger.opening(grant))
        assert (await read(first)).HasField("opened")
        error = await refusal(await stranger.begin(stranger.opening(grant)))
        assert isinstance(error, LocalProtocolError)
        await first.write(pb.ClientFrame(step=step()))
        assert (await read(first)).HasField("step"), "the first one goes on"
        first.cancel()

    world.survive(attack)


def test_openings_beyond_the_room_are_told_to_come_back(world: World) -> None:
    """Peers of this test have room for 4096 tokens in each block; 200 are taken by the session that goes on."""

    async def attack(stranger: Stranger) -> None:
        calls = [await stranger.opened(kv_tokens=1200) for _ in range(3)]
        error = await refusal(await stranger.begin(stranger.opening(stranger.grant(kv_tokens=1200))))
        assert isinstance(error, PeerBusy)
        calls[0].cancel()
        again = await until_opened(stranger, 1200)
        for call in (*calls, again):
            call.cancel()

    async def until_opened(stranger: Stranger, kv_tokens: int) -> Any:
        """The peer learns of the cancelled session a moment later."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                call = await stranger.begin(stranger.opening(stranger.grant(kv_tokens=kv_tokens)))
                if (await read(call)).HasField("opened"):
                    return call

    world.survive(attack)


def test_a_client_whose_clock_is_wrong(world: World) -> None:
    """It learns so, instead of hearing that no peer will do."""

    async def attack(stranger: Stranger) -> None:
        config = await stranger.swarm.client()
        session = ChainSession(replace(config, clock=lambda: time.time() + 100), kv_tokens=8, max_rows=1)
        with pytest.raises(ClockSkew, match="100 s"):
            await session.run(StepPlan((RowSlice(0, 0, 1, 1),)), tokens(1))
        await session.close()
        await stranger.swarm.views.pop().close()
        await stranger.swarm.dialers.pop().close()

    world.survive(attack)


# --- frames ---


@pytest.mark.parametrize("payload", [b"\xff" * 20, b"\x0a\x7f", random.Random(1).randbytes(5000)], ids=len)
@pytest.mark.parametrize("method", ["Session", "Push"])
def test_bytes_that_are_no_frame(world: World, method: str, payload: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Its sender is told so, and the log has no traceback."""
    reply = pb.PeerFrame if method == "Session" else pb.PushReply

    async def attack(stranger: Stranger) -> None:
        call = stranger.stub.channel.stream_stream(f"/{SERVICE}/{method}", response_deserializer=reply.FromString)()
        await call.write(payload)
        assert isinstance(await refusal(call), ProtocolError)

    world.survive(attack)
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_a_message_that_is_too_large(world: World) -> None:
    """gRPC's limit of 4 MiB is left on: larger messages are refused before they are read."""

    async def attack(stranger: Stranger) -> None:
        call = await stranger.opened()
        await call.write(pb.ClientFrame(chunk=pb.Chunk(data=bytes(5 << 20))))
        assert isinstance(await refusal(call), SwarmError)

    world.survive(attack)


FIRST_FRAMES = {
    "nothing": pb.ClientFrame(),
    "a step": pb.ClientFrame(step=step()),
    "a chunk": pb.ClientFrame(chunk=pb.Chunk(data=b"x")),
    "a probe": pb.ClientFrame(probe=pb.Probe(nonce=1)),
}


@pytest.mark.parametrize("name", FIRST_FRAMES)
def test_a_session_that_does_not_begin_with_its_opening(world: World, name: str) -> None:
    async def attack(stranger: Stranger) -> None:
        call = stranger.stub.session()
        await call.write(FIRST_FRAMES[name])
        assert isinstance(await refusal(call), LocalProtocolError)

    world.survive(attack)


def chunk(size: int) -> pb.ClientFrame:
    return pb.ClientFrame(chunk=pb.Chunk(data=bytes(size)))


def frame(*args: Any, **fields: Any) -> pb.ClientFrame:
    return pb.ClientFrame(step=step(*args, **fields))


def replay(**fields: Any) -> pb.ClientFrame:
    return pb.ClientFrame(replay=pb.Replay(**{"epoch": 1, "timeout_seconds": 5.0, **fields}))


def kv_import(**fields: Any) -> pb.ClientFrame:
    starts = [0] * len(fields.get("lengths", []))
    return pb.ClientFrame(kv_import=pb.KvState(**{"timeout_seconds": 5.0, "starts": starts, **fields}))


def remember(*prefixes: bytes) -> pb.ClientFrame:
    return pb.ClientFrame(remember=pb.Remember(prefixes=[pb.Prefix(digests=digests) for digests in prefixes]))


NOT_A_NUMBER = torch.full((HIDDEN,), math.nan).numpy().tobytes()
INFINITE = torch.tensor([0.0] * (HIDDEN - 1) + [-math.inf]).numpy().tobytes()

BAD_FRAMES: dict[str, list[pb.ClientFrame]] = {
    "fewer bytes than its tokens": [frame(total_bytes=TOKEN_BYTES - 4, data=bytes(TOKEN_BYTES - 4))],
    "more bytes than its tokens": [frame(total_bytes=TOKEN_BYTES + 4, data=bytes(TOKEN_BYTES + 4))],
    "more bytes than announced": [frame(data=bytes(TOKEN_BYTES + 4))],
    "more bytes in a chunk than announced": [frame(data=bytes(4)), chunk(TOKEN_BYTES)],
    "an announcement of terabytes": [frame(total_bytes=1 << 62)],
    "a chunk without a step": [chunk(4)],
    "an empty chunk": [frame(data=b""), chunk(0)],
    "a step inside a step": [frame(data=bytes(4)), frame()],
    "no rows": [frame(1, ())],
    "no tokens": [frame(1, ((0, 0, 0, 0),))],
    "a row twice": [frame(1, ((0, 0, 1, 1), (0, 1, 1, 1)))],
    "rows out of order": [frame(1, ((1, 0, 1, 1), (0, 0, 1, 1)))],
    "a row that is not there": [frame(1, ((1, 0, 1, 1),))],
    "a row that is far away": [frame(1, ((4_000_000_000, 0, 1, 1),))],
    "a start beyond the end": [frame(1, ((0, 5, 1, 1),))],
    "a start that overflows": [frame(1, ((0, (1 << 32) - 1, 1, 1),))],
    "more answers than tokens": [frame(1, ((0, 0, 1, 2),))],
    "a million tokens": [frame(1, ((0, 0, 1_000_000, 1),), total_bytes=1_000_000 * TOKEN_BYTES)],
    "more tokens than reserved": [frame(1, ((0, 0, 40, 1), (1, 0, 24, 1))), frame(2, ((0, 40, 1, 1),))],
    "more rows than reserved": [frame(1, ((0, 0, 1, 1), (1, 0, 1, 1), (2, 0, 1, 1)))],
    "a source row that is not there": [frame(permutes=True, source_rows=[3])],
    "activations that are no numbers": [frame(data=NOT_A_NUMBER)],
    "infinite activations": [frame(data=INFINITE)],
    "no time": [frame(timeout_seconds=0)],
    "all the time": [frame(timeout_seconds=1e9)],
    "a time that is none": [frame(timeout_seconds=math.nan)],
    "an acknowledgement of itself": [frame(acked_seq=7)],
    "too many steps in flight": [frame(seq) for seq in range(2, CREDITS + 4)],
    "a second opening": [pb.ClientFrame(open=pb.Open())],
    "a frame of no kind": [pb.ClientFrame()],
    "a cache of petabytes": [kv_import(total_bytes=1 << 50)],
    "a cache larger than its rows": [kv_import(lengths=[1], total_bytes=1 << 20)],
    "a cache of more tokens than reserved": [kv_import(lengths=[64, 1])],
    "a cache of more rows than reserved": [kv_import(lengths=[1, 1, 1])],
    "a cache of impossible rows": [kv_import(lengths=[0] * 5000)],
    "a cache of impossible lengths": [kv_import(lengths=[1 << 30])],
    "a cache without a deadline": [kv_import(timeout_seconds=0)],
    "a cache with all the time": [kv_import(timeout_seconds=1e9)],
    "a cache whose time is none": [kv_import(timeout_seconds=math.nan)],
    "a cache that is noise": [kv_import(lengths=[3], total_bytes=900, data=bytes(range(180)) * 5)],
    "a cache without its tensors": [kv_import(lengths=[3])],
    "a cache with an empty chunk": [kv_import(lengths=[3], total_bytes=900), chunk(0)],
    "a cache with more than announced": [kv_import(lengths=[3], total_bytes=900), chunk(901)],
    "a chunk of a cache that was given up": [
        kv_import(lengths=[3], total_bytes=900),
        pb.ClientFrame(probe=pb.Probe(nonce=1)),
        chunk(900),
    ],
    "a cache that begins in the middle of nothing": [kv_import(lengths=[3], starts=[2])],
    "a cache that ends before it begins": [kv_import(lengths=[1], starts=[2])],
    "a cache with starts of other rows": [kv_import(lengths=[1], starts=[])],
    "an export without a deadline": [pb.ClientFrame(kv_export=pb.KvExport(max_tokens=1))],
    "an export of nothing": [pb.ClientFrame(kv_export=pb.KvExport(timeout_seconds=5.0))],
    "an export of impossible rows": [
        pb.ClientFrame(kv_export=pb.KvExport(timeout_seconds=5.0, max_tokens=1, starts=[0] * 5000))
    ],
    "a replay that there is no buffer for": [replay(lengths=[3])],
    "a replay of impossible rows": [replay(lengths=[1] * 5000)],
    "a replay of impossible lengths": [replay(lengths=[1 << 30])],
    "a replay without a deadline": [replay(timeout_seconds=0)],
    "more held tokens than are held": [frame(1, ((0, 64, 1, 1),), adopted_tokens=[64])],
    "held tokens of a thousand rows": [frame(1, adopted_tokens=[0] * 1024)],
    "held tokens in the middle": [frame(1), frame(2, ((0, 1, 1, 1),), adopted_tokens=[1])],
    "to remember what was not computed": [
        pb.ClientFrame(remember=pb.Remember(prefixes=[pb.Prefix(digests=bytes(16))]))
    ],
    "to remember more than reserved": [pb.ClientFrame(remember=pb.Remember(prefixes=[pb.Prefix(digests=bytes(32))]))],
    "to remember rows without end": [pb.ClientFrame(remember=pb.Remember(prefixes=[pb.Prefix()] * 5000))],
    "to remember by half a name": [pb.ClientFrame(remember=pb.Remember(prefixes=[pb.Prefix(digests=b"half")]))],
    "an unsigned reroute": [pb.ClientFrame(reroute=pb.Reroute())],
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_frame_that_is_refused(world: World, name: str) -> None:
    async def attack(stranger: Stranger) -> None:
        call = await stranger.opened()
        for bad_frame in BAD_FRAMES[name]:
            await call.write(bad_frame)
        error = await refusal(call)
        wanted: type[SwarmError] = AuthenticationError if "unsigned" in name else LocalProtocolError
        if "activations" in name:
            wanted = BadActivations
        assert isinstance(error, wanted), repr(error)

    world.survive(attack)


def test_a_step_after_the_close(world: World) -> None:
    """The session is over: nothing is computed, and its room is free."""

    async def attack(stranger: Stranger) -> None:
        call = await stranger.opened()
        await call.write(pb.ClientFrame(close=pb.Close()))
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            await call.write(frame())
        while hasattr(answer := await read(call), "WhichOneof"):
            assert answer.WhichOneof("kind") == "failure"

    world.survive(attack)


def test_a_client_that_takes_no_answers_loses_its_room(impatient_world: World) -> None:
    """It has megabytes computed and reads nothing: gRPC takes no more for it, and the session ends."""

    async def attack(stranger: Stranger) -> None:
        table, counters = stranger.victim.parts.sessions, stranger.victim.parts.counters
        call, before = await stranger.opened(), counters.steps_answered

        async def ask() -> None:
            for seq in itertools.count(1):
                await call.write(frame(seq, ((0, 0, 64, 64),), data=tokens(64), acked_seq=seq - 1))
                await until(lambda seq=seq: counters.steps_answered - before == seq)

        asking = asyncio.create_task(ask())
        async with asyncio.timeout(ANSWER_SECONDS):
            await until(lambda: table.sessions == 1)
        assert (counters.steps_answered - before) * 64 * TOKEN_BYTES > 1 << 19, "it ended for another reason"
        assert not asking.done()
        call.cancel()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    impatient_world.survive(attack)


def test_too_many_hops(world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        call = await stranger.opened()
        head = step()
        head.timings.extend([pb.HopTiming(peer_id="x")] * 1000)
        await call.write(pb.ClientFrame(step=head))
        assert isinstance(await refusal(call), LocalProtocolError)

    world.survive(attack)


def test_a_step_of_another_epoch_is_dropped_and_the_session_goes_on(world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        call = await stranger.opened()
        for epoch in (0, 2, 1 << 60):
            await call.write(frame(epoch=epoch))
        await call.write(frame())
        answer = await read(call)
        assert (answer.step.epoch, answer.step.seq) == (1, 1)
        await call.write(pb.ClientFrame(probe=pb.Probe(nonce=5)))
        assert (await read(call)).status.applied_seq == 1
        call.cancel()

    world.survive(attack)


@pytest.mark.parametrize(
    "changes", [{"epoch": 1}, {"blocks": BlockRange(2, 3), "epoch": 2}, {"kv_tokens": 65, "epoch": 2}], ids=str
)
def test_a_reroute_that_is_no_reroute(world: World, changes: dict[str, Any]) -> None:
    """An old epoch, other blocks, another reservation."""

    async def attack(stranger: Stranger) -> None:
        grant = stranger.grant()
        call = await stranger.begin(stranger.opening(grant))
        assert (await read(call)).HasField("opened")
        capability = stranger.capability(replace(grant, **changes))
        await call.write(pb.ClientFrame(reroute=pb.Reroute(capability=capability)))
        assert isinstance(await refusal(call), LocalProtocolError)

    world.survive(attack)


# --- pushes ---


def test_a_push_from_a_peer_that_is_not_the_predecessor(impatient_world: World) -> None:
    """It waits for its turn, as an early predecessor would, and is then sent away; the session is not touched."""

    async def attack(stranger: Stranger) -> None:
        (session_id,) = stranger.victim.service.open_ids
        call = await stranger.push(session_id)
        await call.write(pb.PushFrame(step=step()))
        error = await refusal(call)
        assert isinstance(error, DeadlineExceeded)

    impatient_world.survive(attack)


def test_a_push_into_an_unknown_session(impatient_world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        assert isinstance(await refusal(await stranger.push(bytes(16))), DeadlineExceeded)

    impatient_world.survive(attack)


BAD_PUSHES: dict[str, pb.PushFrame] = {
    "the wrong number of bytes": pb.PushFrame(step=step(total_bytes=3, data=b"abc")),
    "a chunk without a step": pb.PushFrame(chunk=pb.Chunk(data=b"x")),
    "a second opening": pb.PushFrame(open=pb.PushOpen()),
    "absurd rows": pb.PushFrame(step=step(1, ((0, 1 << 31, 1, 1),))),
}


@pytest.mark.parametrize("name", BAD_PUSHES)
def test_a_push_that_is_refused(world: World, name: str) -> None:
    """The predecessor may be a stranger's own: it spoils its own session at most."""

    async def attack(stranger: Stranger) -> None:
        grant = stranger.grant(predecessor=stranger.identity.peer_id)
        session = await stranger.begin(stranger.opening(grant))
        assert (await read(session)).HasField("opened")
        push = await stranger.push(grant.key)
        assert (await read(push)).ready
        await push.write(BAD_PUSHES[name])
        assert isinstance(await refusal(push), LocalProtocolError)
        session.cancel()

    world.survive(attack)


def test_a_predecessor_that_pushes_nonsense_is_named_in_the_log(
    impatient_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Its successor's operator reads why sessions are repaired, and which peer to look at."""

    async def attack(stranger: Stranger) -> None:
        grant = stranger.grant(predecessor=stranger.identity.peer_id)
        session = await stranger.begin(stranger.opening(grant))
        assert (await read(session)).HasField("opened")
        push = await stranger.push(grant.key)
        assert (await read(push)).ready
        await push.write(BAD_PUSHES["the wrong number of bytes"])
        assert isinstance(await refusal(push), LocalProtocolError)
        async with asyncio.timeout(ANSWER_SECONDS):
            await until(lambda: f"in the steps that peer {stranger.identity.peer_id} pushes" in caplog.text)
        session.cancel()

    with caplog.at_level(logging.INFO):
        impatient_world.survive(attack)


def test_a_session_id_can_be_taken_by_nobody_else(world: World) -> None:
    """Every peer of a chain knows the id: under the id alone it could take the session's place at its replacements."""

    async def attack(stranger: Stranger) -> None:
        grant = stranger.grant()
        squatter = Stranger(stranger.swarm, stranger.victim)
        taken = squatter.grant(session_id=grant.session_id)
        first = await squatter.begin(squatter.opening(taken))
        assert (await read(first)).HasField("opened")
        second = await stranger.begin(stranger.opening(grant))
        assert (await read(second)).HasField("opened")
        for call in (first, second):
            call.cancel()
        await squatter.dialer.close()

    world.survive(attack)


def test_a_replayed_push_opening(world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        grant = stranger.grant(predecessor=stranger.identity.peer_id)
        session = await stranger.begin(stranger.opening(grant))
        assert (await read(session)).HasField("opened")
        opening = pb.PushFrame(open=pb.PushOpen(hello=stranger.hello(grant.key)))
        first = stranger.stub.push()
        await first.write(opening)
        assert (await read(first)).ready
        second = stranger.stub.push()
        await second.write(opening)
        assert isinstance(await refusal(second), AuthenticationError)
        for call in (first, session):
            call.cancel()

    world.survive(attack)


# --- the rest ---


def test_a_look_up_of_an_absurd_name(world: World) -> None:
    async def attack(stranger: Stranger) -> None:
        request = pb.LookupRequest(key="x" * 1000, hello=stranger.hello(bytes(16)))
        with pytest.raises(LocalProtocolError), translated_grpc_errors("the peer"):
            await stranger.stub.lookup(request, timeout=ANSWER_SECONDS)

    world.survive(attack)


def test_mutations_of_a_session(world: World) -> None:
    """Some hundred streams with a byte or two changed: every one ends, or waits for more, and the peer serves on."""
    rng = random.Random(7)

    def mutated(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            position = rng.randrange(len(changed))
            choice = rng.random()
            if choice < 0.5:
                changed[position] = rng.randrange(256)
            elif choice < 0.75:
                del changed[position:]
            else:
                changed[position:position] = rng.randbytes(rng.randint(1, 8))
            if not changed:
                return b"\0"
        return bytes(changed)

    async def one_stream(stranger: Stranger) -> None:
        frames = [
            pb.ClientFrame(open=stranger.opening(stranger.grant())).SerializeToString(),
            frame().SerializeToString(),
            frame(2, ((0, 1, 1, 1),)).SerializeToString(),
            pb.ClientFrame(probe=pb.Probe(nonce=1)).SerializeToString(),
        ]
        victim = rng.choice([0, 1, 1, 2, 2, 3])
        frames[victim] = mutated(frames[victim])
        call = stranger.stub.channel.stream_stream(f"/{SERVICE}/Session", response_deserializer=pb.PeerFrame.FromString)
        stream = call()
        try:
            with translated_grpc_errors("the peer"):
                for data in frames:
                    await stream.write(data)
                await stream.done_writing()
                async with asyncio.timeout(ANSWER_SECONDS):
                    while hasattr(await stream.read(), "WhichOneof"):
                        pass
        except SwarmError:
            pass
        except asyncio.InvalidStateError:
            pass  # the stream ended while we wrote
        finally:
            stream.cancel()

    async def attack(stranger: Stranger) -> None:
        for _ in range(300):
            await one_stream(stranger)

    world.survive(attack)
