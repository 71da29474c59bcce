"""The directory as a node of a hivemind DHT, in this process and its event loop.

The promises of hivemind are not taken on trust:

* Records carry their own signature; every node refuses, when storing and when reading, what does not verify
  (`guard.py`).  What a node keeps is bounded, and an old record of a peer cannot shorten the life of its newer one
  (`storage.py`).
* A store counts only when another node has been asked and has the record.
* hivemind talks to a daemon, p2pd (`daemon.py`).  When it dies, or the connection to it breaks, hivemind goes on
  answering "stored"; so both are watched, and daemon and node are started again with the same key and port, and the
  records announced anew.
* In a private swarm every call between nodes carries an HMAC under the swarm key: a stranger may reach the port, but it
  reads and stores nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from ....routing.swarm import PeerId
from ...errors import PeerUnavailable, RetryElsewhere, SwarmError, UsageError
from ...identity import Identity
from ..directory import check_announcement, superseded, verified_records
from ..signed import SignatureCache, SignedRecord
from ..swarm_key import SwarmKey, dht_id
from .daemon import (
    HIVEMIND_FAILURES,
    REPLICAS,
    HivemindTiming,
    NodeSettings,
    RunningNode,
    start_node,
    sweep_stale_sockets,
    visible_maddrs,
)
from .maddrs import check_maddr, pin_ports, with_known_ports
from .shim import DHTID, MSGPackSerializer, use_hivemind_log_handler
from .storage import StorageLimits

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

MAX_REMEMBERED_MADDRS = 16
"""Addresses of other nodes that are kept to find the DHT again."""


class HivemindDirectory:
    """A Directory (see directory.py) whose records live in the DHT. Made by `start`, ended by `close`."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._cache = settings.cache
        self._timing = settings.timing
        self._announced: dict[bytes, SignedRecord] = {}
        self._remembered: tuple[str, ...] = ()
        self._node: RunningNode | None = None
        self._up = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        identity_path: str | os.PathLike[str],
        initial_maddrs: Sequence[str] = (),
        listen_maddrs: Sequence[str] = ("/ip4/0.0.0.0/tcp/0",),
        swarm_key: SwarmKey | None = None,
        clock: Callable[[], float] = time.time,
        *,
        announce_maddrs: Sequence[str] = (),
        client_mode: bool = False,
        join_timeout_seconds: float = 60.0,
        timing: HivemindTiming | None = None,
        limits: StorageLimits | None = None,
    ) -> HivemindDirectory:
        """Start a node; with `initial_maddrs` it joins their DHT, without them it begins a new one.

        `announce_maddrs` replaces the addresses that others are told (port forwarding); port 0 in them is the port that
        the node listens on.  In `client_mode` the node keeps nothing for others and need not be reachable.  Joining is
        tried for `join_timeout_seconds`.  The owner must `close` the directory; `until_closed` tells it when
        the directory can no longer do its work.

        Raises UsageError (addresses, key file, port taken, not reachable from outside), ClockSkew, or PeerUnavailable
        with the addresses that did not answer.
        """
        for maddr in initial_maddrs:
            check_maddr(maddr, needs_peer_id=True)
        for maddr in (*listen_maddrs, *announce_maddrs):
            check_maddr(maddr, needs_peer_id=False)
        listen_maddrs, announce_maddrs = with_known_ports(listen_maddrs, announce_maddrs)
        identity = Identity.load_or_create(identity_path)  # the daemon would write an RSA key where there is none
        use_hivemind_log_handler("nowhere")
        logging.getLogger("hivemind").setLevel(logging.CRITICAL)  # what matters is raised or logged here
        sweep_stale_sockets()
        self = cls(
            NodeSettings(
                peer_id=identity.peer_id,
                identity_path=os.fspath(identity_path),
                initial_maddrs=tuple(initial_maddrs),
                listen_maddrs=tuple(listen_maddrs),
                announce_maddrs=tuple(announce_maddrs),
                swarm_key=swarm_key,
                clock=clock,
                client_mode=client_mode,
                cache=SignatureCache(),
                timing=timing or HivemindTiming(),
                limits=limits or StorageLimits(),
            )
        )
        self._set_node(await self._join(join_timeout_seconds))
        self._supervisor = asyncio.create_task(self._supervise(), name="supervise the DHT daemon")
        return self

    @property
    def peer_id(self) -> PeerId:
        """The id of this node."""
        return self._settings.peer_id

    @property
    def node(self) -> RunningNode | None:
        """The present life of daemon and node; None once the directory is closed."""
        return self._node

    async def visible_maddrs(self) -> tuple[str, ...]:
        """The addresses under which others may join the DHT through this node."""
        return await visible_maddrs((await self._running()).p2p, self._timing)

    def kept_records(self, name: str) -> tuple[SignedRecord, ...]:
        """The records under `name` that this node keeps itself, for others and of its own."""
        if self._node is None:
            return ()
        found = self._node.dht.protocol.storage.get(DHTID.from_bytes(dht_id(name)))
        if found is None:
            return ()
        values = [MSGPackSerializer.loads(value) for _, (value, _) in found.value.items()]
        return self._verified(dht_id(name), values)

    async def announce(self, record: SignedRecord) -> None:
        check_announcement(record, self._settings.clock(), self._cache)
        now = self._settings.clock()
        self._announced = {key: kept for key, kept in self._announced.items() if kept.expires_at_seconds > now}
        self._announced[record.key] = record
        node = await self._running()
        await self._store(node, record)
        await self._remember_peers(node)

    async def lookup(self, name: str) -> tuple[SignedRecord, ...]:
        key = dht_id(name)
        node = await self._running()
        key_id = DHTID.from_bytes(key)
        # An infinite "sufficient" expiry asks all replicas and takes the union of what they have.
        search = node.dht.get_many_by_id([key_id], sufficient_expiration_time=math.inf)
        found = (await self._in_time(search))[key_id]
        self._check_alive(node)
        if found is None or not isinstance(found.value, dict):
            return ()
        return self._verified(key, [entry.value for entry in found.value.values()])

    def _verified(self, key: bytes, encoded: Sequence[bytes]) -> tuple[SignedRecord, ...]:
        return verified_records(key, encoded, self._settings.clock(), self._cache)

    async def until_closed(self) -> None:
        """Wait until `close` is called; for the owner's task group.

        Raises what ended the supervision of the daemon: nothing is announced or found any more then.
        """
        assert self._supervisor is not None
        await asyncio.wait({self._supervisor})
        if not self._supervisor.cancelled():
            self._supervisor.result()

    async def close(self) -> None:
        """Stop supervising, then the node, then the daemon."""
        while self._supervisor is not None and not self._supervisor.done():
            # More than once: asyncio.wait_for, which hivemind uses, can lose a cancellation (CPython issue 86296).
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor}, timeout=1.0)
        self._up.clear()
        if self._node is not None:
            node, self._node = self._node, None
            await node.stop()

    async def _running(self) -> RunningNode:
        """The node, waiting a little if it is being started again. Raises PeerUnavailable if it does not come back."""
        if self._supervisor is None or self._supervisor.cancelled():
            raise PeerUnavailable("the directory is closed", hint="Start a new one.")
        if self._supervisor.done():
            self._supervisor.result()  # it has no end of its own: this raises why it failed
        if self._node is not None and not self._node.is_alive:
            self._up.clear()  # the supervisor is about to notice, too
        try:
            async with asyncio.timeout(self._timing.lookup_seconds):
                await self._up.wait()
        except TimeoutError:
            raise PeerUnavailable("the DHT node is not running", hint="It is being started again; wait.") from None
        assert self._node is not None
        return self._node

    async def _in_time(self, search: Awaitable[_Result]) -> _Result:
        """The result of a walk through the DHT. Raises PeerUnavailable if it takes longer than `lookup_seconds`."""
        seconds = self._timing.lookup_seconds
        try:
            async with asyncio.timeout(seconds):
                return await search
        except TimeoutError:
            raise PeerUnavailable(f"the DHT did not answer in {seconds:.0f} s") from None

    def _check_alive(self, node: RunningNode) -> None:
        """hivemind answers "nothing found" and "stored" also when its daemon is gone."""
        if not node.is_alive:
            raise PeerUnavailable("the DHT daemon died during the call", hint="It is being started again; try again.")

    async def _store(self, node: RunningNode, record: SignedRecord) -> None:
        """Store the record at the nodes nearest to its key, and read it back from one of them."""
        protocol, key_id = node.dht.protocol, DHTID.from_bytes(record.key)
        value = MSGPackSerializer.dumps(record.encode())
        arguments = ([key_id], [value], [float(record.expires_at_seconds)])
        for _ in range(2):  # nodes that do not answer are forgotten, so a second round finds better ones
            nearest = await self._in_time(
                node.dht.find_nearest_nodes([key_id], k_nearest=REPLICAS, exclude_self=self._settings.client_mode)
            )
            others = [peer for node_id, peer in nearest[key_id].items() if node_id != node.dht.node_id]
            if len(others) < len(nearest[key_id]):
                protocol.storage.store_subkey(key_id, record.peer_id, value, record.expires_at_seconds)
            async with asyncio.TaskGroup() as group:
                stores = {
                    peer: group.create_task(protocol.call_store(peer, *arguments, subkeys=[record.peer_id]))
                    for peer in others
                }
            answered = [peer for peer, store in stores.items() if store.result()]
            self._check_alive(node)
            if not others and not self._settings.client_mode:
                return self._check_kept(record, value, [_entry(protocol.storage.get(key_id), record.peer_id)])
            if answered:
                break
        seen = []
        for peer in answered:
            reply = await protocol.call_find(peer, [key_id])
            seen.append(_entry(reply[key_id][0], record.peer_id) if reply else None)
            if seen[-1] is not None and seen[-1].value == value:
                break
        return self._check_kept(record, value, seen)

    def _check_kept(self, record: SignedRecord, value: bytes, seen: Sequence[Any]) -> None:
        """Check what other nodes (or this one, if it is alone) have of this peer after the store: `seen`."""
        kept = [entry for entry in seen if entry is not None]
        if any(entry.value == value for entry in kept):
            return
        if any(entry.expiration_time >= record.expires_at_seconds for entry in kept):
            raise superseded(record)
        raise PeerUnavailable("no node of the DHT kept the record", hint="It is announced again soon; check the net.")

    async def _remember_peers(self, node: RunningNode) -> None:
        """Note where other nodes are, to find the DHT again if the daemon dies and the first peers are gone."""
        try:
            async with asyncio.timeout(self._timing.call_seconds):
                peers = await node.p2p.list_peers()
        except (TimeoutError, *HIVEMIND_FAILURES) as error:
            log.debug("the DHT daemon does not list its peers: %s", error)
            return
        known = [f"{maddr}/p2p/{peer.peer_id.to_base58()}" for peer in peers for maddr in peer.addrs]
        self._remembered = tuple(known[:MAX_REMEMBERED_MADDRS])

    async def _join(self, join_timeout_seconds: float) -> RunningNode:
        """Start a node, again and again while its first peers cannot be reached, with growing, jittered pauses."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + join_timeout_seconds
        for pause_seconds in _backoff(self._timing):
            try:
                return await start_node(self._settings, self._settings.initial_maddrs, self._settings.listen_maddrs)
            except RetryElsewhere as error:
                if loop.time() + pause_seconds > deadline:
                    raise
                log.info("%s; retrying in %.1f s", error, pause_seconds)
                await asyncio.sleep(pause_seconds)
        raise AssertionError("the backoff has no end")

    async def _supervise(self) -> None:
        """Start daemon and node again whenever they are gone, and announce again what was announced."""
        while True:
            assert self._node is not None
            how = await self._node.ended()
            self._up.clear()
            log.warning("%s; starting it again", how)
            await self._node.stop()
            self._set_node(await self._start_again())
            now = self._settings.clock()
            for record in [kept for kept in self._announced.values() if kept.expires_at_seconds > now]:
                try:
                    await self._store(self._node, record)
                except SwarmError as error:
                    log.warning("a record could not be announced again: %s; the next refresh does it", error)

    async def _start_again(self) -> RunningNode:
        """Like `_join`, without an end, on the same port at first, through all nodes that were known."""
        maddrs = (*self._settings.initial_maddrs, *self._remembered)
        listen_maddrs = self._pinned_listen_maddrs
        for pause_seconds in _backoff(self._timing):
            try:
                return await start_node(self._settings, maddrs, listen_maddrs)
            except SwarmError as error:
                if isinstance(error, UsageError):
                    listen_maddrs = self._settings.listen_maddrs  # another program has taken the port meanwhile
                elif not self._settings.initial_maddrs:
                    maddrs = ()  # this node began the DHT: the others come back to its address
                log.warning("the DHT node cannot start: %s; retrying in %.1f s", error, pause_seconds)
                await asyncio.sleep(pause_seconds)
        raise AssertionError("the backoff has no end")

    def _set_node(self, node: RunningNode) -> None:
        self._node = node
        self._pinned_listen_maddrs = pin_ports(self._settings.listen_maddrs, node.maddrs)
        self._up.set()


def _entry(found: Any, peer_id: str) -> Any:
    """The entry of one peer in what a node has under a key, or None."""
    return None if found is None or isinstance(found.value, bytes) else found.value.get(peer_id)


def _backoff(timing: HivemindTiming) -> Iterator[float]:
    """Pauses in seconds, each twice as long as the one before up to the longest, with a jitter of 20 %."""
    for attempt in itertools.count():
        pause_seconds = timing.first_backoff_seconds * 2 ** min(attempt, 10)
        yield min(pause_seconds, timing.max_backoff_seconds) * random.uniform(0.8, 1.2)
