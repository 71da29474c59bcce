"""A session's worker tells what its steps cost this peer beside computing, and which steps have arrived."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from blockswarm.peer.engine.engine import StepOutput
from blockswarm.peer.session.replay_store import ReplayStore
from blockswarm.proto.wire.frames import WireStep
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from support.virtual_time import VirtualTimeLoop
from support.workers import FakeLink, make_worker


class SlowCompute:
    """A step takes 7 s: 2 for other sessions, 4 of computing, and 1 on the way between the threads."""

    async def step(self, plan: StepPlan, data: bytes, input_format: str) -> StepOutput:
        await asyncio.sleep(7.0)
        return StepOutput(bytes(4 * plan.tokens), started_at=100.0, finished_at=104.0, queue_seconds=2.0)


class SlowLink(FakeLink):
    """It takes half a second to take a step."""

    async def send(self, step: WireStep) -> None:
        await asyncio.sleep(0.5)
        await super().send(step)


def step_of(seq: int, start: int, count: int) -> WireStep:
    plan = StepPlan((RowSlice(0, start, count, 0),))
    return WireStep(epoch=1, seq=seq, plan=plan, data=bytes(4 * count), acked_seq=0, timeout_seconds=60.0)


def test_a_visit_is_what_is_left_of_the_time_here() -> None:
    """From the arrival to the departure, without computing and without the steps of others; of steps of one token."""
    visits: list[float] = []
    loop = VirtualTimeLoop()

    async def run() -> None:
        link = SlowLink()
        worker = make_worker(link, compute=SlowCompute(), on_visit=visits.append)
        working = asyncio.create_task(worker.run())
        for step in (step_of(1, 0, 3), step_of(2, 3, 1)):
            await worker.put_step(step)
            while len(link.sent) < step.seq:  # noqa: ASYNC110 - the loop jumps
                await asyncio.sleep(0.25)
            await asyncio.sleep(1.0)
        # This one waits for the one before it, which is nothing that a visit costs.
        await worker.put_step(step_of(4, 5, 1))
        await asyncio.sleep(30.0)
        await worker.put_step(step_of(3, 4, 1))
        await asyncio.sleep(30.0)
        assert [step.seq for step in link.sent] == [1, 2, 3, 4]
        working.cancel()

    try:
        loop.run(run())
    finally:
        loop.close()
    assert visits == pytest.approx([7.5 - 6.0] * 2), "of the second and the third step"


def test_a_step_that_comes_before_its_turn_has_not_arrived_for_those_that_seek_one() -> None:
    """A predecessor that sends a step of another session, of a higher number, has lost the one of this session."""

    async def scenario() -> None:
        link = FakeLink()
        worker = make_worker(link, compute=SlowCompute())
        working = asyncio.create_task(worker.run())
        await worker.put_step(step_of(1, 0, 3))
        await worker.put_step(step_of(9, 11, 1))
        assert worker.received_seq == 1
        await asyncio.sleep(30.0)
        assert (worker.received_seq, worker.applied_seq) == (1, 1)
        await worker.put_step(step_of(3, 4, 1))
        assert worker.received_seq == 1
        await worker.put_step(step_of(2, 3, 1))
        assert worker.received_seq == 3
        working.cancel()

    loop = VirtualTimeLoop()
    try:
        loop.run(scenario())
    finally:
        loop.close()


class LosingCompute:
    """It loses the last guess."""

    async def step(self, plan: StepPlan, data: bytes, input_format: str) -> StepOutput:
        return StepOutput(b"\xff" * 4 * plan.tokens, 0.0, 0.0, lost_guesses=1)


def test_a_lost_guess_is_sent_on_as_it_is_and_kept_for_replays_as_zeros() -> None:
    """The next peer must see that it is lost; one that is rebuilt gets tokens without guesses among them."""

    async def scenario() -> None:
        link, replay = FakeLink(), ReplayStore()
        worker = make_worker(link, compute=LosingCompute(), replay=replay)
        working = asyncio.create_task(worker.run())
        step = step_of(1, 0, 2)
        await worker.put_step(replace(step, plan=replace(step.plan, guessed=1)))
        await asyncio.sleep(1.0)
        assert [sent.data for sent in link.sent] == [b"\xff" * 8]
        buffer = replay.get(worker.grant.key)
        assert buffer is not None
        assert buffer.read(step.plan.rows) == b"\xff" * 4 + bytes(4)
        working.cancel()

    loop = VirtualTimeLoop()
    try:
        loop.run(scenario())
    finally:
        loop.close()
