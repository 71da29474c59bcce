"""Meets the peers whose records were found: pings them in the order of `LookOrder`, within the time of a look."""

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
"""Finds peers that are near a place; nobody if that fails."""

MAX_ASKED_AT_ONCE = 64
RTT_SMOOTHING = 0.3


class Meetings:
    """Asks peers, and remembers from look to look what came of it."""

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
        """`most_pings`: answers with which a look is content, if there is a peer for every block, of those that are
        `allowed`.
        """
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
        """The peers of `found` that answer; `known` are those of the last look.

        Where `found` are only some of many, `closer` finds more of them once the place of this client is known.

        Peers are asked for the time of a look, and only some where there are many (`place.py`); a known one whose turn
        does not come counts as it is known, another one is not met. While blocks are missing the silent ones are asked
        by their other ways, too.
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
        """Whether a peer was asked in some look and has not answered since."""
        return self._order.was_silent(peer)

    def worth_another_look(self, found: Mapping[PeerId, Found], known: Mapping[PeerId, KnownPeer]) -> bool:
        """Whether blocks are missing that a peer may have which was not asked yet."""
        return self.missing(known.values()) and self._order.has_untried(found, known)

    def missing(self, known: Iterable[KnownPeer]) -> bool:
        """Whether no peer of these serves some of the blocks."""
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
        """Whether blocks are missing; those that were known before count until they are found to be silent."""
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
        """Ask all, or, where these are many, those that are most worth it; and more while blocks are missing.

        Puts those that answer into `met`, and those that `closer` finds into `found`; returns the others that were
        asked.
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
        """Ask all of these and put those that answer into `met`; the others that were asked are returned."""
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
        """At the end of the block all that were asked have answered, or are silent."""

        def meet(question: Question) -> Coroutine[Any, Any, KnownPeer | None]:
            return self._meet(question, found[question.peer], known.get(question.peer))

        asking = _Asking(deque(questions), met, meet, begin_until, self._timing.look_patience_seconds)
        try:
            yield asking
            await asking.finish()
        finally:
            await asking.close()

    async def _meet(self, question: Question, found: Found, old: KnownPeer | None) -> KnownPeer | None:
        """Ping a peer by one of its ways; None if it does not answer."""
        way, timeout = question.way, self._timing.ping_seconds
        stub = self._dialer.stub(way)
        try:
            try:
                async with asyncio.timeout(timeout):
                    with blamed_on(way):
                        status, rtt, offset = await ping(stub, way, timeout, self._monotonic)
                        if old is None or old.address != way:  # the first ping also paid for the connection
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
            # The shortest round trip tells most about the way and the clock; noise only makes it longer.
            rtt, offset = old.rtt_seconds + RTT_SMOOTHING * (rtt - old.rtt_seconds), old.clock_offset_seconds
        others = tuple(other for other in found.ways if other != way)
        return KnownPeer(found.record, found.encoded, way, rtt, offset, status, others)


class _Asking:
    """Asks a number of peers at a time, in order."""

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
        """The silent ones."""
        self._met = met
        self._meet = meet
        self._begin_until = begin_until
        self._patience_seconds = patience_seconds
        self._loop = asyncio.get_running_loop()
        self._asked: dict[asyncio.Task[KnownPeer | None], tuple[Question, float]] = {}

    @property
    def goes_on(self) -> bool:
        """Whether there is somebody to ask, and time."""
        return bool(self.waiting) and self._loop.time() < self._begin_until

    async def until(self, enough: float, spare: int = 0) -> None:
        """Ask until `enough` have been met, or nobody is left to wait for; `spare` more than it takes."""
        eagerness = 1  # twice as many each time that nobody answers: among many silent ones the others are rare
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
        """Wait for all that were asked."""
        while self._asked:
            await self._wait(None)

    async def close(self) -> None:
        """Ask nobody any more."""
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)

    async def _wait(self, patience: float | None) -> bool:
        """Whether any of those that were asked is over."""
        done, _ = await asyncio.wait(self._asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            question, _ = self._asked.pop(task)
            if (peer := task.result()) is not None:
                self._met[question.peer] = peer
            else:
                self.failed.append(question)
        return bool(done)
