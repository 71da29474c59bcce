"""How long a session looks for a chain: for room, and for peers to replace those that it lost; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import pytest
from blockswarm.client.chain.machine.events import HopChoice, Layout
from blockswarm.client.chain.operation import STEP_TOKENS
from blockswarm.client.chain.session import ChainSession
from blockswarm.proto.errors import NoChainError, PeerBusy, SessionLost, SwarmError
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange, Coordinate, PeerId, RequestSpec
from support.session_machine import SessionMachine
from support.toy_engine import pack
from support.toy_swarm import WHOLE, Peer, Visit, World

PATIENCE_SECONDS = 30.0


class FailingRouter:
    """Chooses one peer for everything, until it is told to raise an error instead."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.error: SwarmError | None = None
        self.unproven_seconds = 0.0
        self.refreshes = 0
        self.whole = False

    async def fill(
        self,
        kept: Layout,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
        *,
        check: bool = False,
    ) -> tuple[HopChoice, ...]:
        if self.error is not None:
            raise self.error
        known = self.peer.announcement()
        return (HopChoice(known.address, WHOLE, known.encoded, unproven_seconds=self.unproven_seconds),)

    def pardon(self, peers: frozenset[PeerId]) -> None:
        pass

    async def reaches_anybody(self, seconds: float) -> bool:
        return True

    def seen_whole(self, min_precision: str | None = None) -> bool:
        return self.whole

    async def refresh(self) -> None:
        self.refreshes += 1

    def record(self, peer: PeerId) -> None:
        return None

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        pass

    def leaving(self, peer: PeerId, blocks: BlockRange) -> bool:
        return False

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        return 0.1

    def clock_offset_seconds(self, peer: PeerId) -> float:
        return 0.0


def step(start: int) -> tuple[StepPlan, bytes]:
    return StepPlan((RowSlice(0, start, 1, 1),)), pack([start + 7])


@pytest.mark.parametrize(("error", "running", "seen_whole", "waits"), [
    (PeerBusy(1.0), False, False, True),
    (PeerBusy(1.0), True, True, True),
    (NoChainError((1,)), False, False, False),
    (NoChainError((1,)), False, True, True),
    (NoChainError((1,)), True, True, True),
    (NoChainError((), "all peers are too small"), False, True, False),
])  # fmt: skip
def test_a_session_waits_for_room_and_for_blocks_that_were_served_before(
    error: SwarmError, running: bool, seen_whole: bool, waits: bool
) -> None:
    """As long when it begins as when it runs, and with the same words."""
    world = World([100], clients=1, patience_seconds=PATIENCE_SECONDS, seed=0)
    router = FailingRouter(world.peers[0])
    router.whole = seen_whole
    told: list[str] = []

    async def scenario() -> float:
        config = replace(world.config(0, Visit(0.0)), router=router)  # type: ignore[arg-type]
        session = ChainSession(replace(config, on_event=lambda event: told.append(event.kind)), 8, 1)
        if running:
            await session.run(*step(0))
            world.net.kill(world.peers[0].identity.peer_id)
        router.error = error
        started = world.loop.time()
        with pytest.raises(type(error)):
            await session.run(*step(1 if running else 0))
        waited = world.loop.time() - started
        await session.close()
        await asyncio.sleep(30)
        return waited

    with closing(world.loop):
        waited = world.loop.run(scenario())
    # The last look at the swarm may be old: a session that finds no host looks again before it gives up.
    assert router.refreshes >= 1
    assert waited == pytest.approx(PATIENCE_SECONDS if waits else 0.0, abs=1.0)
    assert told.count("waiting") == waits
    assert waits or router.refreshes == 1


@pytest.mark.parametrize("unproven_seconds", [0.0, 2.5])
def test_the_report_says_whether_the_chain_was_proven_to_be_the_best(unproven_seconds: float) -> None:
    world = World([100], clients=1, patience_seconds=PATIENCE_SECONDS, seed=0)
    router = FailingRouter(world.peers[0])
    router.unproven_seconds = unproven_seconds

    async def scenario() -> None:
        session = ChainSession(replace(world.config(0, Visit(0.0)), router=router), 8, 1)  # type: ignore[arg-type]
        await session.run(*step(0))
        running = session.report()
        await session.close()
        for report in (running, session.report()):
            assert (report.unproven_seconds, report.exact) == (unproven_seconds, unproven_seconds == 0.0)
        await asyncio.sleep(30)  # for what the peer has left to do

    with closing(world.loop):
        world.loop.run(scenario())


@pytest.mark.parametrize("end", ["cancelled", "lost"])
def test_the_report_outlives_a_step_that_is_not_answered(end: str) -> None:
    world = World([100], clients=1, patience_seconds=0.0, seed=0)
    peer = world.peers[0].identity.peer_id

    async def scenario() -> None:
        router = FailingRouter(world.peers[0])
        session = ChainSession(replace(world.config(0, Visit(0.0)), router=router), 8, 1)  # type: ignore[arg-type]
        await session.run(*step(0))
        if end == "lost":
            world.net.kill(peer)
            router.error = NoChainError((1,))
            with pytest.raises(SwarmError):
                await session.run(*step(1))
        else:
            pending = asyncio.create_task(session.run(*step(1)))
            await asyncio.sleep(0)
            pending.cancel()
            await asyncio.wait([pending])
        report = session.report()
        assert ([hop.peer for hop in report.hops], report.steps) == ([peer], 1)
        await session.close()
        assert session.report() == report
        await asyncio.sleep(30)

    with closing(world.loop):
        world.loop.run(scenario())


def test_a_session_tells_its_peers_where_the_client_is() -> None:
    """So that placement can plan for the clients."""
    world = World([100], clients=1, patience_seconds=PATIENCE_SECONDS, seed=0)
    heard: list[Coordinate] = []
    world.peers[0].parts.on_client = lambda client, place: heard.append(place)
    here = Coordinate((0.25, 0.0, -0.125), 0.5)

    async def scenario() -> None:
        for place in (here, None):
            config = replace(world.config(0, Visit(0.0)), router=FailingRouter(world.peers[0]), place=lambda p=place: p)  # type: ignore[arg-type,misc]
            session = ChainSession(config, 8, 1)
            await session.run(*step(0))
            await session.close()
        await asyncio.sleep(30)

    with closing(world.loop):
        world.loop.run(scenario())
    assert heard == [here]


def test_a_session_that_ends_with_guesses_under_way_is_kept_and_blames_nobody() -> None:
    """A peer that the guesses come late to keeps its pages first, and has ended the session when they come."""
    world = SessionMachine()
    world.begin(set(), prefixes=True, streams=("float32",) * 3, wire_format="auto")
    for start, count in ((0, 100), (100, 40)):
        world.check(StepPlan((RowSlice(0, start, count, 1),)))
    first, second, _ = (peer for peer, _ in world.session.chain)
    world.net.link(first, second).delay_seconds = 0.3
    guesses = StepPlan((RowSlice(0, 140, 3, 3),), guessed=3)

    async def end() -> None:
        step = asyncio.create_task(world.session.run(guesses, pack([1, 2, 3]), guessed=True))
        await asyncio.sleep(0.1)
        await world.session.close((140,))
        with pytest.raises(SessionLost):
            await step

    world.loop.run(end())
    assert {event.kind for event in world.events} == {"opened"}
    world.session = ChainSession(world.config, 4000, 5)
    world.truth = world.whole()
    world.check(StepPlan((RowSlice(0, 0, 140, 1),)), list(range(1, 141)))
    assert world.events[-1].detail == "128 of 140 tokens"
    world.teardown()


def test_a_step_that_a_repair_sends_again_after_its_answer_counts_once() -> None:
    """The repeated answer would be a trip of the text that took hardly any time, and a step of the report."""
    world = SessionMachine()
    world.begin(set(), prefixes=False, streams=("float32",) * 3, wire_format="auto")
    world.check(StepPlan((RowSlice(0, 0, 1, 1),)))
    victim = world.session.chain[1][0]

    async def run() -> None:
        prompt = asyncio.create_task(world.session.run(StepPlan((RowSlice(0, 1, 640, 1),)), pack(range(640))))
        for _ in range(1000):
            if world.session.answered_steps == 2:
                break
            await asyncio.sleep(0)
        assert not prompt.done()
        world.net.kill(victim)
        await prompt

    world.loop.run(run())
    assert "rebuilt" in {event.kind for event in world.events}
    assert world.session.answered_steps == 1 + 640 // STEP_TOKENS
    world.close_session()
    world.loop.run(asyncio.sleep(60))
    world.loop.close()
