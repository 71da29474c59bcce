"""The daemon, p2pd, and the DHT node that speaks through it: start, one life, stop.

Everything that hivemind keeps to itself and this room needs (its process, its reading task) is touched here and
nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....routing.swarm import PeerId
from ...clock import SteadyClock
from ...errors import PeerUnavailable, SwarmError, UsageError
from ..signed import SignatureCache
from ..swarm_key import SwarmKey
from . import control
from .exchange import REPLICAS, node_id_of, take_over
from .guard import CallGuard
from .places import Places
from .servicer import Reached, Servicer
from .shim import P2P, DHTNode, P2PDaemonError

MAX_CALLS_AT_ONCE = 512
"""Calls of other nodes that are answered side by side."""
HIVEMIND_FAILURES = (P2PDaemonError, RuntimeError, OSError)
"""The errors that hivemind raises when a node cannot start; TimeoutError is an OSError."""
LAUNCHER = (
    "import os, signal, sys; os.setsid(); signal.signal(signal.SIGPIPE, signal.SIG_DFL); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""A program that becomes another one, in a session of its own.

A terminal sends the signals of Ctrl-C and of its own end to every process of the job that it runs: the daemon would
end before it has passed on that the peer leaves.  It needs neither, because it ends by itself when the program that
started it is gone, however that ended: its output leads nowhere then, and its connection to that program is closed.
"""


@dataclass(frozen=True, slots=True)
class HivemindTiming:
    """The time-outs of one node, in seconds."""

    call_seconds: float = 5.0
    """Wait for the answer of one node, or of the daemon."""
    patience_seconds: float = 0.5
    """Silence of one node after which another one is asked as well, where another one will do."""
    lookup_seconds: float = 20.0
    """Wait for a walk through the DHT, and for a node that is being started again."""
    startup_seconds: float = 30.0
    """Wait for the daemon to listen."""
    shutdown_seconds: float = 5.0
    """Wait for the node, and then for the daemon, to end."""
    first_backoff_seconds: float = 0.5
    """Pause after the first attempt to start that failed; every further one is twice as long."""
    max_backoff_seconds: float = 30.0
    """Longest such pause."""
    heartbeat_seconds: float = 5.0
    """Time between two questions to the daemon whether it is there; after two without an answer it is started again."""
    heartbeat_answer_seconds: float = 10.0
    """Wait for such an answer."""
    first_contact_seconds: float = 0.5
    """Pause after the first attempt to reach other nodes that failed; every further one is twice as long."""
    max_contact_seconds: float = 8.0
    """Longest such pause."""
    clock_difference_seconds: float = 3.0
    """Largest difference to the clock of a node through which this one joins."""
    keepers_seconds: float = 600.0
    """Time for which the nodes that keep a key are remembered."""
    distrust_seconds: float = 600.0
    """Time for which a node that left out records is asked last."""
    longest_rest_seconds: float = 30.0
    """Longest time without a look at a large swarm: a record that is renewed late has 36 left when it is read, and a
    look takes some."""
    silent_seconds: float = 5.0
    """Time for which a node that did not answer is left out of searches; twice as long each further time."""
    max_silent_seconds: float = 60.0
    """Longest such time."""
    ban_seconds: float = 600.0
    """Time for which a node that sent a forged record is not listened to."""
    connections_seconds: float = 1.0
    """Time between two questions to the daemon about its connections."""
    connection_memory_seconds: float = 120.0
    """Time for which the network of a node is known after its connection is gone."""
    note_seconds: float = 5.0
    """Time between two looks at which nodes are there, to remember them."""
    patrol_seconds: float = 60.0
    """Time between two looks whether known nodes have lost touch, while others answer."""
    silent_clocks_seconds: float = 120.0
    """Time for which a node whose machine's clock was set waits for others to say what time it is."""


@dataclass(frozen=True, slots=True)
class RunningNode:
    """One life of the daemon and the DHT node that speaks through it."""

    p2p: Any
    dht: Any
    maddrs: tuple[str, ...]
    """The addresses that others saw when it started."""
    timing: HivemindTiming
    clock: Callable[[], float]
    """Unix time."""

    @property
    def daemon(self) -> asyncio.subprocess.Process:
        """The process of the daemon."""
        process: asyncio.subprocess.Process = self.p2p._child
        return process

    @property
    def connection(self) -> asyncio.Task[None]:
        """hivemind's task that reads what the daemon says; when it is done, nothing reaches the node any more."""
        reader: asyncio.Task[None] = self.p2p._client.control._read_task
        return reader

    @property
    def calls_being_answered(self) -> int:
        """The number of calls of other nodes that this one is about to answer."""
        return len(self.p2p._client.control._handler_tasks)

    @property
    def is_alive(self) -> bool:
        """Whether the daemon runs and hivemind still reads what it says."""
        return self.daemon.returncode is None and not self.connection.done()

    @property
    def others(self) -> tuple[Any, ...]:
        """The ids of the nodes that it is in touch with: that it knows and that did not fail to answer lately."""
        return tuple(peer for peer in self.dht.protocol.routing_table.peer_id_to_uid if peer not in self.dht.blacklist)

    async def ended(self) -> str:
        """Wait until the daemon or the connection to it is gone or hangs; says how it ended."""
        exited = asyncio.create_task(self.daemon.wait(), name="wait for the DHT daemon")
        hanging = asyncio.create_task(self._until_it_hangs(), name="ask the DHT daemon")
        try:
            await asyncio.wait({exited, hanging, self.connection}, return_when=asyncio.FIRST_COMPLETED)
            if hanging.done():
                hanging.result()  # an error in asking is a defect of this program, not of the daemon
            if hung := hanging.done() and self.is_alive:
                self.daemon.kill()
            await asyncio.wait({exited}, timeout=0.5)  # a daemon that dies is heard of first by its connection
        finally:
            for task in (exited, hanging):
                task.cancel()
            await asyncio.gather(exited, hanging, return_exceptions=True)
        if hung:
            return "the DHT daemon does not answer"
        code = self.daemon.returncode
        return "the connection to the DHT daemon broke" if code is None else f"the DHT daemon ended (status {code})"

    async def _until_it_hangs(self) -> None:
        """Return when the daemon has missed two heartbeats: one alone may be due to a machine that was asleep."""
        missed = 0
        while missed < 2:
            await asyncio.sleep(self.timing.heartbeat_seconds)
            try:
                await control.identify(self.p2p, self.timing.heartbeat_answer_seconds)
                missed = 0
            except PeerUnavailable:
                missed += 1

    async def stop(self) -> None:
        """Stop the node, then the daemon. Takes at most about two times `shutdown_seconds`."""
        if self.is_alive:  # a dead daemon answers no farewell
            with contextlib.suppress(*HIVEMIND_FAILURES):
                async with asyncio.timeout(self.timing.shutdown_seconds):
                    await self.dht.shutdown()
        await _stop_daemon(self.p2p, self.timing)


@dataclass(frozen=True)
class NodeSettings:
    """How the nodes of one directory are started."""

    peer_id: PeerId
    identity_path: str
    listen_maddrs: tuple[str, ...]
    announce_maddrs: tuple[str, ...]
    swarm_key: SwarmKey | None
    clock: Callable[[], float]
    client_mode: bool
    cache: SignatureCache
    timing: HivemindTiming
    places: Places

    @property
    def machine_clock(self) -> Callable[[], float]:
        """The clock that others are told: that of the machine, also where this node does not follow it."""
        return self.clock.machine if isinstance(self.clock, SteadyClock) else self.clock


class AnswerTasks(dict[Any, "asyncio.Task[None]"]):
    """The tasks that answer calls of other nodes, each until it ends, and a bounded number of them.

    hivemind itself never lets go of one whose caller has hung up.
    """

    def __setitem__(self, call: Any, task: asyncio.Task[None]) -> None:
        if len(self) >= MAX_CALLS_AT_ONCE:
            task.cancel()  # the caller hears nothing, as from a node that is gone
            return
        super().__setitem__(call, task)
        task.add_done_callback(lambda _: self.pop(call, None))


async def start_node(settings: NodeSettings, listen_maddrs: Sequence[str]) -> RunningNode:
    """A node that knows no other one yet. Raises UsageError or PeerUnavailable."""
    made: list[P2P] = []
    timing = settings.timing
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER] if sys.executable else []

    class Daemon(P2P):
        """P2P.create, if it fails or is cancelled, would leave its daemon to the garbage collector."""

        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        @staticmethod
        def _make_process_args(*args: Any, **options: Any) -> list[str]:
            return [*launcher, *P2P._make_process_args(*args, **options)]

    try:
        p2p = await Daemon.create(
            announce_maddrs=list(settings.announce_maddrs) or None,
            host_maddrs=list(listen_maddrs),
            identity_path=settings.identity_path,
            dht_mode="client" if settings.client_mode else "server",
            startup_timeout=timing.startup_seconds,
            auto_nat=False,
            check_if_identity_free=False,  # would start a second daemon; two owners of a key show in their records
            nat_port_map=False,  # no router is asked for a port unasked
            use_relay=False,  # or every node is an open relay
        )
        p2p._client.control._handler_tasks = AnswerTasks()
        authorizer = None if settings.swarm_key is None else CallGuard(settings.swarm_key, settings.clock)
        dht = await DHTNode.create(
            p2p=p2p,
            node_id=node_id_of(settings.peer_id),
            num_replicas=REPLICAS,
            wait_timeout=timing.call_seconds,
            client_mode=settings.client_mode,
            authorizer=authorizer,
            # Caches would answer with records that are up to a life old, and any node may write to them.
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
        )
        take_over(dht, timing.silent_seconds, timing.max_silent_seconds)
        if not settings.client_mode:
            reached = Reached(p2p, timing.call_seconds, timing.connections_seconds, timing.connection_memory_seconds)
            servicer = Servicer(
                p2p, dht.protocol, settings.places, settings.cache, reached, timing.ban_seconds, settings.machine_clock
            )
            await servicer.install(authorizer)
        maddrs = await control.identify(p2p, timing.call_seconds)
    except BaseException as error:
        for p2p in made:
            await _stop_daemon(p2p, timing)
        if isinstance(error, HIVEMIND_FAILURES):
            raise _translate(error) from error
        raise
    return RunningNode(p2p, dht, maddrs, timing, settings.clock)


async def _stop_daemon(p2p: Any, timing: HivemindTiming) -> None:
    """End the daemon, by force if it does not obey; also one that is not quite started."""
    try:
        async with asyncio.timeout(timing.shutdown_seconds):
            await p2p.shutdown()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            p2p._child.kill()
        await p2p._child.wait()
    # hivemind leaves its tasks to the garbage collector, which complains of errors that were not read.
    tasks = [p2p._reader_task, p2p._listen_task]
    if p2p._client is not None:
        tasks += [p2p._client.control._read_task, p2p._client.control._write_task]
    await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


def _translate(error: BaseException) -> SwarmError:
    """The error for the operator behind one of hivemind's, which is known by its text only."""
    text = str(error)
    if "failed to listen" in text:
        return UsageError(
            f"the DHT cannot listen: {text.partition('failed to listen')[2].strip(' :')}",
            hint="Choose another port, or end the program that has it.",
        )
    if "failed to parse multiaddr" in text:
        return UsageError(f"an address of the DHT is wrong: {text.partition('failed to parse multiaddr')[2].strip()}")
    return PeerUnavailable(f"the DHT node cannot start: {text}", hint="See the message; it may pass.")


def sweep_stale_sockets(folder: Path = Path("/tmp")) -> None:
    """Remove the sockets that killed nodes of this user left behind; hivemind puts them all into /tmp.

    A socket is removed only if no process has it open: it is not in the kernel's list, and connecting is refused.
    The list comes first, because a connection that is opened and closed at once makes a live node log an error.  It is
    read from Linux's /proc: elsewhere only root may ask for it, and the sockets stay until the system clears /tmp.
    """
    candidates = [path for path in folder.glob("hivemind-p2p*.sock") if re.fullmatch(r"hivemind-p2p[\w.-]+", path.name)]
    try:
        in_use = set(Path("/proc/net/unix").read_text().split())
    except OSError:
        return  # another kernel, which keeps no such list
    for path in candidates:
        with contextlib.suppress(OSError):  # another node may be sweeping, too
            if str(path) not in in_use and path.is_socket() and path.stat().st_uid == os.geteuid() and _refuses(path):
                path.unlink()


def _refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            return False
    return False
