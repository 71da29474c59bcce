"""Children that are forked from a process that has imported the libraries, see zygote.py."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..processes import HERE, Child, environment_of

LIBRARIES = ("blockswarm.peer.serving", "blockswarm.peer.engine.load", "blockswarm.client", "llvmlite.binding")
"""The product's own modules bring torch, transformers, grpc and hivemind."""


class ForkedProcess:
    """A process, with the part of subprocess.Popen that `Child` uses. That it has ended is known, and no status."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str]) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        readable, _, _ = select.select([self._ended], [], [], 0)
        return 0 if readable else None

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return 0

    def communicate(self, timeout: float | None = None) -> None:
        """Wait, and close the pipes; nobody reads what was not read."""
        self.wait(timeout)
        for pipe in (self.stdin, self.stdout):
            try:
                pipe.close()
            except OSError:  # what was not written yet finds no reader
                continue

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._ended, number)
        except ProcessLookupError:
            return


class ForkedChild(Child):
    """A child of the zygote."""

    def __init__(self, process: ForkedProcess, log: Path) -> None:
        self._adopt(process, log)


class Zygote:
    """Starts children by forking, from a process that has imported `libraries`. Use as a context manager."""

    def __init__(self, libraries: Sequence[str] = LIBRARIES) -> None:
        self._libraries = libraries

    def __enter__(self) -> Zygote:
        self._socket, other = socket.socketpair()
        self._turn = threading.Lock()
        with other:
            self._process = subprocess.Popen(
                [HERE.python, "-m", "benchlib.breaking.zygote", *self._libraries],
                stdin=other,
                stdout=subprocess.DEVNULL,
                env=environment_of(HERE),
                start_new_session=True,
            )
        self._answers = self._socket.makefile("r")
        return self

    def wait(self) -> None:
        """Until it can fork."""
        if not self._answers.readline():
            raise OSError("the process that forks has ended")

    def __exit__(self, *exc_info: object) -> None:
        self._answers.close()
        self._socket.close()
        self._process.terminate()
        self._process.wait()

    def start(self, *arguments: str | Path, log: Path) -> Child:
        """A child as `Child(*arguments, log=log)` would be."""
        theirs, stdin = os.pipe()
        stdout, theirs_too = os.pipe()
        message = json.dumps({"arguments": [str(argument) for argument in arguments], "log": str(log)})
        with self._turn:
            socket.send_fds(self._socket, [message.encode()], [theirs, theirs_too])
            answer: dict[str, Any] = json.loads(self._answers.readline())
        os.close(theirs)
        os.close(theirs_too)
        return ForkedChild(ForkedProcess(answer["pid"], os.fdopen(stdin, "w"), os.fdopen(stdout)), log)
