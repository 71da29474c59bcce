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

from ...clock import SteadyClock
from ...errors import ClockSkew, DeadlineExceeded, PeerUnavailable, SwarmError, UsageError, describe_clocks
from ...wire.timing import CLOCK_STEP_SECONDS
from . import control
from .daemon import RunningNode
from .exchange import Pong, nearest_nodes, ping, translated
from .maddrs import usable_maddrs
from .shim import PeerID

log = logging.getLogger(__name__)

MoreMaddrs = Callable[[], Awaitable[Sequence[str]]]
"""Finds further addresses of nodes, where there is another way to ask for them. May raise SwarmError."""

MAX_MET = 16
"""Nodes that were met and are remembered."""
MAX_TRIED = 64
"""Nodes that are tried side by side."""
MAX_MADDRS = 8
"""Addresses that are remembered of one node."""
MAX_CLOCKS = 9
"""Nodes that are asked for their time."""

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

    def expect(self, present: Sequence[str]) -> Sequence[str]:
        """Remember the nodes that are present now. Returns those of them whose addresses are not known yet.

        A remembered node that is present keeps its place, so that many new ones cannot make this node forget the
        swarm; one that is absent makes room.
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

    def set_addresses(self, node: str, maddrs: Sequence[str]) -> None:
        """Remember where a node is, if the node is remembered."""
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


async def reach(node: RunningNode, peer_id: str, maddrs: Sequence[str], check: bool) -> SwarmError | None:
    """Get in touch with one other node, so that both know each other; the reason if that fails.

    `check`: also that it can reach this node, and that the clocks agree.
    """
    where = ", ".join(maddrs) or peer_id
    try:
        with translated(f"{where} cannot be reached"):
            await _reach(node, PeerID.from_base58(peer_id), maddrs, where, check)
    except SwarmError as error:
        return error
    return None


async def _reach(node: RunningNode, peer_id: Any, maddrs: Sequence[str], where: str, check: bool) -> None:
    """Raises SwarmError, or any error of hivemind's."""
    seconds = node.timing.call_seconds
    for is_last in (False, True):
        if not await _may_be_listening(maddrs, seconds):
            raise PeerUnavailable(f"{where} cannot be reached")
        try:
            await control.connect(node.p2p, peer_id, maddrs, seconds)
        except PeerUnavailable as error:
            raise PeerUnavailable(f"{where} cannot be reached: {error}") from error
        asked_at = node.clock()
        try:
            pong = await ping(node.dht.protocol, peer_id, where, check)
        except DeadlineExceeded:
            if is_last:
                raise
            await control.disconnect(node.p2p, peer_id, seconds)  # it may be a connection that an outage has killed
            continue
        if check:
            _check_pong(node, pong, asked_at, where)
        node.dht.blacklist.register_success(peer_id)
        return


def _check_pong(node: RunningNode, pong: Pong, asked_at: float, where: str) -> None:
    """Raises UsageError if others do not reach this node, ClockSkew."""
    if not pong.reaches_back and not node.dht.protocol.client_mode:
        raise UsageError(
            f"{where} cannot connect back to this node",
            hint="Open the port of the DHT in the firewall or forward it; or join as a client.",
        )
    ahead = pong.ahead_seconds(asked_at, node.clock())
    if not abs(ahead) <= node.timing.clock_difference_seconds:
        raise ClockSkew(describe_clocks(f"the clock of {where}", "this machine's", ahead))


async def clocks_ahead(node: RunningNode) -> list[float]:
    """By how many seconds the clocks of some of the other nodes are ahead of this node's, chosen by chance."""

    async def ask(peer_id: Any) -> float | None:
        asked_at = node.clock()
        try:
            pong = await ping(node.dht.protocol, peer_id, peer_id.to_base58())
        except SwarmError:
            return None
        return pong.ahead_seconds(asked_at, node.clock()) if pong.clock_seconds else None

    asked = random.sample(node.others, min(len(node.others), MAX_CLOCKS))
    return [ahead for ahead in await asyncio.gather(*map(ask, asked)) if ahead is not None]


class ClockCheck:
    """Has other nodes decide whether this one follows the clock of its machine after that was set."""

    def __init__(self, clock: Callable[[], float] | SteadyClock) -> None:
        """Decides nothing about a clock that is not steady."""
        self._clock = clock
        self._refused_seconds = 0.0
        """By how much the machine's clock was set when others decided against it."""
        self._silent_since: float | None = None
        """When others were first asked in vain, by the loop's clock."""

    async def run(self, node: RunningNode, again: bool, alone: bool) -> None:
        """Decide, if that is due; `again`: also what was decided before, `alone`: nobody else is known."""
        clock = self._clock
        if not isinstance(clock, SteadyClock) or not (step := clock.set_by_seconds):
            self._refused_seconds, self._silent_since = 0.0, None
            return
        is_new = abs(step - self._refused_seconds) > CLOCK_STEP_SECONDS
        if not is_new and not again:
            return
        ahead = await clocks_ahead(node)
        if not ahead and not alone and not self._waited_long_enough(node.timing.silent_clocks_seconds):
            return
        self._silent_since = None
        if clock.decide(ahead):
            log.warning("this machine's clock was set by %+.0f s, and is followed", step)
        elif is_new:
            self._refused_seconds = step
            difference = describe_clocks("this machine's clock", "the clocks of other nodes", step)
            log.warning("%s, which are followed: set it", difference)

    def _waited_long_enough(self, seconds: float) -> bool:
        """Whether nobody has answered for this time. Those who are known may have left for good, even because of this
        node's wrong clock: no other could ever join if it waited for them for ever.
        """
        now = asyncio.get_running_loop().time()
        self._silent_since = now if self._silent_since is None else self._silent_since
        return now - self._silent_since >= seconds


async def reach_any(
    node: RunningNode, known: Mapping[str, Sequence[str]], check: bool = False
) -> tuple[frozenset[str], list[SwarmError]]:
    """Get in touch with all of the `known` nodes side by side: those that answered, and why the others did not."""
    async with asyncio.TaskGroup() as group:
        tries = {peer_id: group.create_task(reach(node, peer_id, maddrs, check)) for peer_id, maddrs in known.items()}
    reached = frozenset(peer_id for peer_id, attempt in tries.items() if attempt.result() is None)
    if reached:  # learn who else is there
        with contextlib.suppress(TimeoutError, PeerUnavailable):
            async with asyncio.timeout(node.timing.call_seconds):
                await nearest_nodes(node, node.dht.node_id.to_bytes(), with_self=False)
    return reached, [error for attempt in tries.values() if (error := attempt.result()) is not None]


async def seek(node: RunningNode, contacts: Contacts) -> bool:
    """Get in touch with the known nodes that are out of touch; whether any other node is there."""
    more: Sequence[str] = ()
    if contacts.more is not None:
        try:
            more = usable_maddrs(await contacts.more(), logging.DEBUG)
        except SwarmError as error:
            log.debug("no further addresses of the DHT: %s", error)
    present = {peer_id.to_base58() for peer_id in node.others}
    known = {name: maddrs for name, maddrs in contacts.known(more).items() if name not in present}
    reached, failures = await reach_any(node, known)
    for failure in failures:
        log.debug("out of touch: %s", failure)
    return bool(reached or node.others)


async def note_present(node: RunningNode, contacts: Contacts) -> None:
    """Remember the nodes that this one is in touch with, and ask the daemon where they are."""
    present = {peer_id.to_base58(): peer_id for peer_id in node.others}

    async def ask(name: str) -> None:
        with contextlib.suppress(PeerUnavailable):
            contacts.set_addresses(name, await control.addresses_of(node.p2p, present[name], node.timing.call_seconds))

    await asyncio.gather(*(ask(name) for name in contacts.expect(list(present))))


async def _may_be_listening(maddrs: Sequence[str], seconds: float) -> bool:
    """Whether a node of libp2p answers at one of the addresses. True if there is one that only the daemon can dial.

    The daemon does not dial an address again for up to minutes after it did not answer, so this is tried first.
    """
    targets = [(match[1], int(match[2])) for maddr in maddrs if (match := _TCP.fullmatch(maddr))]
    if len(targets) < len(maddrs) or not targets:
        return True
    return any(await asyncio.gather(*(_speaks_first(host, port, seconds) for host, port in targets)))


async def _speaks_first(host: str, port: int, seconds: float) -> bool:
    """Whether a connection is accepted and something is said on it first, as every node of libp2p does."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port)
            with contextlib.closing(writer):
                return await reader.read(1) != b""
    except (OSError, UnicodeError):  # TimeoutError is an OSError; the other is about a name that cannot be one
        return False


def backoff(first_seconds: float, longest_seconds: float) -> Iterator[float]:
    """Pauses in seconds, each twice as long as the one before up to the longest, with a jitter of 20 %."""
    for attempt in itertools.count():
        yield min(first_seconds * 2 ** min(attempt, 10), longest_seconds) * random.uniform(0.8, 1.2)
