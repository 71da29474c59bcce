"""The network thread: results and errors cross over, and work ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
from blockswarm.client.background import BackgroundLoop, background_loop
from blockswarm.proto.errors import DeadlineExceeded, PeerUnavailable, UsageError


async def value(result: int) -> int:
    await asyncio.sleep(0)
    return result


def test_work_runs_on_one_other_thread():
    async def thread() -> int:
        return threading.get_ident()

    loop = background_loop()
    assert loop is background_loop()
    assert loop.run(thread(), 10) == loop.run(thread(), 10) != threading.get_ident()


def test_errors_of_the_work_come_back_as_they_are():
    async def fail() -> None:
        raise PeerUnavailable("nobody there")

    async def time_out() -> None:
        raise TimeoutError("mine")

    with pytest.raises(PeerUnavailable, match="nobody there"):
        background_loop().run(fail(), 10)
    with pytest.raises(TimeoutError, match="mine"):
        background_loop().run(time_out(), 10)


def test_the_deadline_cancels_the_work():
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(DeadlineExceeded, match="no answer"):
        background_loop().run(forever(), 0.01)
    assert cancelled.wait(60)


def test_an_interrupt_cancels_the_work():
    """Ctrl-C raises in the waiting thread; the work must not go on behind its back."""
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    class Interrupted:
        def __init__(self, future: object) -> None:
            self.future = future

        def result(self, timeout: float) -> None:
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> object:
            return getattr(self.future, name)

    started = threading.Event()

    async def begin() -> None:
        started.set()
        await forever()

    class InterruptedLoop(BackgroundLoop):
        def submit(self, work: Any) -> Any:
            future = super().submit(work)
            started.wait(60)
            return Interrupted(future)

    with pytest.raises(KeyboardInterrupt):
        InterruptedLoop().run(begin(), 10)
    assert cancelled.wait(60)


def test_the_loop_does_not_wait_for_itself():
    async def inside() -> None:
        background_loop().run(value(1), 10)

    with pytest.raises(RuntimeError, match="own work"):
        background_loop().run(inside(), 10)


def test_it_works_inside_somebody_elses_loop():
    async def notebook() -> int:
        return background_loop().run(value(3), 10)

    assert asyncio.run(notebook()) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("call", ["a loop of its own", "run", "submit"])
def test_a_forked_child_is_refused_at_once(call: str):
    """The thread of the loop is not there, so that a call would never end; and gRPC crashes in such a child."""
    loop = background_loop()

    def attempt() -> None:
        if call == "a loop of its own":
            background_loop()
        else:
            getattr(loop, call)(value(7), *([10] if call == "run" else []))

    child = os.fork()
    if child == 0:
        try:
            attempt()
        except UsageError as error:
            os._exit(7 if "forked" in str(error) and "spawn" in error.hint else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert loop.run(value(1), 10) == 1
