"""Frames inside an open session that are wrong, absurd or too many, and a client that takes no answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import AuthenticationError, BadActivations, LocalProtocolError, SwarmError
from blockswarm.proto.wire.frames import CREDITS
from blockswarm.routing.swarm import BlockRange
from support.directories import until
from support.stranger import ANSWER_SECONDS, HIDDEN, TOKEN_BYTES, Stranger, World, frame, read, refusal, step, tokens

pytestmark = pytest.mark.swarm


def chunk(size: int) -> pb.ClientFrame:
    return pb.ClientFrame(chunk=pb.Chunk(data=bytes(size)))


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
    "to remember what was not computed": [remember(bytes(16))],
    "to remember more than reserved": [remember(bytes(32))],
    "to remember rows without end": [remember(*[b""] * 5000)],
    "to remember by half a name": [remember(b"half")],
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
