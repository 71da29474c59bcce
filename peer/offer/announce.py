"""Keeps this peer's signed record in the directory fresh, and a recent look at the others' for those who ask."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from ...proto.directory.directory import Directory
from ...proto.directory.records import PeerRecord, sign_peer_record
from ...proto.directory.signed import SignedRecord, next_expiry
from ...proto.directory.swarm_key import SwarmKey, swarm_key_name
from ...proto.errors import SwarmError
from ...proto.identity import Identity
from ...routing.swarm import PeerState

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 20.0
JITTER = 0.2
"""Peers that start together must not announce together for ever."""
LOOKUP_MAX_AGE_SECONDS = 2.0
LOOKUP_STALE_SECONDS = 45.0
LOOKUP_PATIENCE_SECONDS = 0.5
MAX_LOOKUPS_AT_ONCE = 4


class Announcer:
    """Announces `make_record(state)` every 20 s, and at once when the state changes."""

    def __init__(
        self,
        directory: Directory,
        identity: Identity,
        swarm_key: SwarmKey | None,
        make_record: Callable[[PeerState], PeerRecord],
        clock: Callable[[], float],
        rng: random.Random,
        on_announced: Callable[[SignedRecord], None],
    ) -> None:
        """`on_announced` is given every record that was announced."""
        self._on_announced = on_announced
        self._directory = directory
        self._identity = identity
        self._swarm_key = swarm_key
        self._make_record = make_record
        self._clock = clock
        self._rng = rng
        self._state = PeerState.JOINING
        self._expiry: float | None = None

    async def change(self, state: PeerState) -> None:
        """Announce a new state now. Raises SwarmError if it reached nobody."""
        self._state = state
        await self._announce()

    async def renew(self) -> None:
        """Announce the record as it is now; a failure is logged and tried again at the next turn."""
        try:
            await self._announce()
        except SwarmError as error:
            logger.warning("announcing failed (%s), trying again in about %.0f s", error, REFRESH_SECONDS)

    async def run(self) -> None:
        """Renew the record about every 20 s until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS * self._rng.uniform(1 - JITTER, 1 + JITTER))
            await self.renew()

    async def _announce(self) -> None:
        self._expiry = next_expiry(self._expiry, self._clock())
        record = sign_peer_record(self._identity, self._make_record(self._state), self._swarm_key, self._expiry)
        await self._directory.announce(record)
        self._on_announced(record)


class RecentLookups:
    """Answers look-ups of one model's peers from a recent look; other names directly.

    A look that is older than two seconds is renewed, but nobody waits for the new one while the old one will do: when a
    node of the DHT hangs, a search takes many seconds. The peer's own record is always the newest.
    """

    def __init__(
        self, directory: Directory, model_digest: str, swarm_key: SwarmKey | None, clock: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._name = swarm_key_name(model_digest, swarm_key)
        self._clock = clock
        self._records: tuple[SignedRecord, ...] = ()
        self._own: SignedRecord | None = None
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._limit = asyncio.Semaphore(MAX_LOOKUPS_AT_ONCE)

    async def records(self) -> tuple[SignedRecord, ...]:
        """The verified records of this model's peers. Raises SwarmError if a needed look fails."""
        age = self._clock() - self._looked_at
        if age > LOOKUP_MAX_AGE_SECONDS and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look(), name="look up peers")
            self._looking.add_done_callback(_retrieve)
        if self._looking is not None and age > LOOKUP_STALE_SECONDS:
            await asyncio.shield(self._looking)
        elif self._looking is not None:
            await asyncio.wait([self._looking], timeout=LOOKUP_PATIENCE_SECONDS)
        now, own = self._clock(), self._own
        known = self._records
        if own is not None:
            known = (*(record for record in known if record.peer_id != own.peer_id), own)
        return tuple(record for record in known if record.expires_at_seconds > now)

    def announced(self, own: SignedRecord) -> None:
        """Take this peer's newest record."""
        self._own = own

    async def lookup(self, name: str) -> list[bytes]:
        """The encoded records under a name."""
        if name == self._name:
            found = await self.records()
        else:
            async with self._limit:
                found = await self._directory.lookup(name)
        return [record.encode() for record in found]

    async def _look(self) -> None:
        self._records = await self._directory.lookup(self._name)
        self._looked_at = self._clock()


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.debug("looking up peers failed: %s", task.exception())
