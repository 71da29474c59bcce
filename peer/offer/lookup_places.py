"""Places for look-ups in the directory: a few at once, a bounded number that waits, shared between networks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ...proto.errors import PeerBusy
from ...routing.admit.shares import Turns


class LookupPlaces:
    """Lets `at_once` look-ups run and `waiting` more wait; networks take turns, and within each the oldest is next.

    Where no more can wait, the network with most of those that wait gives its youngest up, and it is refused.
    """

    def __init__(self, at_once: int, waiting: int, retry_seconds: float) -> None:
        """`retry_seconds`: when a refused look-up may come back."""
        self._retry_seconds = retry_seconds
        self._free = at_once
        self._most_waiting = waiting
        self._turns: Turns[str, asyncio.Future[None]] = Turns()

    @property
    def waiting(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def place(self, network: str) -> AsyncIterator[None]:
        """Hold a place within the block. Raises PeerBusy at once, or while waiting if others need the room."""
        await self._enter(network)
        try:
            yield
        finally:
            self._pass_on()

    async def _enter(self, network: str) -> None:
        if self._free:  # then none waits
            self._free -= 1
            self._turns.served(network)
            return
        if self.waiting >= self._most_waiting:
            surplus = self._turns.make_room(network)
            if surplus is None:
                raise self._busy()
            if not surplus.done():  # its caller may be gone at the same moment
                surplus.set_exception(self._busy())
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.join(network, mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled() and mine.exception() is None:
                self._pass_on()  # the place came at the same moment
            self._turns.leave(network, mine)
            raise

    def _pass_on(self) -> None:
        while (first := self._turns.next()) is not None:
            if not first.done():
                first.set_result(None)
                return
        self._free += 1

    def _busy(self) -> PeerBusy:
        return PeerBusy(self._retry_seconds, "this peer has too many look-ups of other models: try again")
