"""Sessions that wait for room: each is told its place, woken when it is admitted, and refused when its time is up.

The `SessionTable` makes all decisions; here are only the events and the deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from ...proto.errors import OutOfMemory, PeerBusy, RemoteProtocolError, SessionLost, SwarmError
from ...proto.wire.handshake import Grant
from ...routing.admit.table import (
    AdmissionError,
    AlreadyOpen,
    NeverFits,
    NoRoomNow,
    Reservation,
    SessionTable,
)
from ..timing import PeerTiming

Tell = Callable[[int, float], Awaitable[None]]
"""Tells a client its place (1: the next one) and the estimate in seconds."""


class _Waiter:
    """One waiting session; `changed` is set whenever another field was."""

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.changed = asyncio.Event()
        self.admitted = False
        self.error: SwarmError | None = None
        self.news: tuple[int, float] | None = None
        self.told_place = 0
        self.told_at = 0.0

    def refuse(self, error: SwarmError) -> None:
        self.error = error
        self.changed.set()


class Admission:
    """Admits sessions. For one event loop."""

    def __init__(
        self,
        table: SessionTable,
        clock: Callable[[], float],
        on_admitted: Callable[[float], None],
        timing: PeerTiming,
    ) -> None:
        """`clock` gives Unix seconds; `on_admitted` is told how many seconds an admitted session has waited."""
        self._timing = timing
        self._on_admitted = on_admitted
        self._table = table
        self._clock = clock
        self._waiters: dict[bytes, _Waiter] = {}
        self._news: asyncio.TimerHandle | None = None
        self._news_at = -timing.news_seconds

    @property
    def waiting(self) -> int:
        """The number of sessions that wait for admission."""
        return len(self._waiters)

    @asynccontextmanager
    async def room(self, grant: Grant, wait_seconds: float, tell: Tell) -> AsyncIterator[None]:
        """Hold the reservation of a session, after waiting for it at most `wait_seconds` (0: at once or not at all).

        Raises PeerBusy with the time after which to come back, OutOfMemory if it never fits, RemoteProtocolError if the
        session is open already, the error of `refuse` or `refuse_waiting`, SessionLost if the client takes no frames.
        """
        came_at = self._clock()
        if wait_seconds > 0:
            await self._wait(grant, wait_seconds, tell)
        else:
            with _translated():
                self._table.admit(_reservation(grant), came_at)
        self._on_admitted(max(0.0, self._clock() - came_at))
        try:
            yield
        finally:
            self._wake(self._table.release(grant.key, self._clock()))

    def refuse_waiting(self, error: SwarmError, where: Callable[[Grant], bool] = lambda grant: True) -> None:
        """Refuse the waiting sessions: all, or those whose grant satisfies `where`."""
        for waiter in self._waiters.values():
            if where(waiter.grant):
                waiter.refuse(error)

    def refuse(self, key: bytes, error: SwarmError) -> None:
        """Refuse one session, if it waits."""
        waiter = self._waiters.get(key)
        if waiter is not None:
            waiter.refuse(error)

    def resize(self, kv_token_blocks: int) -> None:
        """Offer another amount of room: admit the waiting sessions that fit now, refuse those that never will."""
        self._wake(self._table.resize(kv_token_blocks, self._clock()))
        for session_id, error in self._table.hopeless().items():
            self._waiters[session_id].refuse(protocol_error(error))

    async def _wait(self, grant: Grant, wait_seconds: float, tell: Tell) -> None:
        session_id, table = grant.key, self._table
        with _translated():
            if table.join(_reservation(grant), self._clock()):
                return
        waiter = self._waiters[session_id] = _Waiter(grant)
        self._news_soon()
        try:
            await self._until_admitted(waiter, grant, wait_seconds, tell)
        except BaseException:
            leave = table.release if waiter.admitted else table.leave
            self._wake(leave(session_id, self._clock()))
            raise
        finally:
            del self._waiters[session_id]

    async def _until_admitted(self, waiter: _Waiter, grant: Grant, wait_seconds: float, tell: Tell) -> None:
        deadline = asyncio.get_running_loop().time() + min(wait_seconds, self._timing.max_wait_seconds)
        while not waiter.admitted:
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter.changed.wait()
            except TimeoutError:
                if waiter.admitted:
                    return
                raise self._too_long(grant, wait_seconds) from None
            waiter.changed.clear()
            if waiter.error is not None:
                raise waiter.error
            if waiter.news is not None and not waiter.admitted:
                news, waiter.news = waiter.news, None
                await self._tell_in_time(tell, *news)

    def _too_long(self, grant: Grant, wait_seconds: float) -> PeerBusy:
        self._table.refusals += 1
        left = max(self._timing.admission.min_retry_seconds, self._table.start_seconds(grant.key, self._clock()))
        return PeerBusy(left, f"there was no room within {wait_seconds:.0f} s, come back in {left:.0f} s")

    def _wake(self, admitted: Iterable[bytes]) -> None:
        for session_id in admitted:
            waiter = self._waiters[session_id]
            waiter.admitted = True
            waiter.changed.set()
        self._news_soon()

    # --- telling the places ---

    def _news_soon(self) -> None:
        if self._waiters and self._news is None:
            loop = asyncio.get_running_loop()
            self._news = loop.call_at(max(loop.time(), self._news_at + self._timing.news_seconds), self._spread_news)

    def _spread_news(self) -> None:
        """Set the news for every waiting session that should hear some. O(n log n), at most once a second."""
        self._news = None
        now = self._news_at = asyncio.get_running_loop().time()
        pause = self._timing.news_seconds + self._timing.news_seconds_per_waiting * len(self._waiters)
        behind = False
        for session_id, place in self._table.places().items():
            waiter = self._waiters[session_id]
            if place == waiter.told_place:
                continue
            if waiter.told_place and now - waiter.told_at < pause:
                behind = True
                continue
            waiter.told_place, waiter.told_at = place, now
            waiter.news = place, self._table.start_seconds(session_id, self._clock())
            waiter.changed.set()
        if behind:
            self._news_soon()

    async def _tell_in_time(self, tell: Tell, place: int, estimate_seconds: float) -> None:
        try:
            async with asyncio.timeout(self._timing.tell_seconds):
                await tell(place, estimate_seconds)
        except TimeoutError:
            raise SessionLost("the client takes no frames") from None


# --- from the protocol's values to the table's, and back ---


def _reservation(grant: Grant) -> Reservation:
    num_blocks = len(grant.blocks)
    return Reservation(grant.key, grant.client, grant.kv_tokens, num_blocks, grant.prompt_tokens, grant.max_rows)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the protocol's errors where the table raises its own."""
    try:
        yield
    except AdmissionError as error:
        raise protocol_error(error) from None


def protocol_error(error: AdmissionError) -> SwarmError:
    """The error that tells the client why it gets no room."""
    match error:
        case NoRoomNow():
            return PeerBusy(error.retry_after_seconds, str(error))
        case NeverFits():
            hint = "Ask for a shorter max_length or fewer rows, or use a peer with more memory."
            return OutOfMemory(str(error), hint=hint)
        case AlreadyOpen():
            return RemoteProtocolError(str(error))
    raise AssertionError(f"{type(error).__name__} has no protocol error") from error
