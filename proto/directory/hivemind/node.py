"""The directory as a node of a hivemind DHT, in this process and its event loop.

The promises of hivemind are not taken on trust:

* Records carry their own signature; every node refuses, when storing and when reading, what does not verify.  What
  others may ask of a node is bounded (`servicer.py`), and so is what it keeps: places are shared between networks, so
  that free identities cannot take them all (`places.py`).
* A store counts only when another node has been asked and has the record.
* hivemind talks to a daemon, p2pd (`daemon.py`).  When it dies or hangs, or the connection to it breaks, hivemind goes
  on answering "stored"; so all three are watched, and daemon and node are started again with the same key and port, and
  the records announced anew.
* hivemind forgets a node that does not answer, and after an outage it takes itself for the only one.  A node that knows
  of others (`contacts.py`) never does: it is isolated, says so, and tries them until one answers.
* In a private swarm every call between nodes carries an HMAC under the swarm key: a stranger may reach the port, but it
  reads and stores nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from ....routing.swarm import PeerId
from ...clock import SteadyClock
from ...errors import PeerUnavailable, RetryElsewhere, SwarmError, UsageError
from ...identity import Identity
from ..directory import check_announcement
from ..reading import Reader
from ..shards import ShardsByName
from ..signed import SignatureCache, SignedRecord
from ..swarm_key import SwarmKey, dht_id
from . import control
from .contacts import ClockCheck, Contacts, MoreMaddrs, backoff, note_present, reach_any, seek
from .daemon import HivemindTiming, NodeSettings, RunningNode, start_node, sweep_stale_sockets
from .entries import encoded_in, entries_of, value_of
from .exchange import at_nearest, check_kept, give, read_back
from .maddrs import check_maddr, pin_ports, usable_maddrs, with_known_ports
from .places import Places, StorageLimits
from .shim import use_hivemind_log_handler

log = logging.getLogger(__name__)

NEWCOMERS_LOOKS = 3
"""Looks that follow each other without a rest: at the base key, for the number of shards, and at these."""


class HivemindDirectory:
    """A Directory (see directory.py) whose records live in the DHT. Made by `start`, ended by `close`."""

    def __init__(self, settings: NodeSettings, contacts: Contacts) -> None:
        self._settings = settings
        self._contacts = contacts
        self._cache = settings.cache
        self._timing = settings.timing
        self._announced: dict[bytes, SignedRecord] = {}
        self.shards = ShardsByName(settings.peer_id, settings.timing.longest_rest_seconds)
        self._isolated = asyncio.Event()
        self._clock_check = ClockCheck(settings.clock)
        self._reader = Reader(settings, random.Random())
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
        clock: Callable[[], float] | SteadyClock = time.time,
        *,
        announce_maddrs: Sequence[str] = (),
        remembered_maddrs: Sequence[str] = (),
        more_maddrs: MoreMaddrs | None = None,
        client_mode: bool = False,
        join_timeout_seconds: float = 60.0,
        timing: HivemindTiming | None = None,
        limits: StorageLimits | None = None,
    ) -> HivemindDirectory:
        """Start a node; with `initial_maddrs` it joins their DHT, without them it begins a new one.

        `announce_maddrs` replaces the addresses that others are told (port forwarding); port 0 in them is the port that
        the node listens on.  `remembered_maddrs` are the `met_maddrs` of an earlier run: a node that began a DHT joins
        what is left of it.  `more_maddrs` is asked when nodes are sought.  In `client_mode` the node keeps nothing for
        others and need not be reachable.  Joining is tried for `join_timeout_seconds`; without `initial_maddrs` the
        node is isolated after that.  Other nodes decide about the steps of a steady `clock`.  `close` it;
        `until_closed` tells when it can no longer do its work.

        Raises UsageError (addresses, key file, port taken, not reachable from outside), ClockSkew, or PeerUnavailable
        with the addresses that did not answer.
        """
        for maddr in (*listen_maddrs, *announce_maddrs):
            check_maddr(maddr, needs_peer_id=False)
        listen_maddrs, announce_maddrs = with_known_ports(listen_maddrs, announce_maddrs)
        identity = Identity.load_or_create(identity_path)  # the daemon would write an RSA key where there is none
        use_hivemind_log_handler("nowhere")
        logging.getLogger("hivemind").setLevel(logging.CRITICAL)  # what matters is raised or logged here
        sweep_stale_sockets()
        settings = NodeSettings(
            peer_id=identity.peer_id,
            identity_path=os.fspath(identity_path),
            listen_maddrs=tuple(listen_maddrs),
            announce_maddrs=tuple(announce_maddrs),
            swarm_key=swarm_key,
            clock=clock,
            client_mode=client_mode,
            cache=SignatureCache(),
            timing=timing or HivemindTiming(),
            places=Places(identity.peer_id, limits or StorageLimits(), clock, time.monotonic),
        )
        remembered = usable_maddrs(remembered_maddrs)
        contacts = Contacts(identity.peer_id, usable_maddrs(initial_maddrs), remembered, more_maddrs)
        if initial_maddrs and not contacts:
            raise UsageError(f"there is no address of another node among the initial ones: {', '.join(initial_maddrs)}")
        self = cls(settings, contacts)
        node = await start_node(settings, settings.listen_maddrs)
        try:
            await self._join(node, join_timeout_seconds, may_be_alone=not initial_maddrs)
        except BaseException:
            await node.stop()
            raise
        self._supervise_from(node)
        return self

    def _supervise_from(self, node: RunningNode) -> None:
        self._set_node(node)
        self._supervisor = asyncio.create_task(self._supervise(), name="supervise the DHT daemon")

    @property
    def peer_id(self) -> PeerId:
        """The id of this node."""
        return self._settings.peer_id

    @property
    def client_mode(self) -> bool:
        """Whether it keeps nothing for others, who need not reach it."""
        return self._settings.client_mode

    @property
    def node(self) -> RunningNode | None:
        """The present life of daemon and node; None once the directory is closed."""
        return self._node

    @property
    def isolated(self) -> bool:
        """Whether others are known and none answers. This node keeps trying, and serves what it has itself."""
        return self._isolated.is_set()

    @property
    def met_maddrs(self) -> tuple[str, ...]:
        """The addresses of other nodes that were met, to find the DHT in another run."""
        return self._contacts.met

    def forget(self, peer_id: PeerId) -> None:
        """Do not expect this node any more: it has said that it leaves."""
        self._contacts.forget(peer_id)
        if not self._contacts:
            self._isolated.clear()

    async def visible_maddrs(self) -> tuple[str, ...]:
        """The addresses under which others may join the DHT through this node."""
        return await control.identify((await self._running()).p2p, self._timing.call_seconds)

    def kept_records(self, name: str) -> tuple[SignedRecord, ...]:
        """The records under `name` that this node keeps itself, for others and of its own."""
        kept = sorted(self._settings.places.records_under(dht_id(name)).items())
        return tuple(SignedRecord.decode(encoded_in(place.value) or b"") for _, place in kept)

    async def announce(self, record: SignedRecord) -> None:
        check_announcement(record, self._settings.clock(), self._cache)
        now = self._settings.clock()
        self._announced = {key: kept for key, kept in self._announced.items() if kept.expires_at_seconds > now}
        self._announced[record.key] = record
        self.shards.own = frozenset(self._announced)
        node = await self._running()
        await self._store(node, record)

    async def lookup(self, name: str) -> tuple[SignedRecord, ...]:
        node, shards = await self._running(), self.shards.of(dht_id(name))
        self._expect_others(node)
        for _ in range(NEWCOMERS_LOOKS if shards.is_due(time.monotonic()) else 0):
            look = shards.next_look()
            found = await self._reader.read(node, look.keys, shards)
            self._check_alive(node)
            if not node.others:
                self._note_isolation()
            shards.took(look, found, time.monotonic())
            if shards.is_settled:
                break
        return shards.known(self._settings.clock())

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
        self._reader.close()
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

    def _check_alive(self, node: RunningNode) -> None:
        """hivemind answers "nothing found" and "stored" also when its daemon is gone."""
        if not node.is_alive:
            raise PeerUnavailable("the DHT daemon died during the call", hint="It is being started again; try again.")

    async def _store(self, node: RunningNode, record: SignedRecord) -> None:
        """Have a record kept under its name and its shard, as `Shards` says; one of the keys is enough."""
        shards = self.shards.of(record.key)
        failures: dict[bytes, PeerUnavailable] = {}
        for key in (keys := shards.keys_to_write()):
            try:
                await self._store_under(node, record, key)
            except PeerUnavailable as error:
                failures[key] = error
        if len(failures) == len(keys):
            raise failures[keys[0]]

    async def _store_under(self, node: RunningNode, record: SignedRecord, key: bytes) -> None:
        """Have the nodes nearest to a key keep the record, and see that one does."""
        places, client_mode = self._settings.places, self._settings.client_mode
        if not client_mode:  # always there for those that ask this node
            places.keep(key, record.peer_id, value_of(record), record.expires_at_seconds, None)
        self._expect_others(node)
        given = await at_nearest(node, key, not client_mode, lambda peer: give(node, peer, record, key))
        self._check_alive(node)
        if not given:
            self._note_isolation()
            if self.isolated or client_mode:
                raise PeerUnavailable("no other node of the DHT answers", hint="It is tried again; check the network.")
            check_kept(record, entries_of(places.records_under(key)))
            return
        self._isolated.clear()
        await read_back(node, record, key, given, promises_do=self.shards.of(record.key).has_many(key))

    def _expect_others(self, node: RunningNode) -> None:
        """Before others are asked: hivemind forgets those that are silent."""
        self._contacts.expect([peer_id.to_base58() for peer_id in node.others])

    def _note_isolation(self) -> None:
        """No other node has answered. Where none is known, this is the first one, and alone by right."""
        if self._contacts and not self.isolated:
            log.warning("no other node of the DHT answers; this one serves what it has and tries them until one does")
            self._isolated.set()

    async def _join(self, node: RunningNode, seconds: float, may_be_alone: bool) -> None:
        """Get in touch with the known nodes, again and again for `seconds`. Raises SwarmError if none answers.

        A reason to give up is raised if every node gives one: what one of them says concerns that one.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        for pause_seconds in backoff(self._timing.first_backoff_seconds, self._timing.max_backoff_seconds):
            known = self._contacts.known()
            reached, errors = await reach_any(node, known, check=True)
            if reached or not known:
                for error in errors:
                    log.warning("%s; the DHT is joined through others", error)
                return
            reasons = "; ".join(map(str, errors))
            final = [error for error in errors if not isinstance(error, RetryElsewhere)]
            is_over = asyncio.get_running_loop().time() + pause_seconds > deadline
            if may_be_alone and (is_over or len(final) == len(errors)):
                log.warning("%s; they are tried again and again", reasons)
                self._note_isolation()
                return
            if len(final) == len(errors):
                raise final[0]
            if is_over:
                raise PeerUnavailable(reasons, hint=(final or errors)[0].hint)
            log.info("%s; retrying in %.1f s", reasons, pause_seconds)
            await asyncio.sleep(pause_seconds)

    async def _supervise(self) -> None:
        """Start daemon and node again whenever they are gone, and keep in touch with other nodes meanwhile."""
        while True:
            assert self._node is not None
            contact = asyncio.create_task(self._keep_in_touch(self._node), name="keep in touch with the DHT")
            ended = asyncio.create_task(self._node.ended(), name="watch the DHT daemon")
            try:
                await asyncio.wait({contact, ended}, return_when=asyncio.FIRST_COMPLETED)
                if contact.done():
                    contact.result()  # it has no end of its own: this raises why it failed
            finally:
                contact.cancel()
                ended.cancel()
                await asyncio.gather(contact, ended, return_exceptions=True)
            self._up.clear()
            log.warning("%s; starting it again", ended.result())
            await self._node.stop()
            self._set_node(await self._start_again())
            await self._announce_again(self._node)

    async def _start_again(self) -> RunningNode:
        """A new node, on the same port at first, that has tried all nodes that were known."""
        listen_maddrs = self._pinned_listen_maddrs
        for pause_seconds in backoff(self._timing.first_backoff_seconds, self._timing.max_backoff_seconds):
            try:
                node = await start_node(self._settings, listen_maddrs)
            except SwarmError as error:
                if isinstance(error, UsageError):
                    listen_maddrs = self._settings.listen_maddrs  # another program has taken the port meanwhile
                log.warning("the DHT node cannot start: %s; retrying in %.1f s", error, pause_seconds)
                await asyncio.sleep(pause_seconds)
                continue
            try:
                await self._try_known(node)
            except BaseException:
                await node.stop()
                raise
            return node
        raise AssertionError("the backoff has no end")

    async def _keep_in_touch(self, node: RunningNode) -> None:
        """Find the others again when none of them answers, and known ones that have lost touch with those that do."""
        loop, timing = asyncio.get_running_loop(), self._timing
        look_at = loop.time() + timing.patrol_seconds * random.uniform(0.8, 1.2)
        pauses, pauses_until = self._contact_pauses(), loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(timing.note_seconds):
                    await self._isolated.wait()
            await self._clock_check.run(node, again=loop.time() >= look_at, alone=not self._contacts)
            if not self.isolated:
                await note_present(node, self._contacts)
                if loop.time() >= look_at:  # two parts of a DHT that were cut apart know nothing of each other
                    await self._try_known(node)
                    look_at = loop.time() + timing.patrol_seconds * random.uniform(0.8, 1.2)
                continue
            began = loop.time()
            if began >= pauses_until:  # else they go on: some node answers pings, and then nothing else
                pauses = self._contact_pauses()
            for pause_seconds in pauses:
                if await self._try_known(node) or not self.isolated:
                    break
                await asyncio.sleep(pause_seconds)
            self._isolated.clear()
            if node.others:
                log.warning("other nodes of the DHT answer again after %.0f s", loop.time() - began)
            await self._announce_again(node)
            if self.isolated:
                await asyncio.sleep(next(pauses))
            pauses_until = loop.time() + timing.max_contact_seconds

    def _contact_pauses(self) -> Iterator[float]:
        return backoff(self._timing.first_contact_seconds, self._timing.max_contact_seconds)

    async def _try_known(self, node: RunningNode) -> bool:
        """Get in touch with the known nodes that are out of touch; whether any other node is there."""
        return await seek(node, self._contacts)

    async def _announce_again(self, node: RunningNode) -> None:
        now = self._settings.clock()
        for record in [kept for kept in self._announced.values() if kept.expires_at_seconds > now]:
            try:
                await self._store(node, record)
            except SwarmError as error:
                log.warning("a record could not be announced again: %s; the next refresh does it", error)

    def _set_node(self, node: RunningNode) -> None:
        self._node = node
        self._pinned_listen_maddrs = pin_ports(self._settings.listen_maddrs, node.maddrs)
        self._up.set()
