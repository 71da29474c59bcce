"""The records of a model's peers from a recent look, for clients that ask and for the peer itself."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...proto.directory.directory import Directory
from ...proto.directory.records import open_peer_record
from ...proto.directory.signed import SignedRecord, newest_per_peer
from ...proto.directory.swarm_key import SwarmKey, swarm_key_name
from ...proto.errors import PeerBusy, SwarmError
from ...proto.fair_places import FairPlaces
from ...proto.wire.messages.limits import MAX_RECORDS_PER_KEY
from ...routing.nearby import Asker
from ...routing.swarm import PeerId
from ..tasks import cancel_all
from ..timing import PeerTiming
from .nearest import NearestHosts

logger = logging.getLogger(__name__)

MAX_LOOKUPS_AT_ONCE = 4
"""The most look-ups of other names that wait for the directory at once."""
MAX_LOOKUPS_WAITING = 64
"""The most that wait for one of these to end."""


class Answer(NamedTuple):
    """Records, the most useful to the asking node first."""

    records: Sequence[SignedRecord]
    known: int
    """The number of all records found, not only of those in the answer."""


class _Known(NamedTuple):
    """The valid records, the look and the own record that they were made of, and when the first of them expires."""

    records: tuple[SignedRecord, ...]
    of: tuple[SignedRecord, ...]
    own: SignedRecord | None
    until: float


class RecentLookups:
    """Answers look-ups of one model's peers from a recent look; other names directly.

    A look that is older than two seconds is renewed, but a caller waits only briefly for the new one while the old one
    will do: when a DHT node hangs, a search takes many seconds. The peer's own record is always the newest. Ages are by
    the event loop's clock, which is monotonic. Must be closed.
    """

    def __init__(
        self,
        directory: Directory,
        model_digest: str,
        swarm_key: SwarmKey | None,
        clock: Callable[[], float],
        timing: PeerTiming,
        rng: random.Random | None = None,
        num_blocks: int = 0,
    ) -> None:
        """`num_blocks` of the model; with 0, no hosts can be preferred in answers."""
        self._timing = timing
        self._nearest = NearestHosts(num_blocks, swarm_key)
        self._rng = rng or random.Random()
        self._directory = directory
        self._name = swarm_key_name(model_digest, swarm_key)
        self._swarm_key = swarm_key
        self._clock = clock
        self._records: tuple[SignedRecord, ...] = ()
        self._made = _Known((), (), None, float("-inf"))
        self._own: SignedRecord | None = None
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[SwarmError | None] | None = None
        self._places: FairPlaces[str] = FairPlaces(
            MAX_LOOKUPS_AT_ONCE,
            MAX_LOOKUPS_WAITING,
            lambda: PeerBusy(timing.lookup_retry_seconds, "this peer has too many look-ups of other models: try again"),
        )

    async def records(self) -> tuple[SignedRecord, ...]:
        """Return the verified records of this model's peers. Raises SwarmError if a needed look fails."""
        age = asyncio.get_running_loop().time() - self._looked_at
        if age > self._timing.lookup_max_age_seconds and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look(), name="look up peers")
        # A look is shared: a cancelled caller does not end it, and all callers that need it hear of its failure.
        if self._looking is not None and age > self._timing.lookup_stale_seconds:
            await asyncio.wait([self._looking])
            if (error := self._looking.result()) is not None:
                raise error
        elif self._looking is not None:
            await asyncio.wait([self._looking], timeout=self._timing.lookup_patience_seconds)
        return self._known()

    @property
    def last_records(self) -> tuple[SignedRecord, ...]:
        """The records of the last look, even expired ones: they tell where the others were."""
        return self._records

    def addresses_of(self, peer: PeerId) -> Sequence[str]:
        """The addresses that a peer announces, by the last look; none if it announces none or is not known."""
        for record in self._known():
            if record.peer_id == peer:
                try:
                    return open_peer_record(record, self._swarm_key).addresses
                except SwarmError as error:
                    logger.debug("a record is ignored: %s", error)
        return ()

    def announced(self, own: SignedRecord) -> None:
        """Take this peer's newest record."""
        self._own = own

    async def lookup(
        self, name: str, network: str, asker: Asker | None = None, most: int = MAX_RECORDS_PER_KEY
    ) -> Answer:
        """Look up at most `most` records under a name, ordered for an answer that may not hold them all.

        This peer's own record comes first, then the others in random order: nobody can choose ids that crowd others
        out. For an `asker`, those that are best for it come earlier (`nearest.py`). Raises SwarmError if looking fails;
        for this model's peers only if this one has announced nothing: otherwise the last known ones are returned.
        Look-ups of other names share the directory between the networks that they come from; PeerBusy if too many wait.
        """
        if name == self._name:
            try:
                found = await self.records()
            except SwarmError:
                if self._own is None:
                    raise
                found = self._known()
        else:
            async with self._places.place(network):
                found = await self._directory.lookup(name)
        own = self._own.peer_id if self._own is not None else None
        first = [record for record in found if record.peer_id == own]
        if asker is not None and name == self._name:
            others = self._nearest.choose(found, asker, most, self._rng)
        else:
            others = self._rng.sample(found, min(most, len(found)))
        told = (*first, *(record for record in others if record.peer_id != own))
        return Answer(told[:most], len(found))

    async def close(self) -> None:
        """Cancel a look that is under way."""
        if self._looking is not None:
            await cancel_all([self._looking])

    async def _look(self) -> SwarmError | None:
        """Look again; return the error if that failed."""
        try:
            found = await self._directory.lookup(self._name)
        except SwarmError as error:
            logger.debug("looking up peers failed: %s", error)
            return error
        # An isolated node finds only what it stores itself: less than was seen before.
        records = newest_per_peer((*self._records, *found)) if self._directory.isolated else found
        await self._nearest.read(records)
        self._records = records
        self._looked_at = asyncio.get_running_loop().time()
        return None

    def _known(self) -> tuple[SignedRecord, ...]:
        """The unexpired records of the last look, and this peer's own; the same tuple object until they change."""
        now, own, made = self._clock(), self._own, self._made
        if made.of is self._records and made.own is own and now < made.until:
            return made.records
        known = self._records
        if own is not None:
            known = (*(record for record in known if record.peer_id != own.peer_id), own)
        valid = tuple(record for record in known if record.expires_at_seconds > now)
        until = min((record.expires_at_seconds for record in valid), default=float("inf"))
        self._made = _Known(valid, self._records, own, until)
        return valid
