"""Sessions that wait for room on a peer: what they are told, when they start, and how a wait ends; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from blockswarm.peer.session.waiting import Admission
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import (
    OutOfMemory,
    PeerBusy,
    PeerUnavailable,
    RemoteProtocolError,
    SessionLost,
    SwarmError,
)
from blockswarm.proto.wire.handshake import Grant
from blockswarm.routing.admit.table import SessionTable
from blockswarm.routing.swarm import BlockRange, PeerId
from support.virtual_time import VirtualTimeLoop


def grant(session: int, kv_tokens: int, client: str = "") -> Grant:
    client_id = PeerId(client or f"client {session}")
    session_id, me, blocks = session.to_bytes(16, "big"), PeerId("p"), BlockRange(0, 1)
    return Grant(session_id, 1, client_id, me, blocks, kv_tokens, 1, None, None, "float32", "float32", 0, "")


TIMING = PeerTiming()


class Door:
    """One peer's admission, and a diary of who was told what and who started when."""

    def __init__(self, room: int = 100) -> None:
        self.loop = VirtualTimeLoop()
        self.table = SessionTable(room, token_seconds=0.1)
        self.admission = Admission(self.table, lambda: 1000.0 + self.loop.time(), lambda wait_seconds: None, TIMING)
        self.told: dict[int, list[tuple[float, int, float]]] = {}
        self.started: dict[int, float] = {}

    async def session(self, number: int, kv_tokens: int, held: float, wait: float = 1000.0, client: str = "") -> None:
        async def tell(place: int, estimate: float) -> None:
            self.told.setdefault(number, []).append((self.loop.time(), place, estimate))

        async with self.admission.room(grant(number, kv_tokens, client), wait, tell):
            self.started[number] = self.loop.time()
            self.table.note_step(grant(number, kv_tokens).key, kv_tokens, 1, 1000.0 + self.loop.time())
            await asyncio.sleep(held)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.loop.run(work)
        finally:
            assert (self.table.sessions, self.table.waiting) == (0, 0)
            assert self.table.kv_token_blocks_free == self.table.kv_token_blocks_total
            assert self.admission.waiting == 0
            self.loop.close()


async def later(seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
    await asyncio.sleep(seconds)
    return await work


def test_no_room_is_told_in_the_protocol_s_words() -> None:
    """The table has errors of its own; a client hears of a time to come back, of too large a wish, of its own fault."""
    door = Door()

    async def scenario() -> None:
        async def refused(kind: type[SwarmError], number: int, kv_tokens: int, wait: float) -> SwarmError:
            with pytest.raises(kind) as caught:
                await door.session(number, kv_tokens, held=1.0, wait=wait)
            return caught.value

        holder = asyncio.create_task(door.session(0, 100, held=50.0))
        await asyncio.sleep(1)
        for wait in (0.0, 5.0):
            never = await refused(OutOfMemory, 1, 101, wait)
            assert "shorter max_length" in (never.hint or "")
            await refused(RemoteProtocolError, 0, 1, wait)
        busy = await refused(PeerBusy, 1, 10, 0.0)
        assert isinstance(busy, PeerBusy)
        assert busy.retry_after_seconds >= 1
        await holder

    door.run(scenario())


def test_a_waiting_session_starts_the_moment_there_is_room_and_hears_its_place() -> None:
    door = Door()

    async def scenario() -> None:
        await asyncio.gather(
            door.session(0, 100, held=10.0),
            *(later(0.1 * number, door.session(number, 100, held=10.0)) for number in (1, 2, 3)),
        )

    door.run(scenario())
    assert door.started == pytest.approx({0: 0.0, 1: 10.0, 2: 20.0, 3: 30.0})
    assert [place for _, place, _ in door.told[3]] == [3, 2, 1]
    assert all(
        moment == pytest.approx(10.0 * (3 - place), abs=TIMING.news_seconds + 0.5) for moment, place, _ in door.told[3]
    )
    assert [place for _, place, _ in door.told[1]] == [1]
    assert door.told[1][0][0] == pytest.approx(0.1), "the first to wait hears at once"


def test_a_wait_ends_in_time_with_an_estimate_of_what_is_left() -> None:
    door = Door()

    async def scenario() -> PeerBusy:
        # Ten tokens per second: the first one is expected to end after 50 s.
        holder = asyncio.create_task(door.session(0, 100, held=50.0))
        await asyncio.sleep(1)
        with pytest.raises(PeerBusy) as caught:
            await door.session(1, 100, held=1.0, wait=5.0)
        assert door.loop.time() == pytest.approx(6.0)
        assert door.table.waiting == 0
        await holder
        return caught.value

    error = door.run(scenario())
    assert error.retry_after_seconds >= 1
    assert "within 5 s" in str(error)


def test_who_leaves_makes_way() -> None:
    """The large one at the head gives up, and the small ones behind it start at that moment."""
    door = Door()

    async def scenario() -> None:
        holder = asyncio.create_task(door.session(0, 60, held=100.0))
        large = asyncio.create_task(later(1.0, door.session(1, 90, held=1.0)))
        small = [asyncio.create_task(later(2.0, door.session(n, 10, held=1.0))) for n in (2, 3)]
        await asyncio.sleep(7)
        assert door.table.waiting == 3
        large.cancel()
        await asyncio.gather(large, *small, holder, return_exceptions=True)

    door.run(scenario())
    assert door.started[2] == door.started[3] == pytest.approx(7.0)


def test_a_leaving_peer_sends_everybody_away_who_waits() -> None:
    door = Door()

    async def scenario() -> list[object]:
        holder = asyncio.create_task(door.session(0, 100, held=20.0))
        waiting = [asyncio.create_task(later(1.0, door.session(n, 10, held=1.0))) for n in (1, 2)]
        await asyncio.sleep(3)
        door.admission.refuse_waiting(PeerUnavailable("the peer is leaving"))
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert door.loop.time() == pytest.approx(3.0)
        await holder
        return ended

    assert [type(error) for error in door.run(scenario())] == [PeerUnavailable, PeerUnavailable]


def test_a_client_that_takes_no_frames_holds_nobody_up() -> None:
    door = Door()

    async def stuck(place: int, estimate: float) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        holder = asyncio.create_task(door.session(0, 100, held=5.0))
        await asyncio.sleep(0.1)

        async def deaf() -> None:
            async with door.admission.room(grant(1, 100), 1000.0, stuck):
                raise AssertionError("nobody would serve it")

        deaf_one = asyncio.create_task(deaf())
        await asyncio.sleep(0.1)
        await door.session(2, 100, held=1.0)
        with pytest.raises(SessionLost):
            await deaf_one
        await holder

    door.run(scenario())
    assert door.started[2] < 12


@pytest.mark.long
def test_hundreds_in_the_queue_are_all_told_and_all_served() -> None:
    """At most one look at the queue per second, whatever happens in it."""
    door = Door()

    async def scenario() -> None:
        await asyncio.gather(*(door.session(number, 50, held=1.0) for number in range(300)))

    door.run(scenario())
    assert len(door.started) == 300
    assert list(door.started) == list(range(300)), "in the order in which they came"
    assert max(door.started.values()) == pytest.approx(149.0)
    assert len(door.told) == 298
    assert max(map(len, door.told.values())) < 200
    assert door.table.forecasts_made < 400
