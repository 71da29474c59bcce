"""Pings the peers whose records were found, in the order of `LookOrder`, within the time of a look."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from ...proto.errors import DeadlineExceeded, SwarmError
from ...proto.network.dialling import AddressRefused
from ...proto.network.transport import Dialer, ping
from ...routing.swarm import Coordinate, PeerId, PeerState
from ..peer_errors import blamed_on
from ..timing import ClientTiming
from .known import KnownPeer
from .look import Found, LookOrder, Question
from .place import FIRST_PINGS, PINGS_A_LOOK, ClientPlace

logger = logging.getLogger(__name__)

Closer = Callable[[Coordinate | None], Awaitable[Mapping[PeerId, Found]]]
"""Finds peers near a place; returns none if that fails."""

MAX_ASKED_AT_ONCE = 64
RTT_SMOOTHING = 0.3


class Meetings:
    """Pings peers, and remembers the outcomes from look to look."""

    def __init__(
        self,
        dialer: Dialer,
        num_blocks: int,
        timing: ClientTiming,
        rng: random.Random,
        monotonic: Callable[[], float] = time.monotonic,
        most_pings: int = PINGS_A_LOOK,
        allowed: frozenset[PeerId] | None = None,
    ) -> None:
        """A look may end after `most_pings` answers if these include an `allowed` host (None: any) for every block."""
        self.place = ClientPlace(rng, monotonic)
        self._monotonic = monotonic
        self._most_pings = most_pings
        self._allowed = allowed
        self.refused: set[PeerId] = set()
        """Peers of the last look that announce addresses to which this client does not connect."""
        self._dialer = dialer
        self._num_blocks = num_blocks
        self._timing = timing
        self._order = LookOrder(rng, timing)

    async def look(
        self, found: Mapping[PeerId, Found], known: Mapping[PeerId, KnownPeer], closer: Closer | None = None
    ) -> Mapping[PeerId, KnownPeer]:
        """Ping the peers in `found`; return those that answer, and the `known` ones that were not pinged.

        `known` are the peers of the last look. If there are many peers, only some are pinged (`place.py`), and no ping
        begins after `look_seconds`. A known peer that is not pinged stays known, with its newest record; other peers
        are left out. While blocks are missing, silent peers are pinged by their other ways, too.

        If `found` has only some of many peers, `closer` finds more once this client's place is known.
        """
        loop = asyncio.get_running_loop()
        begin_until = loop.time() + self._timing.look_seconds
        found = dict(found)
        self.refused.clear()
        met: dict[PeerId, KnownPeer] = {}
        silent: set[PeerId] = set()
        first = self._order.first_turn(found, {peer: old.address for peer, old in known.items()}, loop.time())
        failed = await self._first_turn(first, found, known, met, begin_until, closer)
        while failed:
            silent |= {question.peer for question in failed}
            for question in failed:
                self._order.silent(question, found[question.peer], loop.time(), to_blame=bool(met))
            if loop.time() >= begin_until:
                break
            again = failed if self._lacks(found, known, met, silent) else [f for f in failed if f.peer in known]
            failed = await self._ask(self._order.next_turn(found, again), found, known, met, begin_until)
        self.place.settle(met)
        asked = met.keys() | silent
        unasked = {
            peer: replace(old, record=found[peer].record, encoded=found[peer].encoded)
            for peer, old in known.items()
            if peer in found and found[peer].ways and peer not in asked
        }
        return met | unasked

    def was_silent(self, peer: PeerId) -> bool:
        """Return whether a peer was pinged in some look and has not answered since."""
        return self._order.was_silent(peer)

    def worth_another_look(self, found: Mapping[PeerId, Found], known: Mapping[PeerId, KnownPeer]) -> bool:
        """Return whether blocks are missing while some found peers have not been pinged yet."""
        return self.missing(known.values()) and self._order.has_untried(found, known)

    def missing(self, known: Iterable[KnownPeer]) -> bool:
        """Return whether some block of the model is served by none of these peers."""
        served = bytearray(self._num_blocks)
        for peer in known:
            spec = peer.record.spec
            serves = spec.state in (PeerState.SERVING, PeerState.DRAINING) and self._may_use(spec.id)
            if serves and spec.blocks is not None:
                for block in range(spec.blocks.start, min(spec.blocks.stop, self._num_blocks)):
                    served[block] = 1
        return not all(served)

    def _may_use(self, peer: PeerId) -> bool:
        return self._allowed is None or peer in self._allowed

    def _lacks(
        self,
        found: Mapping[PeerId, Found],
        known: Mapping[PeerId, KnownPeer],
        met: Mapping[PeerId, KnownPeer],
        silent: Collection[PeerId],
    ) -> bool:
        """Return whether blocks are missing; peers known before count until they are found to be silent."""
        there = (peer for name, peer in known.items() if name in found and name not in silent and name not in met)
        return self.missing((*met.values(), *there))

    async def _first_turn(
        self,
        questions: Sequence[Question],
        found: dict[PeerId, Found],
        known: Mapping[PeerId, KnownPeer],
        met: dict[PeerId, KnownPeer],
        begin_until: float,
        closer: Closer | None,
    ) -> list[Question]:
        """Ping all peers or, if there are many, the most useful ones, and more while blocks are missing.

        Adds the peers that answer to `met`, and those that `closer` finds to `found`; returns the pings that failed.
        """
        if len(questions) <= self._most_pings and closer is None:
            return await self._ask(questions, found, known, met, begin_until)
        async with self._asking(questions, found, known, met, begin_until) as asking:
            if self.place.value is None:
                await asking.until(FIRST_PINGS, FIRST_PINGS // 2)
                self.place.settle(met)
                if closer is not None:
                    more = {
                        peer: those for peer, those in (await closer(self.place.value)).items() if peer not in found
                    }
                    found.update(more)
                    asking.waiting.extend(self._order.others(more, asyncio.get_running_loop().time()))
            by_peer = {question.peer: question for question in asking.waiting}
            specs = [found[peer].record.spec for peer in by_peer if self._may_use(peer)]
            best = [by_peer.pop(peer) for peer in self.place.order(specs, known, self._num_blocks)]
            asking.waiting = deque([*best, *by_peer.values()])
            await asking.until(self._most_pings)
            while asking.goes_on and self._lacks(found, known, met, [each.peer for each in asking.failed]):
                await asking.until(len(met) + self._most_pings)
        return asking.failed

    async def _ask(
        self,
        questions: Sequence[Question],
        found: Mapping[PeerId, Found],
        known: Mapping[PeerId, KnownPeer],
        met: dict[PeerId, KnownPeer],
        begin_until: float,
    ) -> list[Question]:
        """Ping all of these and add the peers that answer to `met`; return the pings that failed."""
        async with self._asking(questions, found, known, met, begin_until) as asking:
            await asking.until(math.inf)
        return asking.failed

    @asynccontextmanager
    async def _asking(
        self,
        questions: Sequence[Question],
        found: Mapping[PeerId, Found],
        known: Mapping[PeerId, KnownPeer],
        met: dict[PeerId, KnownPeer],
        begin_until: float,
    ) -> AsyncIterator[_Asking]:
        """Yield a pinger; at the end of the block all its pings have been answered or have timed out."""

        def meet(question: Question) -> Coroutine[Any, Any, KnownPeer | None]:
            return self._meet(question, found[question.peer], known.get(question.peer))

        asking = _Asking(deque(questions), met, meet, begin_until, self._timing.look_patience_seconds)
        try:
            yield asking
            await asking.finish()
        finally:
            await asking.close()

    async def _meet(self, question: Question, found: Found, old: KnownPeer | None) -> KnownPeer | None:
        """Ping a peer at one of its addresses; return None if it does not answer."""
        way, timeout = question.way, self._timing.ping_seconds
        stub = self._dialer.stub(way)
        try:
            try:
                async with asyncio.timeout(timeout):
                    with blamed_on(way):
                        status, rtt, offset = await ping(stub, way, timeout, self._monotonic)
                        if old is None or old.address != way:  # the first ping includes opening the connection
                            status, rtt, offset = await ping(stub, way, timeout, self._monotonic)
            except TimeoutError:
                raise DeadlineExceeded(f"{way} does not answer") from None
        except SwarmError as error:
            logger.debug("%s does not answer: %s", way, error)
            if isinstance(error, AddressRefused):
                self.refused.add(question.peer)
            return None
        self.place.note(question.peer, rtt)
        if old is not None and old.address == way and rtt > old.rtt_seconds:
            # The shortest round trip is the best measurement of path and clock: noise only lengthens it.
            rtt, offset = old.rtt_seconds + RTT_SMOOTHING * (rtt - old.rtt_seconds), old.clock_offset_seconds
        others = tuple(other for other in found.ways if other != way)
        return KnownPeer(found.record, found.encoded, way, rtt, offset, status, others)


class _Asking:
    """Pings peers in order, several at a time."""

    def __init__(
        self,
        waiting: deque[Question],
        met: dict[PeerId, KnownPeer],
        meet: Callable[[Question], Coroutine[Any, Any, KnownPeer | None]],
        begin_until: float,
        patience_seconds: float,
    ) -> None:
        self.waiting = waiting
        self.failed: list[Question] = []
        """The pings that were not answered."""
        self._met = met
        self._meet = meet
        self._begin_until = begin_until
        self._patience_seconds = patience_seconds
        self._loop = asyncio.get_running_loop()
        self._asked: dict[asyncio.Task[KnownPeer | None], tuple[Question, float]] = {}

    @property
    def goes_on(self) -> bool:
        """Whether peers are left to ping, and time."""
        return bool(self.waiting) and self._loop.time() < self._begin_until

    async def until(self, enough: float, spare: int = 0) -> None:
        """Ping until `enough` peers have been met or none is left; keep `spare` more pings under way than needed."""
        eagerness = 1  # doubled whenever none answers: among many silent peers those that answer are rare
        while len(self._met) < enough:
            now = self._loop.time()
            patience = self._patience_seconds
            hopeful = sum(task.done() or now - begun < patience for task, (_, begun) in self._asked.items())
            wanted = (enough - len(self._met)) * eagerness + spare
            while self.goes_on and len(self._asked) < MAX_ASKED_AT_ONCE and hopeful < wanted:
                question, hopeful = self.waiting.popleft(), hopeful + 1
                self._asked[asyncio.create_task(self._meet(question))] = question, now
            if not self._asked:
                return
            if not await self._wait(self._patience_seconds if self.goes_on else None):
                eagerness *= 2

    async def finish(self) -> None:
        """Wait for all pings under way."""
        while self._asked:
            await self._wait(None)

    async def close(self) -> None:
        """Cancel all pings under way."""
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)

    async def _wait(self, patience: float | None) -> bool:
        """Take in pings that end within `patience` seconds (None: no limit); return whether there were any."""
        done, _ = await asyncio.wait(self._asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            question, _ = self._asked.pop(task)
            if (peer := task.result()) is not None:
                self._met[question.peer] = peer
            else:
                self.failed.append(question)
        return bool(done)
