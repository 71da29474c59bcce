"""The swarm as this client sees it: the peers' verified records, round trips, clock offsets and recent failures.

An error in talking to a peer concerns only that peer: it counts as silent, and the log says why.  If no peer answers, a
look raises that and the next one tries again.  If looking itself fails, questions to the view raise the reason.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ...proto.directory.records import PeerRecord
from ...proto.directory.signed import SignedRecord, newest_per_peer
from ...proto.directory.swarm_key import SwarmKey, swarm_key_name
from ...proto.errors import (
    LocalProtocolError,
    PeerUnavailable,
    SwarmError,
    WrongSwarm,
)
from ...proto.identity import Identity
from ...proto.network.address import PeerAddress, Reach
from ...proto.network.dialling import AddressRefused
from ...proto.network.transport import Dialer, ping
from ...proto.wire.messages.calls import PingReply
from ...routing.swarm import Coordinate, PeerId, PeerState
from ...routing.trust import Trust
from ..peer_errors import blamed_on
from ..timing import ClientTiming
from .absence import raise_reason
from .bans import Bans
from .known import KnownPeer, SeenRuns
from .look import Found
from .lookups import LookupAsker, SwarmLookups, found_in
from .meeting import Meetings
from .place import PINGS_A_LOOK, rough
from .snapshot import CurrentSwarm, PreparedSwarm, prepare
from .weights import WeightTrust

logger = logging.getLogger(__name__)

MAX_PINGS_AT_ONCE = 32
MAX_LOOKUP_PEERS = 4


@dataclass(frozen=True, slots=True)
class RollCall:
    """The peers that were pinged concurrently, and those of them that did not answer."""

    asked: frozenset[PeerId]
    silent: frozenset[PeerId]

    @property
    def nobody(self) -> bool:
        """Whether no peer has answered."""
        return self.silent == self.asked


class SwarmView:
    """Finds the peers of one model by look-ups at known peers, and keeps what it knows of them fresh."""

    def __init__(
        self,
        identity: Identity,
        dialer: Dialer,
        initial_peers: Sequence[PeerAddress],
        model_digest: str,
        num_blocks: int,
        swarm_key: SwarmKey | None,
        push: bool = True,
        clock: Callable[[], float] = time.time,
        timing: ClientTiming | None = None,
        proven: Mapping[int, bytes] | None = None,
        allowed: frozenset[PeerId] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        most_pings: int = PINGS_A_LOOK,
    ) -> None:
        """`num_blocks`, and whether peers `push` to each other, are used to prepare snapshots for routing.

        `proven`: hashes of the blocks that this machine's own files prove. `allowed`: the peers that may be used, None:
        all; other peers are pinged and asked for records all the same.
        """
        self.timing = timing or ClientTiming()
        self.peers: Mapping[PeerId, KnownPeer] = {}
        self.silent: dict[PeerId, PeerRecord] = {}
        """Peers with a valid record that did not answer the last look, or were not pinged in it."""
        self._identity = identity
        self._dialer = dialer
        self._initial_peers = tuple(initial_peers)
        self._model_digest = model_digest
        self.num_blocks, self._push = num_blocks, push
        self._name = swarm_key_name(model_digest, swarm_key)
        self._swarm_key = swarm_key
        self._clock = clock
        self.bans = Bans(clock, monotonic, self.timing)
        self._weights, self._allowed = WeightTrust(proven or {}), allowed
        self._prepared = PreparedSwarm.of({}, num_blocks, push, self._weights)
        self.seen = SeenRuns()
        self._meetings = Meetings(dialer, num_blocks, self.timing, rng or random.Random(), monotonic, most_pings)
        self._found: Mapping[PeerId, Found] = {}
        asker = LookupAsker(identity, dialer, swarm_key, clock, self.timing.lookup_seconds)
        self._lookups = SwarmLookups(asker, everything=most_pings > PINGS_A_LOOK or allowed is not None)
        self._records: tuple[SignedRecord, ...] = ()
        self._refreshing: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._failure: str | None = None
        """Why no further look at the swarm will be taken; None: looks go on."""

    async def start(self) -> None:
        """Take the first look, then one every `ClientTiming.refresh_seconds`. Raises as `first_look` does."""
        await self.first_look()
        self._keeper = asyncio.create_task(self._keep_fresh(), name="swarm-view")
        self._keeper.add_done_callback(self._keeper_ended)

    async def first_look(self) -> None:
        """Look until every block has a host or every peer was pinged, for at most `first_looks_seconds`.

        Raises SwarmError if no peer answers, or if there is a known reason why no peer of the model is found.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self.timing.first_looks_seconds
        await self.refresh()
        while self._is_worth_another_look() and loop.time() < until:
            await self.refresh()
        if not self.peers:
            await self._explain_absence()

    def _is_worth_another_look(self) -> bool:
        """Return whether blocks are missing that peers not yet pinged, or not yet looked up, may host."""
        missing = self._meetings.missing(self.peers.values())
        return self._meetings.worth_another_look(self._found, self.peers) or (
            missing and self._lookups.can_look_for_more
        )

    async def close(self) -> None:
        """Stop looking, and wait for all tasks to end."""
        self._closed = True
        tasks = [task for task in (self._keeper, self._refreshing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """Look up the records and ping the peers; concurrent callers share one look. Raises SwarmError."""
        self._check()
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
            # All callers may be cancelled; retrieve the exception, and let the next look report what is wrong.
            self._refreshing.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._refreshing)

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        """Do not use this run of a peer for a while; after PeerBusy, not before the time that it gave."""
        if known := self.peers.get(peer):
            self.bans.note(known.run, error)

    def pardon(self, peers: frozenset[PeerId]) -> None:
        """Lift the bans of those peers and dial them anew: they were not at fault."""
        self.bans.pardon(peers)
        for peer in peers:
            if known := self.peers.get(peer):
                self._dialer.renew(known.address)

    async def excuse_silent(self) -> bool:
        """Lift the bans of peers that were only silent and answer over a new connection; return if there are any."""
        excusable = self.bans.excusable()
        banned = [known for known in self.peers.values() if known.run in excusable][:MAX_PINGS_AT_ONCE]
        ways = await asyncio.gather(*map(self._way_anew, banned))
        excused = [(known, way) for known, way in zip(banned, ways, strict=True) if way is not None]
        for known, way in excused:
            self._dialer.renew(way)
            self.bans.excuse(known.run)
        moved = {known.record.spec.id: known.reached_by(way) for known, way in excused if way != known.address}
        if moved:
            await self.see({**self.peers, **moved})
        return bool(excused)

    async def _way_anew(self, known: KnownPeer) -> Reach | None:
        """Return the best way by which a peer answers over a new connection, or None; another relay may still work."""
        ways = (known.address, *known.others)
        answers = await asyncio.gather(*(self._answers_anew(way, self.timing.answering_seconds) for way in ways))
        return next((way for way, answered in zip(ways, answers, strict=True) if answered), None)

    async def roll_call(self, peers: Sequence[PeerId], needed: Collection[PeerId]) -> RollCall:
        """Ping the first `MAX_PINGS_AT_ONCE` of these peers concurrently, until all of `needed` have answered.

        Each ping waits at most `answering_seconds`. The others may be reported as silent only because nothing waited
        for them.
        """
        known = [self.peers[peer] for peer in peers if peer in self.peers][:MAX_PINGS_AT_ONCE]
        asked = frozenset(peer.record.spec.id for peer in known)
        silent, waited_for = set(asked), set(needed)

        async def ask(peer: KnownPeer) -> None:
            with suppress(SwarmError), blamed_on(peer.address):
                await ping(self._dialer.stub(peer.address), peer.address, self.timing.answering_seconds)
                silent.discard(peer.record.spec.id)
                waited_for.discard(peer.record.spec.id)

        asking = {asyncio.create_task(ask(peer)) for peer in known}
        try:
            pending = asking
            while pending and waited_for & silent:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return RollCall(asked, frozenset(silent))

    async def reaches_anybody(self, seconds: float) -> bool:
        """Return whether any known node answers a ping within `seconds`, each over a new connection.

        At most `MAX_PINGS_AT_ONCE` are pinged, the initial peers first, because they are meant to be always there.
        """
        known = [*self._initial_peers, *(peer.address for peer in self.peers.values())]
        addresses = list(dict.fromkeys(known))
        asking = [
            asyncio.create_task(self._answers_anew(address, seconds)) for address in addresses[:MAX_PINGS_AT_ONCE]
        ]
        try:
            for answer in asyncio.as_completed(asking):
                if await answer:
                    return True
            return False
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _answers_anew(self, address: Reach, seconds: float) -> bool:
        """Return whether a node answers a ping over a new connection."""
        try:
            async with self._dialer.dialed_once(address) as stub:
                with blamed_on(address):
                    await ping(stub, address, seconds)
        except SwarmError:
            return False
        return True

    def usable(self) -> tuple[KnownPeer, ...]:
        """Return the peers that may be used now, ordered by id. Raises LocalProtocolError if looking has failed."""
        self._check()
        believed = self.trust.believed
        return tuple(
            known
            for peer, known in sorted(self.peers.items())
            if known.record.spec.state in (PeerState.SERVING, PeerState.DRAINING)
            and not self.bans.is_banned(known.run)
            and peer in believed
        )

    @property
    def trust(self) -> Trust:
        """Which peers' weights are believed, among those of the last look."""
        return self._prepared.trust

    @property
    def prepared(self) -> PreparedSwarm:
        """The last look, prepared for routing."""
        return self._prepared

    def current(self) -> CurrentSwarm:
        """Return the last look, prepared for routing, with the failures and refusals since then.

        Raises LocalProtocolError if looking has failed.
        """
        self._check()
        troubled = [peer for peer, incarnation in self.bans.runs() if self._runs(peer, incarnation)]
        runs = {peer: self.peers[peer].run for peer in troubled}
        return CurrentSwarm(
            self._prepared,
            self._clock(),
            frozenset(peer for peer, run in runs.items() if self.bans.is_banned(run)),
            {peer: until for peer, run in runs.items() if (until := self.bans.full_until(run)) is not None},
            {peer: self.timing.doubt_seconds * self.bans.failures(run) for peer, run in runs.items()},
            self.timing.min_retry_seconds,
            self.timing.claim_stands_seconds,
        )

    def _runs(self, peer: PeerId, incarnation: int) -> bool:
        """Return whether that incarnation is the peer's present one."""
        known = self.peers.get(peer)
        return known is not None and known.record.incarnation == incarnation

    def was_silent(self, peer: PeerId) -> bool:
        """Return whether a peer of `silent` was pinged, and has not answered since."""
        return self._meetings.was_silent(peer)

    @property
    def rough_place(self) -> Coordinate | None:
        """This client's coordinate, rounded for sharing with peers; None while it is not known."""
        return rough(self._meetings.place.value)

    async def see(self, peers: Mapping[PeerId, KnownPeer]) -> None:
        """Replace the peers of the swarm, and prepare them for routing."""
        self._prepared = await prepare(
            peers, self.num_blocks, self._push, self._weights, self._allowed, self._meetings.place.value
        )
        self.peers = peers
        self.seen.note(self._prepared.finder.peers)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self.timing.refresh_seconds)
            try:
                await self.refresh()
            except SwarmError as error:
                again = self.timing.refresh_seconds
                logger.warning("the swarm was not seen (%s), looking again in %.0f s", error, again)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        if not self._closed:
            error = None if keeper.cancelled() else keeper.exception()
            self._failure = repr(error) if error is not None else "it was cancelled"
            logger.error("the client looks at the swarm no longer: %s", self._failure, exc_info=error)

    def _check(self) -> None:
        """Raise LocalProtocolError if the view has failed: what it knows becomes stale."""
        if self._failure is not None:
            raise LocalProtocolError(f"the client looks at the swarm no longer: {self._failure}")

    async def _refresh(self) -> None:
        self._records = await self._look_up(self.rough_place)
        self._found = found_in(self._records, self._swarm_key)
        closer = None if self._lookups.is_complete else self._found_near
        met = await self._meetings.look(self._found, self.peers, closer)
        if self._lookups.can_look_for_more and self._meetings.missing(met.values()):
            self._lookups.look_for_more()
        await self.see(met)
        self.silent = {peer: found.record for peer, found in self._found.items() if peer not in met}

    async def _explain_absence(self) -> None:
        """Raise the reason why no peer was found, if the initial peers tell one.

        Raises WrongSwarm for another version of the protocol, ClockSkew, ModelMismatch, PeerUnavailable.
        """
        answers = await asyncio.gather(*(self._ask(address) for address in self._initial_peers))
        for answer in answers:
            if isinstance(answer, WrongSwarm):
                raise answer
        raise_reason([answer for answer in answers if isinstance(answer, tuple)], self._model_digest)
        if self.silent:
            addresses = ", ".join(sorted({address for peer in self.silent.values() for address in peer.addresses}))
            hint = "Open their ports in the firewall, or have them announce an address that can be reached."
            raise PeerUnavailable(
                f"none of the peers of this model answers here ({addresses})",
                hint=AddressRefused.default_hint if self._meetings.refused.issuperset(self.silent) else hint,
            )

    async def _ask(self, address: PeerAddress) -> tuple[PingReply, float] | WrongSwarm | None:
        """Return status and clock offset (seconds) of an initial peer; None if it does not answer."""
        stub = self._dialer.stub(address)
        try:
            with blamed_on(address):
                reply, _, offset = await ping(stub, address, self.timing.ping_seconds)
        except WrongSwarm as error:
            return error
        except SwarmError as error:
            logger.debug("%s does not answer: %s", address, error)
            return None
        return reply, offset

    async def _look_up(self, place: Coordinate | None) -> tuple[SignedRecord, ...]:
        """Look up the records at the initial peers and the nearest known ones, so that no single peer is needed.

        If the answers are incomplete, known peers are kept for as long as their records are valid.
        """
        learned = [known.address for known in sorted(self.peers.values(), key=lambda known: known.rtt_seconds)]
        asked = list(dict.fromkeys([*self._initial_peers, *learned[:MAX_LOOKUP_PEERS]]))
        records = await self._lookups.look(self._name, asked, place)
        if not self._lookups.is_complete:
            now = self._clock()
            kept = [old for old in self._records if old.peer_id in self.peers and old.expires_at_seconds > now]
            records = newest_per_peer([*records, *kept])
        return records

    async def _found_near(self, place: Coordinate | None) -> Mapping[PeerId, Found]:
        """Look up peers once more, now that this client knows its place; return all that were found."""
        try:
            near = await self._look_up(rough(place))
        except SwarmError as error:
            logger.debug("the hosts near this client were not found: %s", error)
            return {}
        self._records = newest_per_peer([*self._records, *near])
        self._found = found_in(self._records, self._swarm_key)
        return self._found
