"""Keeps this peer's signed record in the directory fresh."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from ...proto.directory.directory import Directory
from ...proto.directory.records import PeerRecord, sign_peer_record
from ...proto.directory.signed import SignedRecord, next_expiry
from ...proto.directory.swarm_key import SwarmKey
from ...proto.errors import SwarmError
from ...proto.identity import Identity
from ...routing.swarm import PeerState
from ..timing import PeerTiming

logger = logging.getLogger(__name__)


class Announcer:
    """Announces `make_record(state, issued_seconds)` every 20 s, and at once when something important changes."""

    def __init__(
        self,
        directory: Directory,
        identity: Identity,
        swarm_key: SwarmKey | None,
        clock: Callable[[], float],
        rng: random.Random,
        on_record: Callable[[SignedRecord], None],
        timing: PeerTiming,
    ) -> None:
        """`clock` gives Unix seconds; `on_record` is given every record, even one that reaches nobody else.

        The owner sets `make_record` before anything is announced, and again when another part of the program speaks
        for the peer.
        """
        self.make_record: Callable[[PeerState, float], PeerRecord] = _nobody_speaks
        self._timing = timing
        self._on_record = on_record
        self._announced_at = asyncio.get_running_loop().time()
        self._directory = directory
        self._identity = identity
        self._swarm_key = swarm_key
        self._clock = clock
        self._rng = rng
        self._state = PeerState.JOINING
        self._expiry: float | None = None
        self._turn = asyncio.Lock()

    @property
    def state(self) -> PeerState:
        """The state of the latest announcement, whether it succeeded or not."""
        return self._state

    @property
    def seconds_since_announced(self) -> float:
        """Time since another node last took a record, or since the start."""
        return asyncio.get_running_loop().time() - self._announced_at

    async def change(self, state: PeerState) -> None:
        """Announce a new state now. Raises SwarmError if it reached nobody."""
        self._state = state
        await self._announce()

    async def renew(self) -> None:
        """Announce the record as it is now; a failure is logged and tried again at the next turn."""
        try:
            await self._announce()
        except SwarmError as error:
            again = self._timing.record_refresh_seconds
            logger.warning("announcing failed (%s), trying again in about %.0f s", error, again)

    async def say_goodbye(self, state: PeerState = PeerState.LEAVING) -> None:
        """Announce that the peer drains or leaves; a failure is only logged, because the record expires by itself.

        Does nothing for a peer that has announced nothing, or has left.
        """
        if self._expiry is None or self._state is PeerState.LEAVING:
            return
        try:
            async with asyncio.timeout(self._timing.goodbye_seconds):
                await self.change(state)
        except (SwarmError, TimeoutError) as error:
            logger.info("could not announce %s: %s", state.value, error)

    async def run(self) -> None:
        """Renew the record about every 20 s until cancelled."""
        refresh, jitter = self._timing.record_refresh_seconds, self._timing.record_refresh_jitter
        while True:
            await asyncio.sleep(refresh * self._rng.uniform(1 - jitter, 1 + jitter))
            await self.renew()

    async def _announce(self) -> None:
        async with self._turn:  # of two records sent at once, the later could arrive first, and the other be refused
            await self._announce_alone()

    async def _announce_alone(self) -> None:
        now = self._clock()
        self._expiry = next_expiry(self._expiry, now)
        record = sign_peer_record(self._identity, self.make_record(self._state, now), self._swarm_key, self._expiry)
        self._on_record(record)
        await self._directory.announce(record)
        self._announced_at = asyncio.get_running_loop().time()


def _nobody_speaks(state: PeerState, issued_seconds: float) -> PeerRecord:
    raise RuntimeError("nobody has said what this peer announces")
