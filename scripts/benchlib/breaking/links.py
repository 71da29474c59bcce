"""Lines between real processes that can be made to swallow, to delay, to drip, to garble or to break.

There is a TCP proxy in front of each port of a peer.  A rule says what happens on the connections from the processes of
one session to one peer, in both directions.  Bytes that are held arrive when the rule is lifted, as TCP's repetitions
would have them arrive; while nobody lifts it the line is half-open: it stands, and nothing comes through.  New
connections are accepted and held as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

CHUNK_BYTES = 1 << 16
DROP_SECONDS = 0.1
"""Time between two pieces on a line that drips."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Rule:
    """Applies where both ends match; None matches every process."""

    dialler: int | None = None
    """Process id of the side that has connected, or of the leader of its session."""
    peer: int | None = None
    """Number of the peer's first line, as `Links.add` returned it."""
    held: bool = True
    delay_seconds: float = 0.0
    """Added to the peer's answers, where they are not held."""
    bytes_per_second: float = 0.0
    """Rate of the peer's answers, where they are not held; 0: as fast as they come."""
    flip: bool = False
    """Change one bit of everything that the peer says."""
    opened_before: float = float("inf")
    """Only connections that were open at that time of the monotonic clock; newer ones work."""

    def matches(self, dialler: int | None, peer: int, opened_at: float = 0.0) -> bool:
        return self.dialler in (None, dialler) and self.peer in (None, peer) and opened_at < self.opened_before


class Links:
    """All lines, run by a thread of their own. Use as a context manager."""

    def __init__(self, rtt_seconds: float = 0.0) -> None:
        self._one_way_seconds = rtt_seconds / 2
        self._rules: tuple[Rule, ...] = ()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._targets: list[int] = []
        self._owners: list[int] = []
        self._servers: list[asyncio.Server] = []
        self._open: dict[tuple[int | None, int], set[asyncio.StreamWriter]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-links", daemon=True)

    def __enter__(self) -> Links:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, owner: int | None = None, host: str = "127.0.0.1", port: int = 0) -> tuple[int, int]:
        """A new line: its number, and the port at which it is reached.

        `owner` is the first line of the same peer, to which rules for that peer apply as well.
        """
        number = len(self._targets)
        self._targets.append(0)
        self._owners.append(number if owner is None else owner)
        return number, self._run(self._listen(number, host, port))

    def lead_to(self, line: int, port: int) -> None:
        """Where the line leads; before that, who connects is turned away."""
        self._targets[line] = port

    def apply(self, *rules: Rule) -> None:
        """These rules and no others from now on."""

        async def change() -> None:
            self._rules = rules
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

        self._run(change())

    def cut(self, rule: Rule) -> None:
        """Reset the connections that the rule matches; new ones are possible."""

        async def reset() -> None:
            for (dialler, peer), writers in self._open.items():
                if rule.matches(dialler, peer):
                    for writer in writers:
                        writer.transport.abort()

        self._run(reset())

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self, line: int, host: str, port: int) -> int:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with contextlib.suppress(OSError):
                    await self._serve(line, reader, writer)
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(accepted, host, port)
        self._servers.append(server)
        taken: int = server.sockets[0].getsockname()[1]
        return taken

    async def _serve(self, line: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own, source = writer.get_extra_info("sockname")[1], writer.get_extra_info("peername")[1]
        dialler = await asyncio.to_thread(process_of, source, own)
        target_reader, target = await asyncio.open_connection("127.0.0.1", self._targets[line])
        owner = self._owners[line]
        writers = self._open.setdefault((dialler, owner), set())
        writers |= {writer, target}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(reader, target, dialler, owner, answers=False))
                tasks.create_task(self._carry(target_reader, writer, dialler, owner, answers=True))
        except* OSError:
            pass
        finally:
            writers -= {writer, target}
            target.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dialler: int | None, peer: int, answers: bool
    ) -> None:
        """Carry one direction to its end; the other direction ends with it, as the connection does."""
        opened_at = self._loop.time()
        on_the_way: deque[tuple[float, bytes]] = deque()
        arrived = asyncio.Event()

        async def receive() -> None:
            try:
                while data := await reader.read(CHUNK_BYTES):
                    on_the_way.append((self._loop.time(), data))
                    arrived.set()
            finally:  # also of a connection that was reset
                on_the_way.append((self._loop.time(), b""))
                arrived.set()

        receiving = asyncio.create_task(receive())
        try:
            while True:
                while not on_the_way:
                    arrived.clear()
                    await arrived.wait()
                sent_at, data = on_the_way[0]
                rules = await self._rules_for(dialler, peer, opened_at, answers)
                seconds = self._one_way_seconds + sum(rule.delay_seconds for rule in rules)
                await asyncio.sleep(max(0.0, sent_at + seconds - self._loop.time()))
                on_the_way.popleft()
                if not data:
                    raise ConnectionResetError
                await _pass_on(data, writer, rules)
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _rules_for(self, dialler: int | None, peer: int, opened_at: float, answers: bool) -> list[Rule]:
        """Waits while a rule holds the line; returns those that change what passes."""
        while True:
            rules = [rule for rule in self._rules if rule.matches(dialler, peer, opened_at)]
            if not any(rule.held for rule in rules):
                return rules if answers else []
            await self._changed.wait()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the sockets of what was aborted are closed in the next turn


async def _pass_on(data: bytes, writer: asyncio.StreamWriter, rules: Sequence[Rule]) -> None:
    """Write a piece as the rules want it: drop by drop, or with a bit changed."""
    if any(rule.flip for rule in rules):
        middle = len(data) // 2
        data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    rate = min((rule.bytes_per_second for rule in rules if rule.bytes_per_second), default=0.0)
    drop = max(1, round(rate * DROP_SECONDS)) if rate else len(data)
    for start in range(0, len(data), drop):
        writer.write(data[start : start + drop])
        await writer.drain()
        if rate:
            await asyncio.sleep(DROP_SECONDS)


def process_of(port: int, remote_port: int) -> int | None:
    """The session of the process whose end of a loopback connection has `port`; None if it is not found."""
    connections = psutil.net_connections("tcp")  # gRPC speaks IPv4 through IPv6 sockets
    found = (c.pid for c in connections if c.laddr.port == port and c.raddr and c.raddr.port == remote_port)
    pid = next(found, None)
    try:
        return os.getsid(pid) if pid is not None else None
    except ProcessLookupError:
        return None
