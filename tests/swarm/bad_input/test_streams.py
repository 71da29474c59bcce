"""Streams that do not keep to the protocol: bytes that are no frame, or a first frame that opens nothing."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import LocalProtocolError, ProtocolError, SwarmError
from blockswarm.proto.network.streams import translated_grpc_errors
from blockswarm.proto.network.transport import SERVICE
from support.stranger import ANSWER_SECONDS, Stranger, World, frame, refusal, step

pytestmark = pytest.mark.swarm


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
