"""Room for connections at a port of this process: when it gets scarce, the addresses that hold most give some back.

A connection costs its sender nothing, but costs this machine a file descriptor.  gRPC only bounds their total number,
which lets one address keep all others out, and does not tell who is connected.  So the connections are counted here,
from the process's descriptors.  As long as there is room no address loses any, because many people may share one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ..wire.timing import CROWDING_SECONDS
from .dialling import literal
from .options import MAX_CONNECTIONS

logger = logging.getLogger(__name__)

Peer = tuple[str, int]
"""The other end of a connection: an IP address and a port."""

DESCRIPTORS = next((folder for folder in (Path("/proc/self/fd"), Path("/dev/fd")) if folder.is_dir()), None)
"""The descriptors of this process; None if the system does not list them, as on Windows."""
MAX_DESCRIPTORS = 65_536
COUNTS_A_LINE = 30
"""Counts of the connections for which the log has at most one line."""


def raise_descriptor_limit() -> None:
    """Raise the soft limit on descriptors of this process, and of those that it starts, to the hard limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:  # macOS allows less than it says
            logger.debug("the limit on descriptors stays at %d: %s", soft, error)


def descriptor_limit() -> int:
    """The number of descriptors that this process may have now."""
    try:
        import resource
    except ImportError:
        return MAX_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connections_within(descriptors: int) -> int:
    """The number of connections that a port may have in a process with that many descriptors, of which some are kept
    for other uses."""
    return max(1, min(MAX_CONNECTIONS, descriptors // 2))


def to_end(connections: Sequence[Peer], most: int) -> tuple[Peer, ...]:
    """The connections to end so that `most` are left of the given ones, which are in order of age, oldest first.

    They are the youngest ones of the networks that have most: no network loses any while another one keeps more.
    """
    held: Counter[str] = Counter()
    ranked = []
    for age, peer in enumerate(connections):
        network = _network_of(peer[0])
        ranked.append((held[network], age, peer))
        held[network] += 1
    return tuple(peer for _, _, peer in sorted(ranked)[most:])


def _network_of(host: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 one: the smallest block that one customer has."""
    address = literal(host)
    address = getattr(address, "ipv4_mapped", None) or address
    return str(ipaddress.ip_network((address, 64), strict=False)) if address and address.version == 6 else str(address)


class PortRoom:
    """Keeps the number of connections at a port within a limit."""

    def __init__(self, port: int, most: int, descriptors: Path | None = DESCRIPTORS) -> None:
        """`descriptors`: the folder that lists the descriptors of this process."""
        self._port = port
        self._most = most
        self._descriptors = descriptors
        self._seen: dict[Peer, None] = {}
        """The connections at the last count, oldest first."""

    async def keep(self, pause_seconds: float = CROWDING_SECONDS) -> None:
        """Count the connections again and again until cancelled, and end the excess."""
        ended = quiet = 0
        while True:
            await asyncio.sleep(pause_seconds)
            try:
                if self._descriptors is not None and len(os.listdir(self._descriptors)) > self._most:
                    ended += await asyncio.to_thread(self.end_excess)
            except OSError as error:
                logger.debug("the connections cannot be counted: %s", error)
            quiet = max(0, quiet - 1)
            if ended and not quiet:
                logger.warning("%d connections were ended: too many came from the same addresses", ended)
                ended, quiet = 0, COUNTS_A_LINE

    def count(self) -> int:
        """The number of connections now."""
        return sum(1 for _ in self._connections())

    def end_excess(self) -> int:
        """End the excess connections; returns their number."""
        now = {peer: None for peer, _ in self._connections()}
        self._seen = {peer: None for peer in self._seen if peer in now} | now
        excess = set(to_end(tuple(self._seen), self._most))
        ended = 0
        for peer, connection in self._connections():
            if peer in excess:
                with suppress(OSError):  # it has just ended
                    connection.shutdown(socket.SHUT_RDWR)
                    ended += 1
        return ended

    def _connections(self) -> Iterator[tuple[Peer, socket.socket]]:
        """The connections at the port, each with a duplicate descriptor, which refers to it until it is closed."""
        assert self._descriptors is not None
        for number in sorted(int(name) for name in os.listdir(self._descriptors) if name.isdecimal()):
            connection = _socket_of(number)
            if connection is None:
                continue
            with connection, suppress(OSError):  # one that listens has no other end
                if connection.getsockname()[1] == self._port:
                    host, port = connection.getpeername()[:2]
                    yield (host, port), connection


def _socket_of(descriptor: int) -> socket.socket | None:
    """A descriptor of our own for an Internet socket; None if it is something else, or gone."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return None
    try:
        found = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return None
    if found.family in (socket.AF_INET, socket.AF_INET6):
        return found
    found.close()
    return None
