"""How a client takes room on a chain: at once where it is free, else in one order and with leases; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from blockswarm.client.chain.machine.events import HopChoice, Layout
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.timing import ChainTiming
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import NoChainError, PeerBusy, SwarmError
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.admit.queue import MAX_WAITING
from blockswarm.routing.swarm import BlockRange, PeerId, RequestSpec
from support.toy_engine import ToyKv, pack, unpack
from support.toy_swarm import WHOLE, Peer, Visit, World

FRONT, BACK = BlockRange(0, 3), BlockRange(3, 6)


@dataclass
class FixedRouter:
    """Always the same chain: (peer, blocks, predicted wait)."""

    chain: Sequence[tuple[Peer, BlockRange, float]]
    left: Peer | None = None
    """A peer that is about to leave."""
    banned: list[tuple[PeerId, SwarmError]] = field(default_factory=list)

    async def fill(
        self,
        kept: Layout,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
        *,
        check: bool = False,
    ) -> tuple[HopChoice, ...]:
        if kept:
            raise NoChainError(tuple(WHOLE))
        known = [(peer.announcement(), part, wait) for peer, part, wait in self.chain]
        return tuple(HopChoice(seen.address, part, seen.encoded, wait) for seen, part, wait in known)

    def pardon(self, peers: frozenset[PeerId]) -> None:
        pass

    async def reaches_anybody(self, seconds: float) -> bool:
        return True

    def record(self, peer: PeerId) -> bytes:
        return next(host.announcement().encoded for host, _, _ in self.chain if host.identity.peer_id == peer)

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        self.banned.append((peer, error))

    def leaving(self, peer: PeerId, blocks: BlockRange) -> bool:
        return self.left is not None and self.left.identity.peer_id == peer

    def seen_whole(self, min_precision: str | None = None) -> bool:
        return False

    async def refresh(self) -> None:
        pass

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        return 0.1

    def clock_offset_seconds(self, peer: PeerId) -> float:
        return 0.0


class Scene:
    """A world with two peers, `low` before `high` in the order in which room is taken."""

    def __init__(self, low_room: int = 100, high_room: int = 100, max_waiting: int = MAX_WAITING) -> None:
        self.world = World([low_room, high_room], 4, patience_seconds=200.0, seed=0, max_waiting=max_waiting)
        self.low, self.high = sorted(self.world.peers, key=lambda peer: peer.identity.peer_id)
        for peer, room in ((self.low, low_room), (self.high, high_room)):
            peer.table.kv_token_blocks_total = peer.table.kv_token_blocks_free = room
        self.loop = self.world.loop
        self.routers: list[FixedRouter] = []
        """One for each session, in the order in which they were made."""

    def session(self, client: int, tokens: int, *chain: tuple[Peer, BlockRange, float]) -> tuple[ChainSession, Visit]:
        visit = Visit(self.loop.time())
        self.routers.append(FixedRouter(chain))
        config = replace(self.world.config(client, visit), router=self.routers[-1])
        return ChainSession(config, tokens, 1), visit

    def delay_the_client(self, client: int, seconds: float) -> None:
        for peer in self.world.peers:
            self.world.net.link(self.world.clients[client][0], peer.identity.peer_id).delay_seconds = seconds

    def run(self, work: Any) -> None:
        self.loop.run(work)

        async def settle() -> None:
            await asyncio.sleep(30)

        self.loop.run(settle())
        self.world.check_nothing_is_left()


def step(start: int) -> tuple[StepPlan, bytes]:
    return StepPlan((RowSlice(0, start, 1, 1),)), pack([start + 7])


async def check_steps(session: ChainSession, count: int, pause: float = 0.0) -> None:
    truth = ToyKv(WHOLE, count, 1)
    for position in range(count):
        assert unpack(await session.run(*step(position))) == unpack(truth.step(*step(position)).data)
        await asyncio.sleep(pause)


def test_where_there_is_room_the_first_answer_takes_one_round_trip() -> None:
    """Openings go to all peers at once, and the first step follows them without an answer."""
    scene = Scene()
    scene.delay_the_client(0, 1.0)

    async def scenario() -> None:
        session, _ = scene.session(0, 8, (scene.low, FRONT, 0.0), (scene.high, BACK, 0.0))
        await check_steps(session, 1)
        assert scene.loop.time() == pytest.approx(2.0)
        await session.close()

    scene.run(scenario())


@pytest.mark.parametrize("crossed", [False, True])
def test_where_there_is_none_room_is_taken_in_the_order_of_ids(crossed: bool) -> None:
    """Whatever the order on the chain: one round trip per peer, one to connect them, one for the step."""
    scene = Scene()
    scene.delay_the_client(0, 1.0)
    first, second = (scene.high, scene.low) if crossed else (scene.low, scene.high)

    async def watch() -> list[float]:
        moments = []
        for peer in (scene.low, scene.high):
            while not peer.table.sessions:  # noqa: ASYNC110 -- virtual time
                await asyncio.sleep(0.01)
            moments.append(scene.loop.time())
        return moments

    async def scenario() -> None:
        session, _ = scene.session(0, 8, (first, FRONT, 5.0), (second, BACK, 5.0))
        watching = asyncio.create_task(watch())
        await check_steps(session, 1)
        assert await watching == pytest.approx([1.0, 3.0], abs=0.05)
        assert scene.loop.time() == pytest.approx(8.0)
        assert first.parts.counters.steps_pushed == 1
        await session.close()

    scene.run(scenario())


def test_what_is_held_while_waiting_is_given_back_after_the_lease() -> None:
    """Else who only needs the first peer would wait for as long as somebody else does for the second."""
    scene = Scene(low_room=60, high_room=100)

    async def scenario() -> None:
        holder, _ = scene.session(0, 16, (scene.high, WHOLE, 0.0))
        await check_steps(holder, 1)
        both, visit = scene.session(1, 16, (scene.low, FRONT, 1.0), (scene.high, BACK, 1.0))
        waiting = asyncio.create_task(check_steps(both, 16, pause=0.1))
        await asyncio.sleep(1)
        other, _ = scene.session(2, 8, (scene.low, WHOLE, 1.0))
        await check_steps(other, 8, pause=0.1)
        lease = ChainTiming().lease_seconds
        assert lease - 1 < scene.loop.time() < lease + 3
        assert not waiting.done()
        await other.close()
        await asyncio.sleep(70)
        assert not waiting.done()
        assert scene.high.table.waiting == 1
        await holder.close()
        await waiting
        assert scene.loop.time() < 110
        assert {event.detail.partition(",")[0] for event in visit.events if event.kind == "queued"} == {"place 1"}
        await both.close()

    scene.run(scenario())


def test_crossing_chains_do_not_wait_for_each_other_for_ever() -> None:
    """Each would hold what the other needs if they took their chains from front to back."""
    scene = Scene(low_room=50, high_room=50)

    async def scenario() -> None:
        first, _ = scene.session(0, 16, (scene.low, FRONT, 1.0), (scene.high, BACK, 1.0))
        other, _ = scene.session(1, 16, (scene.high, FRONT, 1.0), (scene.low, BACK, 1.0))

        async def use(session: ChainSession) -> None:
            await check_steps(session, 16, pause=0.5)
            await session.close()

        await asyncio.gather(use(first), use(other))
        assert scene.loop.time() == pytest.approx(16.0, abs=1.0)

    scene.run(scenario())


def test_room_that_is_not_used_is_given_back() -> None:
    scene = Scene()

    async def scenario() -> None:
        session, _ = scene.session(0, 8, (scene.low, WHOLE, 0.0))
        await session.prepare(1)
        await asyncio.sleep(PeerTiming().unused_room_seconds - 1)
        assert scene.low.table.sessions == 1
        await asyncio.sleep(2)
        assert scene.low.table.sessions == 0
        await session.close()

    scene.run(scenario())


def test_a_peer_that_only_hears_of_its_predecessor_is_not_forgotten() -> None:
    """With push the client says nothing to the second peer for hours."""
    scene = Scene()

    async def scenario() -> None:
        session, visit = scene.session(0, 16, (scene.low, FRONT, 0.0), (scene.high, BACK, 0.0))
        await check_steps(session, 8, pause=1000.0)
        assert {event.kind for event in visit.events} == {"opened"}
        await session.close()

    scene.run(scenario())


@pytest.mark.parametrize(("held", "goes"), [(7.0, True), (60.0, False)])
def test_a_session_waits_a_little_for_room_at_the_replacement_of_a_leaving_peer(held: float, goes: bool) -> None:
    """It goes over with its cache if there is room soon, and else stays where it is and goes on there."""
    scene = Scene()

    async def scenario() -> None:
        session, visit = scene.session(0, 16, (scene.low, WHOLE, 0.0))
        holder, _ = scene.session(1, 16, (scene.high, WHOLE, 0.0))
        truth = ToyKv(WHOLE, 16, 1)
        for position in range(12):
            if position == 2:
                await holder.run(*step(0))
                scene.loop.call_later(held, lambda: closing.append(asyncio.ensure_future(holder.close())))
                scene.routers[0].left = scene.low
                scene.routers[0].chain = [(scene.high, WHOLE, 5.0)]
            began = scene.loop.time()
            assert unpack(await session.run(*step(position))) == unpack(truth.step(*step(position)).data)
            assert scene.loop.time() <= began + 1, "no step waits for the room"
            await asyncio.sleep(1)
        assert session.chain[0][0] == (scene.high if goes else scene.low).identity.peer_id
        kinds = [event.kind for event in visit.events]
        assert ("handed-over" in kinds, "replay" in kinds) == (goes, False)
        await session.close()
        await holder.close()

    closing: list[asyncio.Future[None]] = []
    scene.run(scenario())


@pytest.mark.long
def test_patience_is_kept_also_where_every_queue_is_full() -> None:
    scene = Scene(max_waiting=0)

    async def scenario() -> None:
        holder, _ = scene.session(0, 16, (scene.low, WHOLE, 0.0))
        await check_steps(holder, 1)
        late, visit = scene.session(1, 16, (scene.low, WHOLE, 0.0))
        with pytest.raises(PeerBusy) as caught:
            await late.run(*step(0))
        assert caught.value.retry_after_seconds > 0
        assert 200 <= scene.loop.time() < 210
        assert 30 < sum(event.kind == "refused" for event in visit.events) < 210, "it asks again, but does not hammer"
        await late.close()
        await holder.close()

    scene.run(scenario())
