"""Processes that are measured: started, talked to in lines of JSON, their CPU time and memory read, and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

SCRIPTS = Path(__file__).resolve().parent.parent
END_SECONDS = 15.0

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_NOTHING: Mapping[str, str] = {}
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Those that decide which products a processor computes fast, as Linux names them."""


@dataclass(frozen=True)
class Version:
    """A clone of this repository with an environment of its own: the code that is measured."""

    python: Path
    scripts: Path

    @classmethod
    def at(cls, root: Path) -> Version:
        """Raises FileNotFoundError if `root` is no clone in which the scripts have run."""
        version = cls(root / ".venv" / "bin" / "python", root / "scripts")
        for path in (version.python, version.scripts / "benchlib"):
            if not path.exists():
                raise FileNotFoundError(f"{path} is not there: is {root} a clone, and did its scripts/test ever run?")
        return version


HERE = Version(Path(sys.executable), SCRIPTS)


def environment_of(version: Version) -> dict[str, str]:
    """That of measured processes: one compute thread, no network beyond loopback."""
    return os.environ | _ENVIRONMENT | {"PYTHONPATH": str(version.scripts)}


class ChildFailed(Exception):
    """A measured process ended, or answered with an error."""


class Child:
    """One process. It says what it has to say as lines of JSON; other lines it prints are ignored."""

    def __init__(
        self, *arguments: str | Path, log: Path, version: Version = HERE, environment: Mapping[str, str] = _NOTHING
    ) -> None:
        """Start Python with `arguments`; its messages for people are appended to the file `log`."""
        with log.open("ab") as messages:
            process = subprocess.Popen(
                [version.python, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                env=environment_of(version) | environment,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its children
                text=True,
            )
        self._adopt(process, log)

    def _adopt(self, process: Any, log: Path) -> None:
        """`process` is a Popen, or like one."""
        self.started_at = time.perf_counter()
        self._log = log
        self._process = process
        self._tree = psutil.Process(process.pid)

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

    def read_text(self, beginning: str) -> str:
        """The rest of the next line that begins so. Raises ChildFailed if the process ends instead."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line.removeprefix(beginning).strip()
        raise ChildFailed(f"a process ended with status {self._process.wait()}, see {self._log}")

    def send(self, **question: Any) -> None:
        """Send one line of JSON; `read` waits for the answer to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()

    def ask(self, **question: Any) -> Any:
        """Send one line of JSON and wait for the answer to it. Raises ChildFailed."""
        self.send(**question)
        return self.read()

    def cpu_seconds(self) -> float:
        """CPU time used so far by the process and those it started."""
        return sum(_cpu_seconds(pid) for pid in self._pids())

    def threads(self) -> list[int]:
        """The ids of all threads of the process and of those it started."""
        return [thread.id for pid in self._pids() for thread in psutil.Process(pid).threads()]

    def memory_bytes(self) -> int:
        """Proportional set size of the process and those it started: what is shared counts in proportion."""
        return sum(self.memory_by_process())

    def memory_by_process(self) -> list[int]:
        """The same of each: that of the process comes first."""
        return [psutil.Process(pid).memory_full_info().pss for pid in self._pids()]

    def ask_to_end(self) -> None:
        """Ask and do not wait: where many are to end, they do it side by side. `end` has to follow."""
        if self._process.poll() is None:
            self._process.terminate()

    def end(self, patience_seconds: float = END_SECONDS) -> None:
        """Ask the process to end, wait, and kill it if it does not. Idempotent."""
        children = [] if self._process.poll() is not None else self._tree.children(recursive=True)
        self._process.terminate()
        try:
            self._process.communicate(timeout=patience_seconds)
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


def run_program(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns. A request to end is an exception in it, so that it ends what it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


def listening_port(pid: int) -> int:
    """The port that a process listens on. Raises ValueError unless there is exactly one."""
    (port,) = listening_ports(pid)
    return port


def listening_ports(pid: int) -> set[int]:
    """The TCP ports that a process listens on."""
    return {c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def machine() -> Mapping[str, Any]:
    """The facts about the machine that a reader of the figures needs."""
    import platform
    from importlib.metadata import version

    facts = _processor()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": facts.get("model name", "unknown"),
        "instructions": sorted(set(_INSTRUCTIONS) & set(facts.get("flags", "").split())),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "grpcio", "hivemind")},
        "load_average_before": os.getloadavg(),
    }


def describe_machine(facts: Mapping[str, Any], command: str) -> str:
    """The date, the machine and the command, in a line above the tables."""
    memory, instructions = facts["memory_bytes"] / 2**30, ", ".join(facts["instructions"]) or "none of note"
    before, after = facts["load_average_before"][0], os.getloadavg()[0]
    return (
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {memory:.0f} GiB, {instructions},"
        f" load {before:.1f} before and {after:.1f} after: `{command}`"
    )


def _processor() -> dict[str, str]:
    """Linux's facts about the first processor; empty where there is another system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def command_line(name: str, arguments: Sequence[str]) -> str:
    """How the benchmark was called."""
    return " ".join([f"scripts/{name}", *arguments])
