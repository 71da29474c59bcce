"""Tasks with owners: cleanup that a cancellation does not cut short, and conditions that are told of."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from blockswarm.peer.tasks import (
    Changes,
    StopRequest,
    VitalTaskEnded,
    run_to_end,
    run_until_first,
    until_stopped,
    vital_tasks,
)
from blockswarm.proto.errors import PeerUnavailable
from support.virtual_time import VirtualTimeLoop


def run(work: object) -> object:
    loop = VirtualTimeLoop()
    try:
        return loop.run(work)
    finally:
        loop.close()


def test_a_cancelled_caller_waits_for_the_work() -> None:
    """However often it is cancelled; the cancellation comes out when the work is over."""
    diary: list[object] = []

    async def work() -> str:
        await asyncio.sleep(10)
        diary.append("work")
        return "done"

    async def caller() -> None:
        try:
            await run_to_end(work())
        finally:
            diary.append("caller")

    async def scenario() -> None:
        task = asyncio.create_task(caller())
        for _ in range(3):
            await asyncio.sleep(1)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert diary == ["work", "caller"]
        assert await run_to_end(work()) == "done"

    run(scenario())


def test_a_timeout_around_the_work_is_still_a_timeout() -> None:
    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await run_to_end(asyncio.sleep(10))
        assert asyncio.get_running_loop().time() == 10

    run(scenario())


def test_what_the_work_raises_is_raised_or_is_the_cause_of_the_cancellation() -> None:
    async def work() -> None:
        await asyncio.sleep(1)
        raise ValueError("no")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="no"):
            await run_to_end(work())
        task = asyncio.create_task(run_to_end(work()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        causes = [cancelled.value.__cause__, cancelled.value.__context__]
        assert any(isinstance(cause, ValueError) for cause in causes), causes

    run(scenario())


def test_the_first_that_ends_ends_the_others() -> None:
    """They are cancelled inside of the given context, and over when the caller goes on, also when it is cancelled."""
    diary: list[str] = []

    async def steady() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            diary.append("over")

    async def failing() -> None:
        await asyncio.sleep(5)
        raise ValueError("no")

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        diary.append("in")
        yield
        diary.append("out")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="no"):
            await run_until_first(steady(), failing(), cancel_inside=context)
        assert diary == ["in", "over", "out"]
        diary.clear()
        task = asyncio.create_task(run_until_first(steady(), steady()))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert diary == ["over", "over"]

    run(scenario())


def test_of_two_that_fail_at_once_neither_is_reported_as_never_retrieved() -> None:
    """A stream that breaks ends its reader and its writer in one turn of the loop: no traceback for the operator."""
    reported: list[object] = []

    async def failing(name: str, moment: asyncio.Event) -> None:
        await moment.wait()
        raise PeerUnavailable(name)

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        moment = asyncio.Event()
        asyncio.get_running_loop().call_soon(moment.set)
        with pytest.raises(PeerUnavailable, match="reader"):
            await run_until_first(failing("reader", moment), failing("writer", moment))
        gc.collect()

    run(scenario())
    assert not reported


def test_waiters_hear_of_every_change() -> None:
    async def scenario() -> None:
        changes, value = Changes(), 0
        reached: list[int] = []

        async def waiter(wanted: int) -> None:
            await changes.wait_for(lambda: value >= wanted)
            reached.append(wanted)

        async with asyncio.TaskGroup() as group:
            for wanted in (3, 1, 2, 0):
                group.create_task(waiter(wanted))
            await asyncio.sleep(1)
            for value in (1, 2, 3):  # noqa: B007 -- the waiters read it
                changes.notify()
                await asyncio.sleep(1)
        assert reached == [0, 1, 2, 3]

    run(scenario())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no such thing"), "announcing the peer failed: ValueError: no such thing"),
        (PeerUnavailable("nobody is there"), "announcing the peer failed: nobody is there"),
        (None, "announcing the peer has ended"),
    ],
    ids=str,
)
def test_a_vital_task_that_ends_ends_the_program_with_its_reason(error: Exception | None, reason: str) -> None:
    diary: list[str] = []

    async def steady() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            diary.append("the other task is over")

    async def announcing() -> None:
        await asyncio.sleep(5)
        if error is not None:
            raise error

    async def serving() -> None:
        async with vital_tasks({"announcing the peer": announcing(), "watching": steady()}):
            try:
                await asyncio.sleep(1000)
            finally:
                diary.append("the block is over")

    async def scenario() -> None:
        with pytest.raises(VitalTaskEnded, match=reason):
            await serving()
        assert sorted(diary) == ["the block is over", "the other task is over"]
        assert asyncio.get_running_loop().time() == 5
        assert len(asyncio.all_tasks()) == 1

    run(scenario())


def test_the_end_of_the_block_ends_the_vital_tasks() -> None:
    """With what the block raised, if it did."""

    async def scenario() -> None:
        async with vital_tasks({"a": asyncio.sleep(1000), "b": asyncio.sleep(1000)}):
            await asyncio.sleep(1)
        assert len(asyncio.all_tasks()) == 1
        with pytest.raises(PeerUnavailable):
            async with vital_tasks({"a": asyncio.sleep(1000)}):
                raise PeerUnavailable("nobody is there")
        assert len(asyncio.all_tasks()) == 1

    run(scenario())


@pytest.mark.parametrize("signals", [0, 1, 2])
def test_a_second_stop_ends_the_work_at_once(signals: int) -> None:
    diary: list[str] = []

    async def work(stop: StopRequest) -> None:
        stop.serving = True
        try:
            await asyncio.wait_for(stop.gently.wait(), 50)
            await asyncio.sleep(100)
        except TimeoutError:
            diary.append("never asked")
        finally:
            await asyncio.sleep(1)
            diary.append("over")

    async def scenario() -> None:
        stop = StopRequest()
        for number in range(signals):
            asyncio.get_running_loop().call_later(10 * (number + 1), stop)
        await until_stopped(work(stop), stop)

    run(scenario())
    assert diary == (["over"] if signals else ["never asked", "over"])


# --- stopping: gently the first time, at once the second time ---


def test_before_it_serves_a_stop_is_at_once() -> None:
    async def scenario() -> None:
        stop = StopRequest()
        stop()
        assert (stop.gently.is_set(), stop.now.is_set()) == (False, True)

    asyncio.run(scenario())


def test_a_serving_peer_is_stopped_gently_and_then_at_once() -> None:
    async def scenario() -> None:
        stop = StopRequest()
        stop.serving = True
        stop()
        assert (stop.gently.is_set(), stop.now.is_set()) == (True, False)
        stop()
        assert (stop.gently.is_set(), stop.now.is_set()) == (True, True)

    asyncio.run(scenario())


@pytest.mark.parametrize("serving", [True, False])
def test_a_terminal_that_closes_says_so_more_than_once_and_stops_a_peer_once(serving: bool) -> None:
    async def scenario() -> None:
        left: list[str] = []
        stop = StopRequest(leave=lambda: left.append("at once"), cleanup_seconds=600)
        if serving:
            stop.serving = True
        stop.hang_up()
        stop.hang_up()
        assert (stop.gently.is_set(), stop.now.is_set(), left) == (serving, not serving, [])
        stop()
        assert stop.now.is_set()

    asyncio.run(scenario())


def test_a_stop_at_once_cancels_the_work_and_waits_for_its_end() -> None:
    async def scenario() -> None:
        stop, ended = StopRequest(), []

        async def work() -> None:
            try:
                stop()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append("tidied up")

        await until_stopped(work(), stop)
        assert ended == ["tidied up"]

    asyncio.run(scenario())


def test_work_that_ends_or_fails_by_itself_needs_no_stop() -> None:
    async def scenario() -> None:
        await until_stopped(asyncio.sleep(0), StopRequest())

        async def fail() -> None:
            raise OSError("no room on disk")

        with pytest.raises(OSError, match="no room"):
            await until_stopped(fail(), StopRequest())

    asyncio.run(scenario())


def test_a_cancellation_from_outside_is_passed_on() -> None:
    """The program's own end must not look as if the peer had been asked to stop."""

    async def scenario() -> None:
        task = asyncio.create_task(until_stopped(asyncio.Event().wait(), StopRequest()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


class TestLeaving:
    """A download cannot be ended from outside, so the process is."""

    @staticmethod
    def stop_request(left: list[str], cleanup_seconds: float = 3600.0) -> StopRequest:
        return StopRequest(leave=lambda: left.append("left"), cleanup_seconds=cleanup_seconds)

    def test_before_it_serves_a_peer_has_a_moment_to_clean_up(self) -> None:
        gone = threading.Event()
        stop = StopRequest(leave=gone.set, cleanup_seconds=0.01)
        stop()
        assert stop.now.is_set()
        assert gone.wait(60)

    def test_a_second_signal_ends_it_at_once(self) -> None:
        left: list[str] = []
        stop = self.stop_request(left)
        stop()
        assert left == []
        stop()
        assert left == ["left"]

    def test_one_that_serves_ends_its_sessions_first(self) -> None:
        left: list[str] = []
        stop = self.stop_request(left)
        stop.serving = True
        for expected in ([], [], ["left"]):
            stop()
            assert left == expected
        assert stop.gently.is_set()
        assert stop.now.is_set()
