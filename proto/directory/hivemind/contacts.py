"""The other nodes that a node knows, and how it gets in touch with them: at the start, and again after an outage."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import ClockSkew, PeerUnavailable, SwarmError, UsageError, WrongKey
from . import control
from .daemon import RunningNode
from .maddrs import usable_maddrs
from .shim import PeerID, ValidationError

log = logging.getLogger(__name__)

MoreMaddrs = Callable[[], Awaitable[Sequence[str]]]
"""Finds further addresses of nodes, where there is another way to ask for them. May raise SwarmError."""

MAX_MET = 16
"""Nodes that were met and are remembered."""
MAX_TRIED = 64
"""Nodes that are tried side by side."""
MAX_MADDRS = 8
"""Addresses that are remembered of one node."""

_TCP = re.compile(r"/(?:ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/(\d{1,5})/p2p/[^/]+")


class Contacts:
    """Where other nodes are: those that were given at the start for good, and up to 16 that were met."""

    def __init__(
        self, own_id: str, initial: Sequence[str], remembered: Sequence[str] = (), more: MoreMaddrs | None = None
    ) -> None:
        """`more` is asked when nodes are sought."""
        self._own_id = own_id
        self.more = more
        self._initial = by_node(initial)
        self._met = dict(list(by_node(remembered).items())[:MAX_MET])
        self._initial.pop(own_id, None)
        self._met.pop(own_id, None)

    def __bool__(self) -> bool:
        return bool(self._initial or self._met)

    @property
    def met(self) -> tuple[str, ...]:
        """The addresses of the nodes that were met: to be remembered for the next run."""
        return tuple(maddr for maddrs in self._met.values() for maddr in maddrs)

    def known(self, more: Sequence[str] = ()) -> Mapping[str, tuple[str, ...]]:
        """All nodes and their addresses, with those in `more` that have room."""
        known: dict[str, tuple[str, ...]] = {}
        for group in (self._initial, self._met, by_node(more)):
            for node, maddrs in group.items():
                if node != self._own_id and (node in known or len(known) < MAX_TRIED):
                    known[node] = tuple(dict.fromkeys((*known.get(node, ()), *maddrs)))
        return known

    def meet(self, present: Sequence[str]) -> Sequence[str]:
        """Expect the nodes that are there now to stay; those among them whose addresses are not known yet.

        A node that is there stays expected, so that many new ones cannot make this one forget the swarm; one that is
        not makes room.
        """
        there = set(present)
        absent = [node for node in self._met if node not in there]
        for node in present:
            if node in self._met or node == self._own_id:
                continue
            if len(self._met) >= MAX_MET:
                if not absent:
                    break
                del self._met[absent.pop(0)]
            self._met[node] = ()
        return [node for node, maddrs in self._met.items() if not maddrs and node in there]

    def note(self, node: str, maddrs: Sequence[str]) -> None:
        """Where a node is that was met."""
        if node in self._met:
            self._met[node] = tuple(maddrs)[:MAX_MADDRS]

    def forget(self, node: str) -> None:
        """Do not expect a node any more: it has said that it leaves."""
        self._met.pop(node, None)


def by_node(maddrs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The addresses of each node."""
    nodes: dict[str, tuple[str, ...]] = {}
    for maddr in maddrs:
        node = maddr.rpartition("/p2p/")[2]
        nodes[node] = (*nodes.get(node, ()), maddr)
    return nodes


async def reach(
    node: RunningNode, peer_id: str, maddrs: Sequence[str], private: bool, check: bool
) -> SwarmError | None:
    """Get in touch with one other node, so that both know each other; the reason if that fails.

    `check`: also that it can reach this node, and that the clocks agree.
    """
    there, seconds = PeerID.from_base58(peer_id), node.timing.call_seconds
    loop = asyncio.get_running_loop()
    where = ", ".join(maddrs) or peer_id
    try:
        for _ in range(2):
            if not await _is_listening(maddrs, seconds):
                return PeerUnavailable(f"{where} cannot be reached")
            await control.connect(node.p2p, there, maddrs, seconds)
            pinged_at = loop.time()
            if await node.dht.protocol.call_ping(there, validate=check) is not None:
                node.dht.blacklist.register_success(there)
                return None
            if loop.time() - pinged_at < 0.9 * seconds:
                break  # it was refused
            await control.disconnect(node.p2p, there, seconds)  # it may be a connection that an outage has killed
    except ValidationError as error:
        return _translate(error, where)
    except PeerUnavailable as error:
        return PeerUnavailable(f"{where} cannot be reached: {error}")
    if private:
        return WrongKey(f"{where} does not answer to this swarm key")
    return PeerUnavailable(
        f"{where} does not answer", hint="Is it a peer of a private swarm (then pass its key), or of another version?"
    )


async def reach_any(
    node: RunningNode, known: Mapping[str, Sequence[str]], private: bool, check: bool = False
) -> tuple[frozenset[str], list[SwarmError]]:
    """Get in touch with all of the `known` nodes side by side: those that answered, and why the others did not."""
    async with asyncio.TaskGroup() as group:
        tries = {
            peer_id: group.create_task(reach(node, peer_id, maddrs, private, check))
            for peer_id, maddrs in known.items()
        }
    reached = frozenset(peer_id for peer_id, attempt in tries.items() if attempt.result() is None)
    if reached:  # learn who else is there
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(node.timing.call_seconds):
                await node.dht.find_nearest_nodes([node.dht.node_id])
    return reached, [error for attempt in tries.values() if (error := attempt.result()) is not None]


async def seek(node: RunningNode, contacts: Contacts, private: bool) -> bool:
    """Get in touch with the known nodes that are out of touch; whether any other node is there."""
    more: Sequence[str] = ()
    if contacts.more is not None:
        try:
            more = usable_maddrs(await contacts.more(), logging.DEBUG)
        except SwarmError as error:
            log.debug("no further addresses of the DHT: %s", error)
    present = {peer_id.to_base58() for peer_id in node.others}
    known = {name: maddrs for name, maddrs in contacts.known(more).items() if name not in present}
    reached, failures = await reach_any(node, known, private)
    for failure in failures:
        log.debug("out of touch: %s", failure)
    return bool(reached or node.others)


async def note_present(node: RunningNode, contacts: Contacts) -> None:
    """Remember the nodes that this one is in touch with, and ask the daemon where they are."""
    present = {peer_id.to_base58(): peer_id for peer_id in node.others}

    async def ask(name: str) -> None:
        with contextlib.suppress(PeerUnavailable):
            contacts.note(name, await control.addresses_of(node.p2p, present[name], node.timing.call_seconds))

    await asyncio.gather(*(ask(name) for name in contacts.meet(list(present))))


async def _is_listening(maddrs: Sequence[str], seconds: float) -> bool:
    """Whether somebody speaks libp2p at one of the addresses; True where only the daemon can tell.

    The daemon puts an address that did not answer off, for up to minutes, so it is asked only for those that do.
    """
    targets = [(match[1], int(match[2])) for maddr in maddrs if (match := _TCP.fullmatch(maddr))]
    if len(targets) < len(maddrs) or not targets:
        return True
    return any(await asyncio.gather(*(_speaks_first(host, port, seconds) for host, port in targets)))


async def _speaks_first(host: str, port: int, seconds: float) -> bool:
    """Whether a connection is taken and said something on, as every libp2p node does."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port)
            with contextlib.closing(writer):
                return await reader.read(1) != b""
    except (OSError, UnicodeError):  # TimeoutError is an OSError; the other is about a name that cannot be one
        return False


def _translate(error: Any, where: str) -> SwarmError:
    """The error for the operator behind hivemind's, which is known by its text only."""
    if "local time must be within" in str(error):
        return ClockSkew(f"this machine's clock and that of {where} differ by more than 3 s")
    return UsageError(
        f"{where} cannot connect back to this node",
        hint="Open the port of the DHT in the firewall or forward it; or join as a client.",
    )


def backoff(first_seconds: float, longest_seconds: float) -> Iterator[float]:
    """Pauses in seconds, each twice as long as the one before up to the longest, with a jitter of 20 %."""
    for attempt in itertools.count():
        yield min(first_seconds * 2 ** min(attempt, 10), longest_seconds) * random.uniform(0.8, 1.2)
