"""The peers to which faults are played: real processes, each behind lines for its sessions and for its DHT node."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from ..processes import SCRIPTS, Child, ChildFailed, listening_ports
from .links import Links

MODEL = SCRIPTS / "demo_model"
HOST, LINE_HOST = "127.0.0.1", "127.0.0.2"
"""A peer announces the second one, where only its lines listen: its DHT node is announced with its own port."""
PRODUCT = ("-m", "blockswarm.peer.cli")
PORTS = 20_000, 32_768
"""Below those of outgoing connections."""
CLOSE_SECONDS = 3.0


@dataclass(frozen=True)
class Spec:
    """A peer to be started."""

    blocks: str
    options: tuple[str, ...] = ()
    program: tuple[str, ...] = PRODUCT
    model: str = str(MODEL)
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    hidden: bool = False
    """Whether it listens on nothing that others reach."""
    forked: bool = True
    """Whether it may be forked from a process that has imported the libraries: with the usual clock and environment."""


PLAIN = tuple(Spec(blocks) for blocks in ("0:4", "4:8", "0:4", "4:8"))


@dataclass(eq=False)
class Node:
    """A started peer, and the lines in front of it."""

    spec: Spec
    process: Child
    line: int
    folder: Path
    dht_line: int = -1
    dht_port: int = 0
    arguments: tuple[str, ...] = ()
    peer_id: str = ""
    address: str = ""
    blocks: str = ""
    """Those that it began with; of a peer that was placed they are not in its spec."""
    leaves: bool = False
    """It was asked to stop, and goes when it can."""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to the peer and its daemon."""
        with contextlib.suppress(psutil.NoSuchProcess):
            peer = psutil.Process(self.pid)
            for process in [peer, *peer.children()]:
                process.send_signal(number)

    def daemon(self) -> psutil.Process:
        """Its p2pd."""
        (found,) = [child for child in psutil.Process(self.pid).children() if "p2pd" in child.name()]
        return found


@dataclass
class World:
    """The peers, by id, and the lines to them."""

    links: Links
    folder: Path
    launch: Callable[..., Child] = Child
    """Starts the usual peers, and clients."""
    nodes: dict[str, Node] = field(default_factory=dict)
    joiners: list[Node] = field(default_factory=list)
    """Peers that were started in a case and need not get ready."""
    came: list[Node] = field(default_factory=list)
    """The same, also after the case, until the next one."""
    processes: list[Child] = field(default_factory=list)
    """All that were started, also those that never got ready."""
    timers: list[threading.Timer] = field(default_factory=list)
    cleanups: list[Callable[[], object]] = field(default_factory=list)
    """For the end of a fault."""

    def arrange(self, specs: Sequence[Spec]) -> None:
        """Have one running peer for each spec, and no others; all but the first of a swarm start side by side."""
        wanted = list(specs)
        for node in list(self.nodes.values()):
            if node.process.is_running() and not node.leaves and node.spec in wanted:
                wanted.remove(node.spec)
            else:
                self.nodes.pop(node.peer_id).process.end(CLOSE_SECONDS)
        if wanted and not self.nodes:
            self._wait_for(self.start(wanted.pop(0)))
        for node in [self.start(spec) for spec in wanted]:
            self._wait_for(node)

    def start(self, spec: Spec) -> Node:
        """Start a peer and do not wait for it."""
        line, port = self.links.add(host=LINE_HOST)
        folder = self._data_folder(line)
        dht_port = free_port()
        way = ["--reach", "relay"] if spec.hidden else ["--reach", "direct", "--announce", f"{LINE_HOST}:{port}"]
        arguments = [
            *spec.program, spec.model, "--blocks", spec.blocks, "--host", HOST, "--dht-port", str(dht_port), *way,
            "--data", str(folder), "--threads", "1", "--json", *spec.options,
        ]  # fmt: skip
        running = [node.address for node in self.nodes.values() if node.process.is_running()]
        arguments += [part for address in running[:2] for part in ("--initial-peers", address)] or ["--new-swarm"]
        node = Node(spec, self._launch(arguments, spec, folder), line, folder, dht_port=dht_port)
        node.arguments = tuple(arguments)
        if not spec.hidden:
            node.dht_line, _ = self.links.add(line, LINE_HOST, dht_port)
            self.links.lead_to(node.dht_line, dht_port)
        return node

    def _data_folder(self, line: int) -> Path:
        """With what an earlier peer has measured, so that it need not be measured again."""
        folder = self.folder / f"peer{line}"
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in ("forms.json", "calibration.json"):
            measured = next((path for node in self.nodes.values() if (path := node.folder / name).exists()), None)
            if measured is not None:
                shutil.copy(measured, folder)
        return folder

    def restart(self, node: Node) -> None:
        """Start a dead peer by the same command; returns when it serves."""
        node.process.end()
        node.process = self._launch(node.arguments, node.spec, node.folder)
        self._wait_for(node)

    def _launch(self, arguments: Sequence[str], spec: Spec, folder: Path) -> Child:
        log = folder.with_suffix(".log")
        start = self.launch if spec.forked else partial(Child, environment=spec.environment)
        self.processes.append(start(*arguments, log=log))
        return self.processes[-1]

    def _wait_for(self, node: Node) -> None:
        said = node.process.read()
        node.peer_id, node.address = said["peer_id"], said["address"]
        node.blocks = ":".join(map(str, said["blocks"]))
        if not node.spec.hidden:
            (port,) = listening_ports(node.pid) - {node.dht_port}
            self.links.lead_to(node.line, port)
        self.nodes[node.peer_id] = node

    def join(self, spec: Spec) -> Node:
        """Start a peer that may be refused."""
        self.joiners.append(self.start(spec))
        self.came.append(self.joiners[-1])
        return self.joiners[-1]

    def wait_for(self, node: Node) -> Node:
        """Until a peer that has joined serves. Raises ChildFailed if it ends instead."""
        self._wait_for(node)
        return node

    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.process.is_running()]

    def repeat(self, act: Callable[[], object], pause_seconds: float) -> None:
        """Act again and again until the fault is over."""
        over = threading.Event()

        def acting() -> None:
            while not over.wait(pause_seconds):
                act()

        thread = threading.Thread(target=acting, daemon=True)
        thread.start()
        self.cleanups += [thread.join, over.set]  # the last one comes first

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        self.timers.append(threading.Timer(seconds, act))
        self.timers[-1].start()

    def heal(self) -> None:
        """End what a fault has left: rules, stopped processes, peers that had only come for it."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
        while self.cleanups:
            self.cleanups.pop()()
        self.links.apply()
        for node in [*self.nodes.values(), *self.joiners]:
            node.signal(signal.SIGCONT)
        while self.joiners:
            node = self.joiners.pop()
            self.nodes.pop(node.peer_id, None)
            node.process.end(CLOSE_SECONDS)

    def end(self) -> None:
        """All processes at once; those that do not end in time are killed."""
        self.heal()
        for process in self.processes:
            process.ask_to_end()
        for process in self.processes:
            process.end(CLOSE_SECONDS)


def free_port() -> int:
    """A port that is free at both addresses, of those that Linux gives to nobody who asks for any.

    A peer loads for a while before it listens there.
    """
    with socket.socket() as probe, socket.socket() as other:
        port = random.randrange(*PORTS)
        try:
            probe.bind((HOST, port))
            other.bind((LINE_HOST, port))
        except OSError:
            return free_port()
        return port


def exit_of(node: Node, seconds: float = 240.0) -> str:
    """The reason of a peer that ends, "" if it says none. Raises ChildFailed if it serves, or does not end in time."""
    alarm = threading.Timer(seconds, lambda: node.signal(signal.SIGKILL))
    alarm.start()
    try:
        node.process.read()
    except ChildFailed:
        return " ".join(line for line in node.log_text().splitlines() if line.startswith("swarm-peer: "))
    finally:
        alarm.cancel()
    raise ChildFailed("the peer serves, which it should not")
