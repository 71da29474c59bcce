"""Places for work of several takers: a few at once, a bounded number that waits, and the takers take turns.

`routing/admit/shares.py` decides whose turn it is and who makes room; here is the waiting, on an event loop, which
routing does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from ..routing.admit.shares import Turns

K = TypeVar("K", bound=Hashable)


class FairPlaces(Generic[K]):
    """Lets `at_once` run and `most_waiting` more wait; takers take turns, and of each the oldest is next.

    Where no more can wait, the taker with most of those that wait gives its youngest up to one that has fewer; others
    are refused.  Used on one loop only.
    """

    def __init__(self, at_once: int, most_waiting: int, refusal: Callable[[], Exception]) -> None:
        """`refusal` makes the error of a taker that gets no place, at that moment."""
        self.held = 0
        self._at_once = at_once
        self._most_waiting = most_waiting
        self._refusal = refusal
        self._turns: Turns[K, asyncio.Future[None]] = Turns()

    @property
    def waiting(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def place(self, taker: K) -> AsyncIterator[None]:
        """Hold a place during the block. Raises the refusal at once, or while waiting if another needs the room."""
        await self._enter(taker)
        try:
            yield
        finally:
            self._pass_on()

    async def _enter(self, taker: K) -> None:
        if self.held < self._at_once:  # then none waits
            self.held += 1
            self._turns.served(taker)
            return
        if self.waiting >= self._most_waiting:
            refusal = self._refusal()  # before room is made: it may tell how many wait
            surplus = self._turns.make_room(taker)
            if surplus is None:
                raise refusal
            if not surplus.done():  # its caller may be gone at the same moment
                surplus.set_exception(refusal)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.join(taker, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self._pass_on()  # the place was given together with the cancellation
            self._turns.leave(taker, turn)
            raise

    def _pass_on(self) -> None:
        """Give a place to the one whose turn it is."""
        while (turn := self._turns.next()) is not None:
            if not turn.done():
                turn.set_result(None)
                return
        self.held -= 1
