"""Admission: how many sessions a peer holds, how much attention cache they may use, and who waits for room.

The cache is counted in tokens x blocks and reserved when a session opens, for its declared maximum: a session that was
admitted never runs out half-way.  Where there is no room a session is refused, or waits in a queue that is served
strictly in order (admission_queue.py); nobody overtakes it.  No I/O here, time comes in as Unix seconds; who waits is
woken by admission.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...proto.directory.records import MAX_RELEASES
from ...proto.errors import OutOfMemory, PeerBusy, RemoteProtocolError
from ...proto.wire.handshake import Grant
from ...routing.swarm import KvRelease
from ..offer.forecast import Average, Need, Pace, Room, TimeAverage, serve_in_order
from .queue import AdmissionQueue, Ticket

MAX_SESSIONS = 256
MIN_RETRY_SECONDS = 1.0
FORECAST_SECONDS = 1.0
"""A forecast is used for so long: thousands who ask cost no more than a few."""
UNKNOWN_TOKEN_SECONDS = 0.05
"""Time of a token before anything was measured."""
CONCURRENCY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected, as of `at_seconds`."""

    at_seconds: float
    starts: Mapping[bytes, float]
    """When each waiting session is admitted."""
    newcomer: Room
    """What somebody who joins now can have."""


@dataclass(slots=True)
class _Held:
    need: int
    kv_tokens: int
    since: float
    pace: Pace
    ticket: Ticket | None
    """Of a session that had joined the queue."""
    used: bool = False


class SessionTable:
    """The reservations of a peer: at most `max_sessions`, together at most `kv_token_blocks`; and its queue."""

    def __init__(
        self,
        kv_token_blocks: int,
        max_sessions: int = MAX_SESSIONS,
        token_seconds: float = UNKNOWN_TOKEN_SECONDS,
        queue: AdmissionQueue | None = None,
    ) -> None:
        """`token_seconds`: what one token takes on this peer, until sessions show how long it takes on their chains."""
        if kv_token_blocks < 1 or max_sessions < 1:
            raise ValueError("a peer offers room for at least one token and one session")
        self.kv_token_blocks_total = kv_token_blocks
        self.kv_token_blocks_free = kv_token_blocks
        self.admissions = 0
        """Sessions that were given room."""
        self.refusals = 0
        """Sessions that were refused for want of room."""
        self._max_sessions = max_sessions
        self._queue = AdmissionQueue() if queue is None else queue
        self._held: dict[bytes, _Held] = {}
        self._waiting: dict[bytes, tuple[Ticket, Grant]] = {}
        self._token_seconds = Average(token_seconds)
        """How long a session holds a token of its reservation, from those that have ended."""
        self._concurrency: TimeAverage | None = None
        self._forecast: Forecast | None = None

    @property
    def sessions(self) -> int:
        """Sessions that hold a reservation."""
        return len(self._held)

    @property
    def waiting(self) -> int:
        """Sessions in the queue."""
        return len(self._queue)

    def is_open(self, session_id: bytes) -> bool:
        """Whether the session holds a reservation or waits for one."""
        return session_id in self._held or session_id in self._waiting

    # --- taking and giving back ---

    def admit(self, grant: Grant, now: float) -> None:
        """Take a reservation at once.

        Raises PeerBusy if it does not fit now or others wait for room, OutOfMemory if it never will,
        RemoteProtocolError if the session is open already.
        """
        self._check(grant)
        if self._queue or not self._fits(grant):
            self.refusals += 1
            others = f", {len(self._queue)} sessions wait for room" if self._queue else ""
            raise PeerBusy(
                self.retry_seconds(grant, now),
                f"the session needs {_need(grant)} KV tokens x blocks, {self.kv_token_blocks_free} are free now"
                f" with {len(self._held)} of {self._max_sessions} sessions open{others}",
            )
        self._hold(grant, None, now)

    def join(self, grant: Grant, now: float) -> bool:
        """Take a reservation, or a place in the queue; whether it was admitted at once.

        Raises PeerBusy if the queue is full, OutOfMemory and RemoteProtocolError as `admit`.
        """
        self._check(grant)
        if self._queue.is_full_for(grant.client):
            self.refusals += 1
            raise PeerBusy(self.retry_seconds(grant, now), f"{len(self._queue)} sessions wait for room already")
        ticket = self._queue.join(grant.client, grant.session_id, now)
        self._waiting[grant.session_id] = ticket, grant
        admitted = self._admit_waiting(now)
        assert admitted in ((), (grant.session_id,)), "nobody else can go on because somebody came"
        return bool(admitted)

    def leave(self, session_id: bytes, now: float) -> tuple[bytes, ...]:
        """A session waits no longer. Returns those that are admitted now: it may have been the head."""
        ticket, _ = self._waiting.pop(session_id)
        self._queue.leave(ticket, now)
        return self._admit_waiting(now)

    def release(self, session_id: bytes, now: float) -> tuple[bytes, ...]:
        """A session gives its reservation back. Returns those that are admitted in its place, in order."""
        held = self._held.pop(session_id)
        self.kv_token_blocks_free += held.need
        self._count_sessions(now)
        if held.used:
            self._token_seconds = self._token_seconds.after(max(0.0, now - held.since) / held.kv_tokens)
        admitted = self._admit_waiting(now)
        if held.ticket is not None and not held.used:
            self._queue.give_back(held.ticket, now)
        return admitted

    def note_step(self, session_id: bytes, tokens: int, rows: int, now: float) -> None:
        """A step has left the session with `tokens` tokens in `rows` rows."""
        held = self._held.get(session_id)
        if held is not None:
            held.used = True
            held.pace = held.pace.after(tokens, rows, now)

    def _check(self, grant: Grant) -> None:
        need = _need(grant)
        if need > self.kv_token_blocks_total:
            raise OutOfMemory(
                f"the session reserves {need} KV tokens x blocks, the peer has {self.kv_token_blocks_total} in all",
                hint="Ask for a shorter max_length or fewer rows, or use a peer with more memory.",
            )
        if self.is_open(grant.session_id):
            raise RemoteProtocolError("the session is open on this peer already")

    def _fits(self, grant: Grant) -> bool:
        return _need(grant) <= self.kv_token_blocks_free and len(self._held) < self._max_sessions

    def _hold(self, grant: Grant, ticket: Ticket | None, now: float) -> None:
        need = _need(grant)
        pace = Pace(Average(self._token_seconds.value), now)
        self._held[grant.session_id] = _Held(need, grant.kv_tokens, now, pace, ticket)
        self.kv_token_blocks_free -= need
        self.admissions += 1
        self._count_sessions(now)

    def _admit_waiting(self, now: float) -> tuple[bytes, ...]:
        admitted = []
        while self._queue:
            session_id = self._queue.head.session_id
            ticket, grant = self._waiting[session_id]
            if not self._fits(grant):
                break
            del self._waiting[session_id]
            self._queue.admit_head()
            self._hold(grant, ticket, now)
            admitted.append(session_id)
        return tuple(admitted)

    # --- looking ahead ---

    def concurrency(self, now: float) -> float:
        """Open sessions, averaged over the last ten minutes."""
        return self._concurrency.mean(now) if self._concurrency is not None else 0.0

    def releases(self, now: float) -> tuple[KvRelease, ...]:
        """When somebody who joins now can have room beyond `kv_token_blocks_open`, ascending in time and bounded.

        Those who wait are served first, so this begins where their admissions end. O(n log n), always made anew.
        """
        return self._look_ahead(now).newcomer.releases

    @property
    def kv_token_blocks_open(self) -> int:
        """Room that somebody who comes now can have at once: nothing while others wait."""
        return 0 if self._queue or len(self._held) >= self._max_sessions else self.kv_token_blocks_free

    def forecast(self, now: float) -> Forecast:
        """What is expected, at most `FORECAST_SECONDS` old and for about as many as wait now.

        O(n log n) for n sessions open and waiting where it is made anew, which thousands who come at once do not cause.
        """
        made = self._forecast
        if made is not None and 0 <= now - made.at_seconds < FORECAST_SECONDS:
            before = len(made.starts)
            if abs(len(self._queue) - before) <= before // 8:
                return made
        self._forecast = self._look_ahead(now)
        return self._forecast

    def places(self) -> dict[bytes, int]:
        """Each waiting session's place; 1 is the next one."""
        return {ticket.session_id: place for place, ticket in enumerate(self._queue, start=1)}

    def start_seconds(self, session_id: bytes, now: float) -> float:
        """Seconds until a waiting session is admitted, as far as is known."""
        forecast = self.forecast(now)
        start = forecast.starts.get(session_id)
        if start is None:  # it came after the forecast was made
            return self._newcomer_wait(forecast, self._waiting[session_id][1], now)
        return max(0.0, start - now)

    def retry_seconds(self, grant: Grant, now: float) -> float:
        """When a session that is refused now should come again."""
        return max(MIN_RETRY_SECONDS, self._newcomer_wait(self.forecast(now), grant, now))

    def _newcomer_wait(self, forecast: Forecast, grant: Grant, now: float) -> float:
        wait = forecast.newcomer.wait_seconds(_need(grant), now)
        return wait if math.isfinite(wait) else grant.kv_tokens * self._token_seconds.value

    def _look_ahead(self, now: float) -> Forecast:
        ends = [KvRelease(held.pace.end_seconds(held.kv_tokens, now), held.need) for held in self._held.values()]
        order = [ticket.session_id for ticket in self._queue]
        grants = [self._waiting[session_id][1] for session_id in order]
        needs = [Need(_need(grant), grant.kv_tokens * self._token_seconds.value) for grant in grants]
        places = self._max_sessions - len(self._held)
        schedule = serve_in_order(now, self.kv_token_blocks_free, places, ends, needs, MAX_RELEASES)
        return Forecast(now, dict(zip(order, schedule.starts, strict=True)), schedule.rest)

    def _count_sessions(self, now: float) -> None:
        if self._concurrency is None:
            self._concurrency = TimeAverage(CONCURRENCY_SECONDS, now)
        self._concurrency = self._concurrency.after(len(self._held), now)


def _need(grant: Grant) -> int:
    """Tokens x blocks."""
    return grant.kv_tokens * len(grant.blocks)
