"""Processes that are measured: started, talked to in lines of JSON, their CPU time and memory read, and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

SCRIPTS = Path(__file__).resolve().parent.parent
END_SECONDS = 15.0

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(SCRIPTS),
}


class ChildFailed(Exception):
    """A measured process ended, or answered with an error."""


class Child:
    """One process. It says what it has to say as lines of JSON; other lines it prints are ignored."""

    def __init__(self, *arguments: str | Path, log: Path) -> None:
        """Start Python with `arguments`; its messages for people are appended to the file `log`."""
        self._log = log
        self.started_at = time.perf_counter()
        with log.open("ab") as messages:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its children
                text=True,
            )
        self._tree = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def read(self) -> Any:
        """The next line of JSON. Raises ChildFailed if the process ends instead."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(("{", "[")):
                return json.loads(line)
        tail = self._log.read_text(errors="replace").strip().splitlines()[-12:]
        raise ChildFailed("\n".join([f"a process ended with status {self._process.wait()}:", *tail]))

    def ask(self, **question: Any) -> Any:
        """Send one line of JSON and wait for the answer to it. Raises ChildFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.read()

    def cpu_seconds(self) -> float:
        """CPU time used so far by the process and those it started."""
        return sum(_cpu_seconds(pid) for pid in self._pids())

    def memory_bytes(self) -> int:
        """Proportional set size of the process and those it started: what is shared counts in proportion."""
        return sum(psutil.Process(pid).memory_full_info().pss for pid in self._pids())

    def end(self) -> None:
        """Ask the process to end, wait, and kill it if it does not. Idempotent."""
        children = [] if self._process.poll() is not None else self._tree.children(recursive=True)
        self._process.terminate()
        try:
            self._process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        for child in children:
            if child.is_running():
                child.kill()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def _pids(self) -> list[int]:
        return [self._process.pid, *(child.pid for child in self._tree.children(recursive=True))]


def _cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, also of those that have ended; in nanoseconds, not ticks.

    The number of another process's CPU clock is what clock_getcpuclockid(3) computes.
    """
    return time.clock_gettime((~pid << 3) | 2)


def cpu_seconds(children: Iterable[Child]) -> float:
    """CPU time that all of them have used so far."""
    return sum(child.cpu_seconds() for child in children)


def machine() -> Mapping[str, Any]:
    """The facts about the machine that a reader of the figures needs."""
    import platform
    from importlib.metadata import version

    return {
        "processor": _processor_name(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "grpcio", "hivemind")},
        "load_average_before": os.getloadavg(),
    }


def _processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def command_line(name: str, arguments: Sequence[str]) -> str:
    """How the benchmark was called."""
    return " ".join([f"scripts/{name}", *arguments])
