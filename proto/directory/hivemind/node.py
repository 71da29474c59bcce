"""The directory as a node of a hivemind DHT, in this process and its event loop.

This is the only module that imports hivemind; import it where it is needed, not at the top of another module.

What hivemind promises is not taken on trust:

* Records carry their own signature; every node refuses, when storing and when reading, what does not verify
  (`_Validator`).  What a node keeps is bounded, and an old record of a peer cannot shorten the life of its newer one
  (`_Storage`).
* A store counts only when another node has been asked and has the record.
* hivemind talks to a daemon, p2pd.  When it dies, or the connection to it breaks, hivemind goes on answering "stored";
  so both are watched, and daemon and node are started again with the same key and port, and the records announced anew.
* In a private swarm every call between nodes carries an HMAC under the swarm key (`_Authorizer`): a stranger may reach
  the port, but it reads and stores nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.util
import itertools
import logging
import math
import os
import random
import re
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ....routing.swarm import PeerId
from ...errors import ClockSkew, PeerUnavailable, RetryElsewhere, SwarmError, UsageError, WrongKey
from ...identity import Identity
from ..directory import MAX_RECORDS_PER_KEY, check_announcement, superseded, verified_records
from ..signed import SignatureCache, SignedRecord, within_lifetime
from ..swarm_key import SwarmKey, dht_id


def _import_hivemind_lightly() -> None:
    """Make hivemind's DHT importable without the rest of it.

    hivemind/__init__.py imports its optimizers, averagers and experts, and with them torch.  The DHT needs none of
    these, so the packages are entered in sys.modules without running their __init__; measured, this is 0.1 s and
    24 MB instead of 1.6 s and 225 MB (0.3 s and 15 MB where torch is loaded already).  In such a process
    `import hivemind` gives the bare package.
    """
    if "hivemind" in sys.modules:
        return
    for name in ("hivemind", "hivemind.dht", "hivemind.utils"):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError("hivemind is not installed", name="hivemind")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    # The names that the DHT's modules import from the package hivemind.utils itself.
    utils = sys.modules["hivemind.utils"]
    for module_name, names in {
        "hivemind.utils.logging": ("get_logger",),
        "hivemind.utils.serializer": ("MSGPackSerializer", "SerializerBase"),
        "hivemind.utils.timed_storage": ("get_dht_time",),
    }.items():
        source = importlib.import_module(module_name)
        for attribute in names:
            setattr(utils, attribute, getattr(source, attribute))


_import_hivemind_lightly()

from hivemind.dht.node import DHTNode  # noqa: E402
from hivemind.dht.protocol import ValidationError  # noqa: E402
from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.dht.storage import DHTLocalStorage  # noqa: E402
from hivemind.dht.validation import DHTRecord, RecordValidatorBase  # noqa: E402
from hivemind.p2p import P2P, P2PDaemonError, PeerID  # noqa: E402
from hivemind.utils.auth import AuthorizerBase  # noqa: E402
from hivemind.utils.logging import use_hivemind_log_handler  # noqa: E402
from hivemind.utils.multiaddr import Multiaddr  # noqa: E402
from hivemind.utils.serializer import MSGPackSerializer  # noqa: E402

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

MAX_KEYS = 64
MAX_RECORDS = 8192
"""What a node keeps for others, in all: at most 33 MB of records."""
REPLICAS = 5
CALL_TIMEOUT_SECONDS = 5.0
LOOKUP_TIMEOUT_SECONDS = 20.0
STARTUP_TIMEOUT_SECONDS = 30.0
SHUTDOWN_TIMEOUT_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 30.0
MAX_REMEMBERED_MADDRS = 16
MAX_CALL_AGE_SECONDS = 60.0

_FAILURES = (P2PDaemonError, ValidationError, RuntimeError, OSError)
"""What hivemind raises when a node cannot start; TimeoutError is an OSError."""


@dataclass(frozen=True, slots=True)
class _Node:
    """One life of the daemon and the DHT node that speaks through it."""

    p2p: Any
    dht: Any
    maddrs: tuple[str, ...]
    """Where it listened when it started."""

    @property
    def is_alive(self) -> bool:
        """Whether the daemon runs and hivemind still reads what it says."""
        return self.p2p._child.returncode is None and not self.p2p._client.control._read_task.done()

    async def ended(self) -> str:
        """Wait until the daemon or the connection to it is gone; says how it ended."""
        exited = asyncio.ensure_future(self.p2p._child.wait())
        try:
            await asyncio.wait({exited, self.p2p._client.control._read_task}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({exited}, timeout=0.5)  # a daemon that dies is heard of first by its connection
        finally:
            exited.cancel()
        code = self.p2p._child.returncode
        return "the connection to the DHT daemon broke" if code is None else f"the DHT daemon ended (status {code})"

    async def stop(self) -> None:
        """Stop the node, then the daemon. Takes at most about two times SHUTDOWN_TIMEOUT_SECONDS."""
        if self.is_alive:  # a dead daemon answers no farewell
            with contextlib.suppress(*_FAILURES):
                async with asyncio.timeout(SHUTDOWN_TIMEOUT_SECONDS):
                    await self.dht.shutdown()
        await _stop_daemon(self.p2p)


class HivemindDirectory:
    """A Directory (see directory.py) whose records live in the DHT. Made by `start`, ended by `close`."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._cache = settings.cache
        self._announced: dict[bytes, SignedRecord] = {}
        self._remembered: tuple[str, ...] = ()
        self._node: _Node | None = None
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
    ) -> HivemindDirectory:
        """Start a node; with `initial_maddrs` join their DHT, without begin a new one.

        `announce_maddrs` replaces the addresses that others are told (port forwarding); port 0 in them is the port that
        the node listens on.  In `client_mode` the node keeps nothing for others and need not be reachable.  Joining is
        tried for `join_timeout_seconds`.
        Raises UsageError (addresses, key file, port taken, not reachable from outside), ClockSkew, or PeerUnavailable
        with the addresses that did not answer.
        """
        for maddr in initial_maddrs:
            _check_maddr(maddr, needs_peer_id=True)
        for maddr in (*listen_maddrs, *announce_maddrs):
            _check_maddr(maddr, needs_peer_id=False)
        listen_maddrs, announce_maddrs = _with_known_ports(listen_maddrs, announce_maddrs)
        identity = Identity.load_or_create(identity_path)  # the daemon would write an RSA key where there is none
        use_hivemind_log_handler("nowhere")
        logging.getLogger("hivemind").setLevel(logging.CRITICAL)  # what matters is raised or logged here
        sweep_stale_sockets()
        self = cls(
            _Settings(
                peer_id=identity.peer_id,
                identity_path=os.fspath(identity_path),
                initial_maddrs=tuple(initial_maddrs),
                listen_maddrs=tuple(listen_maddrs),
                announce_maddrs=tuple(announce_maddrs),
                swarm_key=swarm_key,
                clock=clock,
                client_mode=client_mode,
                cache=SignatureCache(),
            )
        )
        self._set_node(await self._join(join_timeout_seconds))
        self._supervisor = asyncio.create_task(self._supervise(), name="supervise the DHT daemon")
        return self

    @property
    def peer_id(self) -> PeerId:
        """The id of this node."""
        return self._settings.peer_id

    async def visible_maddrs(self) -> tuple[str, ...]:
        """The addresses under which others may join the DHT through this node."""
        return await _visible_maddrs((await self._running()).p2p)

    async def announce(self, record: SignedRecord) -> None:
        check_announcement(record, self._settings.clock(), self._cache)
        now = self._settings.clock()
        self._announced = {key: one for key, one in self._announced.items() if one.expires_at_seconds > now}
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
        found = (await _in_time(search))[key_id]
        self._check_alive(node)
        if found is None or not isinstance(found.value, dict):
            return ()
        values = [entry.value for entry in found.value.values()]
        return verified_records(key, values, self._settings.clock(), self._cache)

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

    async def _running(self) -> _Node:
        """The node, waiting a little if it is being started again. Raises PeerUnavailable if it does not come back."""
        if self._supervisor is None or self._supervisor.cancelled():
            raise PeerUnavailable("the directory is closed", hint="Start a new one.")
        if self._supervisor.done():
            self._supervisor.result()  # it runs for ever; if it failed this raises why
        if self._node is not None and not self._node.is_alive:
            self._up.clear()  # the supervisor is about to notice, too
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_SECONDS):
                await self._up.wait()
        except TimeoutError:
            raise PeerUnavailable("the DHT node is not running", hint="It is being started again; wait.") from None
        assert self._node is not None
        return self._node

    def _check_alive(self, node: _Node) -> None:
        """hivemind answers "nothing found" and "stored" also when its daemon is gone."""
        if not node.is_alive:
            raise PeerUnavailable("the DHT daemon died during the call", hint="It is being started again; try again.")

    async def _store(self, node: _Node, record: SignedRecord) -> None:
        """Store the record at the nodes nearest to its key, and read it back from one of them."""
        protocol, key_id = node.dht.protocol, DHTID.from_bytes(record.key)
        value = MSGPackSerializer.dumps(record.encode())
        arguments = ([key_id], [value], [float(record.expires_at_seconds)])
        for _ in range(2):  # nodes that do not answer are forgotten, so a second round finds better ones
            nearest = await _in_time(
                node.dht.find_nearest_nodes([key_id], k_nearest=REPLICAS, exclude_self=self._settings.client_mode)
            )
            others = [peer for node_id, peer in nearest[key_id].items() if node_id != node.dht.node_id]
            if len(others) < len(nearest[key_id]):
                protocol.storage.store_subkey(key_id, record.peer_id, value, record.expires_at_seconds)
            stored = await asyncio.gather(
                *(protocol.call_store(peer, *arguments, subkeys=[record.peer_id]) for peer in others)
            )
            answered = [peer for peer, answer in zip(others, stored, strict=True) if answer]
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
        """`seen` is what other nodes (or this one, if it is alone) have of this peer after the store."""
        kept = [entry for entry in seen if entry is not None]
        if any(entry.value == value for entry in kept):
            return
        if any(entry.expiration_time >= record.expires_at_seconds for entry in kept):
            raise superseded(record)
        raise PeerUnavailable("no node of the DHT kept the record", hint="It is announced again soon; check the net.")

    async def _remember_peers(self, node: _Node) -> None:
        """Note where other nodes are, to find the DHT again if the daemon dies and the first peers are gone."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_SECONDS):
                peers = await node.p2p.list_peers()
        except (TimeoutError, *_FAILURES) as error:
            log.debug("the DHT daemon does not list its peers: %s", error)
            return
        known = [f"{maddr}/p2p/{peer.peer_id.to_base58()}" for peer in peers for maddr in peer.addrs]
        self._remembered = tuple(known[:MAX_REMEMBERED_MADDRS])

    async def _join(self, join_timeout_seconds: float) -> _Node:
        """Start a node, again and again while its first peers cannot be reached, with growing, jittered pauses."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + join_timeout_seconds
        for pause_seconds in _backoff():
            try:
                return await _start_node(self._settings, self._settings.initial_maddrs, self._settings.listen_maddrs)
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
            for record in [one for one in self._announced.values() if one.expires_at_seconds > now]:
                try:
                    await self._store(self._node, record)
                except SwarmError as error:
                    log.warning("a record could not be announced again: %s; the next refresh does it", error)

    async def _start_again(self) -> _Node:
        """Like `_join`, without an end, on the same port at first, through all nodes that were known."""
        maddrs = (*self._settings.initial_maddrs, *self._remembered)
        listen_maddrs = self._pinned_listen_maddrs
        for pause_seconds in _backoff():
            try:
                return await _start_node(self._settings, maddrs, listen_maddrs)
            except SwarmError as error:
                if isinstance(error, UsageError):
                    listen_maddrs = self._settings.listen_maddrs  # somebody has taken the port meanwhile
                elif not self._settings.initial_maddrs:
                    maddrs = ()  # this node began the DHT: the others come back to its address
                log.warning("the DHT node cannot start: %s; retrying in %.1f s", error, pause_seconds)
                await asyncio.sleep(pause_seconds)
        raise AssertionError("the backoff has no end")

    def _set_node(self, node: _Node) -> None:
        self._node = node
        self._pinned_listen_maddrs = _pin_ports(self._settings.listen_maddrs, node.maddrs)
        self._up.set()


@dataclass(frozen=True)
class _Settings:
    """How the nodes of one directory are started."""

    peer_id: PeerId
    identity_path: str
    initial_maddrs: tuple[str, ...]
    listen_maddrs: tuple[str, ...]
    announce_maddrs: tuple[str, ...]
    swarm_key: SwarmKey | None
    clock: Callable[[], float]
    client_mode: bool
    cache: SignatureCache


async def _start_node(settings: _Settings, initial_maddrs: Sequence[str], listen_maddrs: Sequence[str]) -> _Node:
    """One attempt. Raises UsageError, ClockSkew, WrongKey or PeerUnavailable."""
    made: list[P2P] = []

    class Daemon(P2P):
        """P2P.create, if it fails or is cancelled, would leave its daemon to the garbage collector."""

        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    try:
        p2p = await Daemon.create(
            initial_peers=list(initial_maddrs),
            announce_maddrs=list(settings.announce_maddrs) or None,
            host_maddrs=list(listen_maddrs),
            identity_path=settings.identity_path,
            dht_mode="client" if settings.client_mode else "server",
            startup_timeout=STARTUP_TIMEOUT_SECONDS,
            auto_nat=False,
            check_if_identity_free=False,  # would start a second daemon; two owners of a key show in their records
            nat_port_map=False,  # asks nobody's router for a port unasked
            use_relay=False,  # or every node is an open relay
        )
        dht = await DHTNode.create(
            p2p=p2p,
            initial_peers=list(initial_maddrs),
            num_replicas=REPLICAS,
            wait_timeout=CALL_TIMEOUT_SECONDS,
            client_mode=settings.client_mode,
            record_validator=_Validator(settings.clock, settings.cache),
            authorizer=None if settings.swarm_key is None else _Authorizer(settings.swarm_key, settings.clock),
            # Caches would answer with records that are up to a life old, and anybody may write to them.
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
        )
        maddrs = await _visible_maddrs(p2p)
    except BaseException as error:
        for p2p in made:
            await _stop_daemon(p2p)
        if isinstance(error, _FAILURES):
            raise _translate(error, initial_maddrs, settings.swarm_key is not None) from error
        raise
    dht.protocol.storage = _Storage.holding(dht.protocol.storage)
    dht.protocol.cache = _NoCache()
    return _Node(p2p, dht, maddrs)


async def _stop_daemon(p2p: Any) -> None:
    """End the daemon, by force if it does not obey; also one that is not quite started."""
    try:
        async with asyncio.timeout(SHUTDOWN_TIMEOUT_SECONDS):
            await p2p.shutdown()
    except TimeoutError:
        p2p._child.kill()
        await p2p._child.wait()
    # hivemind leaves its tasks to the garbage collector, which complains of errors that nobody saw.
    tasks = [p2p._reader_task, p2p._listen_task]
    if p2p._client is not None:
        tasks += [p2p._client.control._read_task, p2p._client.control._write_task]
    await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


def _translate(error: BaseException, initial_maddrs: Sequence[str], private: bool) -> SwarmError:
    """What hivemind's error, known by its text only, means for the operator."""
    text = str(error)
    peers = ", ".join(initial_maddrs)
    if "local time must be within" in text:
        return ClockSkew(f"this machine's clock and that of the initial peers differ by more than 3 s ({peers})")
    if "can't access this node" in text:
        return UsageError(
            f"the initial peers cannot connect back to this node ({peers})",
            hint="Open the port of the DHT in the firewall or forward it; or join as a client.",
        )
    if "failed to connect to bootstrap" in text:
        return PeerUnavailable(f"none of the initial peers can be reached: {peers}")
    if "bootstrap failed" in text and private:
        return WrongKey(f"the initial peers do not answer to this swarm key: {peers}")
    if "bootstrap failed" in text:
        return PeerUnavailable(
            f"the initial peers do not answer: {peers}",
            hint="Are they peers of a private swarm (then pass its key), or of another version?",
        )
    if "failed to listen" in text:
        return UsageError(
            f"the DHT cannot listen: {text.partition('failed to listen')[2].strip(' :')}",
            hint="Choose another port, or end the program that has it.",
        )
    if "failed to parse multiaddr" in text:
        return UsageError(f"an address of the DHT is wrong: {text.partition('failed to parse multiaddr')[2].strip()}")
    return PeerUnavailable(f"the DHT node cannot start: {text}", hint="See the message; it may pass.")


class _Validator(RecordValidatorBase):
    """Lets through only what is its owner's, under its own key, subkey and expiry, and not for too long.

    A record that is over passes: nobody reads it, and one stale entry must not make a replica's whole answer invalid.
    """

    def __init__(self, clock: Callable[[], float], cache: SignatureCache) -> None:
        self._clock = clock
        self._cache = cache

    def validate(self, record: DHTRecord) -> bool:
        try:
            encoded = MSGPackSerializer.loads(record.value)
            if not isinstance(encoded, bytes) or MSGPackSerializer.dumps(encoded) != record.value:
                return False
            inner = SignedRecord.decode(encoded)
            if (inner.key, inner.expires_at_seconds) != (record.key, record.expiration_time):
                return False
            if MSGPackSerializer.dumps(inner.peer_id) != record.subkey or not within_lifetime(inner, self._clock()):
                return False
            self._cache.check(inner)
            return True
        except Exception as error:  # input from anybody; hivemind wants an answer, whatever it was
            log.debug("a DHT record is refused: %r", error)
            return False

    def merge_with(self, other: RecordValidatorBase) -> bool:
        return isinstance(other, _Validator)


class _Storage(DHTLocalStorage):
    """hivemind's storage for dictionaries only, bounded in keys, records per key and records in all.

    In hivemind's own, an older record that somebody sends again is not stored, but still makes the newer one expire
    at the older one's time; here it changes nothing.
    """

    @classmethod
    def holding(cls, other: DHTLocalStorage) -> _Storage:
        """A storage with what `other` has received so far."""
        self = cls()
        for key, (records, _) in list(other.items()):
            if not isinstance(records, bytes):
                for subkey, (value, expiration_time) in list(records.items()):
                    self.store_subkey(key, subkey, value, expiration_time)
        return self

    def store(self, key: Any, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        entry = self.get(key)
        if entry is None and len(self) >= MAX_KEYS:
            return False
        known = entry.value.get(subkey) if entry is not None else None
        if known is not None and known.expiration_time >= expiration_time:
            return False
        if known is None and not self._has_room(entry):
            return False
        return bool(super().store_subkey(key, subkey, value, expiration_time))

    def _has_room(self, entry: Any) -> bool:
        records_here = len(entry.value) if entry is not None else 0
        return records_here < MAX_RECORDS_PER_KEY and sum(len(value) for _, (value, _) in self.items()) < MAX_RECORDS


class _NoCache(DHTLocalStorage):
    """Anybody may write to a node's cache, and what is there hides what is in its storage; so there is none."""

    def store(self, key: Any, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        return False

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        return False


class _Authorizer(AuthorizerBase):
    """Every request and answer between nodes carries an HMAC under the swarm key.

    Answers are bound to their request, and requests are good once and for a minute.  A request is not bound to its
    receiver: whoever gets one may pass it on, and learns no more than sealed records.
    """

    MAX_NONCES = 100_000

    def __init__(self, swarm_key: SwarmKey, clock: Callable[[], float]) -> None:
        self._key = swarm_key.subkey(b"dht calls")
        self._clock = clock
        self._seen: dict[bytes, float] = {}

    async def sign_request(self, request: Any, service_public_key: object) -> None:
        request.auth.time = self._clock()
        request.auth.nonce = secrets.token_bytes(16)
        request.auth.signature = self._tag(b"request", request)

    async def validate_request(self, request: Any) -> bool:
        now = self._clock()
        nonce = request.auth.nonce
        if not self._is_tagged(b"request", request) or not abs(request.auth.time - now) <= MAX_CALL_AGE_SECONDS:
            return False
        for old, seen_at in list(itertools.islice(self._seen.items(), 2)):  # two out for one in: it stays small
            if now - seen_at > 2 * MAX_CALL_AGE_SECONDS:
                del self._seen[old]
        if nonce in self._seen or len(self._seen) >= self.MAX_NONCES:
            return False
        self._seen[nonce] = now
        return True

    async def sign_response(self, response: Any, request: Any) -> None:
        response.auth.nonce = request.auth.nonce
        response.auth.signature = self._tag(b"response", response)

    async def validate_response(self, response: Any, request: Any) -> bool:
        return response.auth.nonce == request.auth.nonce and self._is_tagged(b"response", response)

    def _tag(self, direction: bytes, message: Any) -> bytes:
        content = type(message).__name__.encode() + b"\0" + message.SerializeToString(deterministic=True)
        return hmac.digest(self._key, direction + b"\0" + content, "sha256")

    def _is_tagged(self, direction: bytes, message: Any) -> bool:
        bare = type(message)()
        bare.CopyFrom(message)
        bare.auth.ClearField("signature")
        return hmac.compare_digest(self._tag(direction, bare), message.auth.signature)


async def _in_time(search: Awaitable[_Result]) -> _Result:
    """The result of a walk through the DHT. Raises PeerUnavailable after LOOKUP_TIMEOUT_SECONDS."""
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_SECONDS):
            return await search
    except TimeoutError:
        raise PeerUnavailable(f"the DHT did not answer in {LOOKUP_TIMEOUT_SECONDS:.0f} s") from None


def sweep_stale_sockets(folder: Path = Path("/tmp")) -> None:
    """Remove the sockets that killed nodes of this user left behind; hivemind puts them all into /tmp.

    A socket is removed only if no process has it open: it is not in the kernel's list, and connecting is refused.
    """
    candidates = [path for path in folder.glob("hivemind-p2p*.sock") if re.fullmatch(r"hivemind-p2p[\w.-]+", path.name)]
    try:
        in_use = set(Path("/proc/net/unix").read_text().split())
    except OSError:
        return  # another kernel, which keeps no such list
    for path in candidates:
        with contextlib.suppress(OSError):  # somebody else may be sweeping, too
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


def _entry(found: Any, peer_id: str) -> Any:
    """The entry of one peer in what a node has under a key, or None."""
    return None if found is None or isinstance(found.value, bytes) else found.value.get(peer_id)


def _backoff() -> Iterator[float]:
    """Pauses in seconds: 0.5, 1, 2, ... up to MAX_BACKOFF_SECONDS, each with a jitter of 20 %."""
    for attempt in itertools.count():
        yield min(0.5 * 2 ** min(attempt, 10), MAX_BACKOFF_SECONDS) * random.uniform(0.8, 1.2)


async def _visible_maddrs(p2p: Any) -> tuple[str, ...]:
    try:
        async with asyncio.timeout(CALL_TIMEOUT_SECONDS):
            return tuple(str(maddr) for maddr in await p2p.get_visible_maddrs(latest=True))
    except ValueError:  # a node that listens nowhere
        return ()
    except (TimeoutError, OSError) as error:
        raise PeerUnavailable(f"the DHT daemon does not answer: {error}") from None


def _pin_ports(listen_maddrs: Sequence[str], visible: Sequence[str]) -> tuple[str, ...]:
    """`listen_maddrs` with "any port" (0) replaced by the port that was got, where it can be told."""
    ports = {}
    for maddr in visible:
        if match := re.match(r"/(ip[46])/[^/]+/tcp/(\d+)", maddr):
            ports[match[1]] = match[2]
    pinned = []
    for maddr in listen_maddrs:
        match = re.fullmatch(r"/(ip[46])/([^/]+)/tcp/0", maddr)
        pinned.append(f"/{match[1]}/{match[2]}/tcp/{ports[match[1]]}" if match and match[1] in ports else maddr)
    return tuple(pinned)


def _with_known_ports(listen: Sequence[str], announced: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Both, with a free port in the place of "any port" (0) if one of the announced addresses has it.

    The daemon announces as it is told before it listens, so the port must be known before.  Raises UsageError.
    """
    if not any(maddr.endswith("/tcp/0") for maddr in announced):
        return tuple(listen), tuple(announced)
    port = 0
    pinned = []
    for maddr in listen:
        if match := re.fullmatch(r"/ip([46])/([^/]+)/tcp/(\d+)", maddr):
            port = int(match[3]) or _free_port(socket.AF_INET if match[1] == "4" else socket.AF_INET6, match[2])
            maddr = f"/ip{match[1]}/{match[2]}/tcp/{port}"
        pinned.append(maddr)
    return tuple(pinned), tuple(re.sub(r"/tcp/0$", f"/tcp/{port}", maddr) for maddr in announced)


def _free_port(family: socket.AddressFamily, host: str) -> int:
    """A port that nobody listens on at the moment. Raises UsageError."""
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise UsageError(f"the DHT cannot listen on {host}: {error.strerror}", hint="Choose another --host.") from None


def _check_maddr(maddr: str, needs_peer_id: bool) -> None:
    try:
        parsed = Multiaddr(maddr)
        if needs_peer_id:
            PeerID.from_base58(parsed["p2p"])
    except (ValueError, LookupError):
        example = "/ip4/203.0.113.7/tcp/31337" + ("/p2p/12D3KooW..." if needs_peer_id else "")
        raise UsageError(f"{maddr!r} is no address of the DHT", hint=f"It looks like {example}") from None
