"""Pushes into a session by those that are not its predecessor, and nonsense from the one that is."""

from __future__ import annotations

import asyncio
import logging

import pytest
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import AuthenticationError, DeadlineExceeded, LocalProtocolError
from support.directories import until
from support.stranger import ANSWER_SECONDS, Stranger, World, read, refusal, step

pytestmark = pytest.mark.swarm


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
