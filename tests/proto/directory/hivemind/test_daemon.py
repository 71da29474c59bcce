"""One life of the daemon: how it ends is told, and what ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from blockswarm.proto.directory.hivemind.daemon import HivemindTiming, RunningNode
from support.processes import assert_gone, kill_group, started_by

TIMING = HivemindTiming(heartbeat_seconds=0.01, heartbeat_answer_seconds=0.01)


class Process:
    """A daemon's process that runs until it is killed."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    async def wait(self) -> None:
        await self._ended.wait()

    def kill(self) -> None:
        self.returncode = -9
        self._ended.set()


def node_of(process: Process, reading: asyncio.Task[None], error: Exception) -> RunningNode:
    """A node whose daemon cannot be asked, for the reason `error`."""

    async def open_connection() -> Any:
        raise error

    connector = SimpleNamespace(open_connection=open_connection)
    control = SimpleNamespace(daemon_connector=connector, _read_task=reading)
    p2p = SimpleNamespace(_child=process, _client=SimpleNamespace(control=control))
    return RunningNode(p2p, None, (), TIMING, time.time)


async def ended(error: Exception) -> tuple[str, int | None]:
    """How a daemon ends that cannot be asked, and its exit status."""
    reading = asyncio.create_task(asyncio.Event().wait())
    process = Process()
    try:
        async with asyncio.timeout(60):
            return await node_of(process, reading, error).ended(), process.returncode  # type: ignore[arg-type]
    finally:
        reading.cancel()


def test_a_daemon_that_does_not_answer_is_killed() -> None:
    assert asyncio.run(ended(ConnectionRefusedError())) == ("the DHT daemon does not answer", -9)


def test_a_defect_in_asking_is_not_taken_for_a_daemon_that_hangs() -> None:
    """It was swallowed, and the daemon killed and started again, for ever."""
    with pytest.raises(KeyError, match="a defect"):
        asyncio.run(ended(KeyError("a defect")))


# --- real daemons ---

PROGRAM = """
import asyncio, signal, sys
from pathlib import Path
from blockswarm.proto.directory.hivemind.node import HivemindDirectory

async def main():
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asked.set)
    directory = await HivemindDirectory.start(Path(sys.argv[1]), (), ("/ip4/127.0.0.1/tcp/0",))
    print(directory.node.daemon.pid, flush=True)
    await asked.wait()
    print("asked", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(directory.node.daemon.pid, directory.node.is_alive, flush=True)
    await directory.close()

asyncio.run(main())
"""
"""A node that is asked to end by SIGINT, and ends when its standard input does."""


@contextmanager
def node_program(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder / "identity"],
        start_new_session=True, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            kill_group(process)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_terminal_does_not_end_the_daemon_of_a_node(tmp_path: Path) -> None:
    """Ctrl-C goes to the whole job, and the daemon was gone before it had passed on the last record."""
    with node_program(tmp_path) as process:
        daemon = psutil.Process(int(said(process)))
        assert os.getsid(daemon.pid) == daemon.pid
        assert daemon.ppid() == process.pid
        os.killpg(process.pid, signal.SIGINT)
        assert said(process) == "asked"
        assert process.stdin is not None
        process.stdin.close()
        assert said(process) == f"{daemon.pid} True"
        assert process.wait(60) == 0
        assert not daemon.is_running()


def test_a_node_that_is_killed_leaves_no_daemon(tmp_path: Path) -> None:
    with node_program(tmp_path) as process:
        daemon = psutil.Process(int(said(process)))
        process.kill()
        assert_gone([daemon])


@pytest.mark.parametrize("pause_seconds", [0.0, 0.02, 0.1])
def test_a_node_that_is_killed_while_it_starts_leaves_no_daemon(tmp_path: Path, pause_seconds: float) -> None:
    """Also one that does not listen yet, or is not quite the daemon; several moments of it are tried."""
    with node_program(tmp_path) as process:
        while not (started := started_by(process)):
            assert process.poll() is None
        time.sleep(pause_seconds)
        process.kill()
        assert_gone(started)
