"""Resolves the host names of nodes within a time that this node sets, not the owner of the name."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..errors import PeerUnavailable
from ..wire.timing import RESOLVE_SECONDS
from .address import HostPort
from .dialling import IpAddress, literal

MAX_NAMES_AT_ONCE = 8
"""The most names that are resolved at once; each takes a thread, for as long as the system's resolver runs."""
MAX_ADDRESSES_OF_A_NAME = 4

Lookup = Callable[..., Sequence[tuple[Any, ...]]]


class Resolver:
    """Resolves a few names at once, each within a bounded time, because the owner of a name can make it slow."""

    def __init__(
        self,
        lookup: Lookup = socket.getaddrinfo,
        timeout_seconds: float = RESOLVE_SECONDS,
        most: int = MAX_NAMES_AT_ONCE,
    ) -> None:
        self._lookup = lookup
        self._timeout_seconds = timeout_seconds
        self._most = most
        self._running = 0

    async def addresses(self, target: HostPort) -> tuple[IpAddress, ...]:
        """The addresses of a host, best first, at least one. Raises PeerUnavailable."""
        address = literal(target.host)
        if address is not None:
            return (address,)
        if self._running >= self._most:
            raise PeerUnavailable(f"{target}: too many names are being looked up")
        found: asyncio.Future[tuple[IpAddress, ...]] = asyncio.get_running_loop().create_future()
        self._running += 1
        # A thread of its own instead of the loop's pool, which others wait for.
        try:
            threading.Thread(target=self._look_up, args=(target, found), name="resolve", daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads
            self._running -= 1
            raise PeerUnavailable(f"{target}: the name cannot be looked up now: {error}") from error
        try:
            async with asyncio.timeout(self._timeout_seconds):
                addresses = await asyncio.shield(found)
        except TimeoutError:
            addresses = ()
        if not addresses:
            raise PeerUnavailable(f"{target}: the name cannot be resolved")
        return addresses

    def _look_up(self, target: HostPort, found: asyncio.Future[tuple[IpAddress, ...]]) -> None:
        """Resolve the name; runs in a thread."""
        addresses: dict[IpAddress, None] = {}
        try:
            for *_, socket_address in self._lookup(target.host, target.port, type=socket.SOCK_STREAM):
                address = literal(str(socket_address[0]))
                if address is not None and not getattr(address, "scope_id", None):
                    addresses[address] = None
        except (OSError, UnicodeError):
            addresses = {}
        with suppress(RuntimeError):  # the loop is gone
            found.get_loop().call_soon_threadsafe(self._finish, found, tuple(addresses)[:MAX_ADDRESSES_OF_A_NAME])

    def _finish(self, found: asyncio.Future[tuple[IpAddress, ...]], addresses: tuple[IpAddress, ...]) -> None:
        self._running -= 1
        if not found.done():
            found.set_result(addresses)
