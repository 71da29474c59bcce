"""Real programs for tests: each in a session of its own, and none outlives the test that started it.

Ports are free ones that the system chose; what a peer says when it is ready is its `--json` line.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from blockswarm.proto.network.address import PeerAddress

READY_SECONDS = 120.0
"""Starting takes a few seconds; on a machine that others use as well it may take many times that."""
STOP_SECONDS = 120.0

_PROGRAMS = {
    "swarm-peer": "blockswarm.peer.cli",
    "swarm-client": "blockswarm.client.program.cli",
    "swarm-dashboard": "blockswarm.client.dashboard.cli",
    "swarm-sim": "blockswarm.routing.sim.cli",
}


def command(program: str, *arguments: object) -> list[str]:
    """The command line of a program of `_PROGRAMS` in this environment."""
    return [sys.executable, "-m", _PROGRAMS[program], *map(str, arguments)]


def environment() -> dict[str, str]:
    """One compute thread, no network beyond loopback, no bars on the terminal."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_program(program: str, *arguments: object, timeout_seconds: float = READY_SECONDS, text: str = "") -> Any:
    """Run a program to its end with `text` on standard input; a CompletedProcess with its two outputs as text."""
    line = command(program, *arguments)
    with subprocess.Popen(
        line, env=environment(), start_new_session=True, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(text, timeout=timeout_seconds)
        finally:
            kill_group(process)
    return subprocess.CompletedProcess(line, process.returncode, output, errors)


def started_by(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Its descendants, also those in sessions of their own (a peer's DHT daemon)."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def assert_gone(processes: Sequence[psutil.Process], seconds: float = STOP_SECONDS) -> None:
    """None of these runs any more; one that nobody has waited for yet is dead, too."""
    assert processes
    _, left = psutil.wait_procs(processes, timeout=seconds)
    alive = []
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    assert not alive


def kill_group(process: subprocess.Popen[Any]) -> None:
    """`kill -9` for a process and all that it started."""
    others = started_by(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for other in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            other.kill()
    process.wait()


@dataclass
class PeerProcess:
    """A running `swarm-peer`."""

    process: subprocess.Popen[str]
    log: Path
    """Its standard error."""
    described: dict[str, Any] = field(default_factory=dict)
    """Its `--json` line; empty until `wait_ready`."""

    @property
    def address(self) -> PeerAddress:
        return PeerAddress.parse(self.described["address"])

    def wait_ready(self, timeout_seconds: float = READY_SECONDS) -> PeerProcess:
        """Until it serves; returns itself. Raises AssertionError with its log if it ends or is late."""
        line = _read_line(self.process, timeout_seconds)
        assert line, f"the peer did not start (status {self.process.poll()}):\n{self.log.read_text()}"
        self.described = json.loads(line)
        return self

    def kill(self) -> None:
        """End it and its daemon at once, as a power cut would."""
        kill_group(self.process)

    def stop(self) -> int:
        """Ask it to leave as a terminal does at Ctrl-C, which asks all processes of the job; its exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(STOP_SECONDS)


def _read_line(process: subprocess.Popen[str], timeout_seconds: float) -> str:
    """The next line of standard output, "" if there is none in time."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            return ""
    return process.stdout.readline()  # the peer writes it in one piece


class PeerProcesses:
    """The peers of a test, each with a data folder of its own below `folder`. Made by `peer_processes`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.peers: list[PeerProcess] = []

    def start(
        self, model: Path, *options: object, initial: Sequence[PeerAddress] = (), data: Path | None = None
    ) -> PeerProcess:
        """Start a peer and do not wait for it; without `initial` it begins a new swarm."""
        data = data or self.folder / f"peer-{len(self.peers)}"
        log = self.folder / f"peer-{len(self.peers)}.log"
        swarm = [part for address in initial for part in ("--initial-peers", address)] or ["--new-swarm"]
        line = command(
            "swarm-peer", model, *swarm, "--host", "127.0.0.1", "--data", data,
            "--device", "cpu", "--threads", 1, "--json", *options,
        )  # fmt: skip
        with log.open("w") as errors:
            process = subprocess.Popen(
                line, env=environment(), start_new_session=True, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self.peers.append(PeerProcess(process, log))
        return self.peers[-1]

    def kill_all(self) -> None:
        for peer in self.peers:
            peer.kill()
            assert peer.process.stdout is not None
            peer.process.stdout.close()


@contextmanager
def peer_processes(folder: Path) -> Iterator[PeerProcesses]:
    """Start peers inside the block; at its end all of them are gone."""
    processes = PeerProcesses(folder)
    try:
        yield processes
    finally:
        processes.kill_all()
