"""Admission: how many sessions a peer holds, how much attention cache they may use, and which of them wait for room.

The cache is counted in tokens x blocks and reserved when a session opens, for its declared maximum: an admitted session
never runs out half-way.  If there is no room, a session is refused, or waits in a queue that is served strictly in
order (queue.py); no session overtakes the head.  But while other clients wait, a client gets no more than its share of
the room: its further sessions come after theirs, however early they joined.  A single session may exceed the share.  No
I/O here: time comes in as Unix seconds, and the caller wakes the sessions that a method returns as admitted.

    AdmissionError      the session gets no room
      NoRoomNow         not now; `retry_after_seconds` says when to come back
      NeverFits         never: the reservation is larger than the peer's total room
      AlreadyOpen       the session holds or awaits a reservation here
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ..releases import MAX_RELEASES, Room
from ..swarm import KvRelease, PeerId
from ..timing import MAX_FORECAST_SECONDS, AdmissionTiming
from .forecast import Average, Demand, HoldTimes, Pace, TimeAverage, Turnover, serve_in_order
from .queue import AdmissionQueue, Ticket

MAX_SESSIONS = 256
CLIENT_SHARE = 0.5
"""The part of a peer's room, and of its sessions, that one client may hold while others wait."""


class AdmissionError(Exception):
    """A session gets no room; `str(error)` is one line."""


class NoRoomNow(AdmissionError):
    """There is no room now, or others wait for it; `retry_after_seconds` says when to come back."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NeverFits(AdmissionError):
    """The reservation is larger than the peer's total room."""


class AlreadyOpen(AdmissionError):
    """The session holds a reservation, or waits for one."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The room that a session requests: `kv_tokens` tokens in each of `num_blocks` blocks."""

    session_id: bytes
    client: PeerId
    kv_tokens: int
    """Tokens of all rows together, per block."""
    num_blocks: int
    prompt_tokens: int = 0
    """The part of `kv_tokens` that is the prompt; 0: not stated."""
    max_rows: int = 1

    @property
    def room(self) -> int:
        """KV tokens x blocks."""
        return self.kv_tokens * self.num_blocks


@dataclass(frozen=True, slots=True)
class QueueForecast:
    """The starts of the waiting sessions, and the room that a newcomer can have, as of `at_seconds`."""

    at_seconds: float
    starts: Mapping[bytes, float]
    """When each waiting session is admitted."""
    newcomer: Room


@dataclass(slots=True)
class _Held:
    reservation: Reservation
    since: float
    pace: Pace
    ticket: Ticket | None
    """The rank of a session that had joined the queue."""
    used: bool = False


class SessionTable:
    """The reservations of a peer: at most `max_sessions`, together at most `kv_token_blocks`; and its queue."""

    def __init__(
        self,
        kv_token_blocks: int,
        max_sessions: int = MAX_SESSIONS,
        token_seconds: float = 0.05,
        queue: AdmissionQueue | None = None,
        client_share: float = CLIENT_SHARE,
        timing: AdmissionTiming = AdmissionTiming(),  # noqa: B008  # a value
    ) -> None:
        """`token_seconds`: time of one token on this peer, used until sessions show the time on their chains."""
        if kv_token_blocks < 1 or max_sessions < 1:
            raise ValueError("a peer offers room for at least one token and one session")
        self.kv_token_blocks_total = kv_token_blocks
        self.kv_token_blocks_free = kv_token_blocks
        self.admissions = 0
        """Sessions that were given room."""
        self.refusals = 0
        """Sessions that were refused because there was no room."""
        self.forecasts_made = 0
        """How often the queue was simulated."""
        self._max_sessions = max_sessions
        self._queue = AdmissionQueue() if queue is None else queue
        self._client_share = client_share
        self._timing = timing
        self._held: dict[bytes, _Held] = {}
        self._room_of: Counter[PeerId] = Counter()
        """The room that each client holds."""
        self._sessions_of: Counter[PeerId] = Counter()
        self._waiting: dict[bytes, tuple[Ticket, Reservation]] = {}
        self._hold_times = HoldTimes.guessed(token_seconds)
        self._turnover = Turnover()
        self._concurrency: TimeAverage | None = None
        self._forecast: QueueForecast | None = None

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

    def admit(self, reservation: Reservation, now: float) -> None:
        """Admit a session at once.

        Raises NoRoomNow if its reservation does not fit now or others wait for room, NeverFits if it never will fit,
        and AlreadyOpen.
        """
        self._check(reservation)
        if self._queue or not self._fits(reservation):
            self.refusals += 1
            others = f", {len(self._queue)} sessions wait for room" if self._queue else ""
            raise NoRoomNow(
                f"the session needs {reservation.room} KV tokens x blocks, {self.kv_token_blocks_free} are free now"
                f" with {len(self._held)} of {self._max_sessions} sessions open{others}",
                self.retry_seconds(reservation, now),
            )
        self._queue.drop_rank(reservation.client, reservation.session_id)
        self._hold(reservation, None, now)

    def join(self, reservation: Reservation, now: float) -> bool:
        """Admit a session or put it into the queue; returns whether it was admitted at once.

        Raises NoRoomNow if the queue is full, and NeverFits and AlreadyOpen as `admit`.
        """
        self._check(reservation)
        if self._queue.is_full_for(reservation.client):
            self.refusals += 1
            raise NoRoomNow(f"{len(self._queue)} sessions wait for room already", self.retry_seconds(reservation, now))
        if not self._queue:
            self._turnover = Turnover(since=now)
        ticket = self._queue.join(reservation.client, reservation.session_id, now)
        self._waiting[reservation.session_id] = ticket, reservation
        admitted = self._admit_waiting(now)
        assert admitted in ((), (reservation.session_id,)), "an arrival lets no other session in"
        return bool(admitted)

    def leave(self, session_id: bytes, now: float) -> tuple[bytes, ...]:
        """Remove a session from the queue. Returns the sessions admitted now, since it may have been the head."""
        ticket, _ = self._waiting.pop(session_id)
        self._queue.leave(ticket, now)
        return self._admit_waiting(now)

    def release(self, session_id: bytes, now: float) -> tuple[bytes, ...]:
        """Free a session's reservation. Returns the sessions admitted in its place, in order."""
        held = self._held.pop(session_id)
        self._book(held.reservation, -1)
        self._count_sessions(now)
        if held.used:
            self._hold_times = self._hold_times.after(held.pace, held.reservation.kv_tokens, held.since, now)
        admitted = self._admit_waiting(now)
        if held.ticket is not None and not held.used:
            self._queue.give_back(held.ticket, now)
        return admitted

    def resize(self, kv_token_blocks: int, now: float) -> tuple[bytes, ...]:
        """Change the amount of room; returns the waiting sessions admitted now. Open sessions keep their room.

        `kv_token_blocks_free` is negative while open sessions hold more than the new amount.
        """
        self.kv_token_blocks_free += kv_token_blocks - self.kv_token_blocks_total
        self.kv_token_blocks_total = kv_token_blocks
        self._forecast = None
        return self._admit_waiting(now)

    def hopeless(self) -> dict[bytes, NeverFits]:
        """The waiting sessions that no longer fit into the total room; the caller makes them leave."""
        too_large: dict[bytes, NeverFits] = {}
        for session_id, (_, reservation) in self._waiting.items():
            if reservation.room > self.kv_token_blocks_total:
                too_large[session_id] = self._never_fits(reservation)
        return too_large

    def note_step(self, session_id: bytes, tokens: int, rows: int, now: float) -> None:
        """Record that a step has left the session with `tokens` tokens in `rows` rows."""
        held = self._held.get(session_id)
        if held is not None:
            held.used = True
            held.pace = held.pace.after(tokens, rows, now)

    def _check(self, reservation: Reservation) -> None:
        if reservation.room > self.kv_token_blocks_total:
            raise self._never_fits(reservation)
        if self.is_open(reservation.session_id):
            raise AlreadyOpen("the session is open on this peer already")

    def _never_fits(self, reservation: Reservation) -> NeverFits:
        return NeverFits(
            f"the session reserves {reservation.room} KV tokens x blocks,"
            f" the peer has {self.kv_token_blocks_total} in all"
        )

    def _fits(self, reservation: Reservation) -> bool:
        return reservation.room <= self.kv_token_blocks_free and len(self._held) < self._max_sessions

    def _hold(self, reservation: Reservation, ticket: Ticket | None, now: float) -> None:
        pace = Pace(Average(self._hold_times.reserved_token_seconds.value), now)
        self._held[reservation.session_id] = _Held(reservation, now, pace, ticket)
        self._book(reservation, 1)
        self.admissions += 1
        self._count_sessions(now)

    def _book(self, reservation: Reservation, sessions: int) -> None:
        """Count a session's room as held (1), or as free again (-1)."""
        client, room = reservation.client, sessions * reservation.room
        self.kv_token_blocks_free -= room
        self._room_of[client] += room
        self._sessions_of[client] += sessions
        if not self._sessions_of[client]:
            del self._room_of[client], self._sessions_of[client]

    def _admit_waiting(self, now: float) -> tuple[bytes, ...]:
        admitted = []
        while self._queue:
            ticket = self._in_turn()[0]
            reservation = self._waiting[ticket.session_id][1]
            if not self._fits(reservation):
                break
            del self._waiting[ticket.session_id]
            self._queue.admit(ticket)
            self._turnover = self._turnover.admitted(now)
            self._hold(reservation, ticket, now)
            admitted.append(ticket.session_id)
        return tuple(admitted)

    # --- the share of a client ---

    def crowds(self, client: PeerId) -> bool:
        """Whether the client holds more than its share, with several sessions, while another one waits."""
        room, sessions = self._room_of[client], self._sessions_of[client]
        if sessions < 2 or not self._exceeds(room, sessions):
            return False
        return any(ticket.client != client for ticket in self._queue)

    def _exceeds(self, room: int, sessions: int) -> bool:
        """Whether this is more than one client's share."""
        share = self._client_share
        return share < 1 and (room > share * self.kv_token_blocks_total or sessions > share * self._max_sessions)

    def _in_turn(self) -> list[Ticket]:
        """The waiting sessions in the order in which they are served: first those within their client's share.

        O(waiting).
        """
        tickets = list(self._queue)
        if len({ticket.client for ticket in tickets}) < 2:
            return tickets
        room, sessions = Counter(self._room_of), Counter(self._sessions_of)
        within: list[Ticket] = []
        beyond: list[Ticket] = []
        full: set[PeerId] = set()
        for ticket in tickets:
            client = ticket.client
            room[client] += self._waiting[ticket.session_id][1].room
            sessions[client] += 1
            if sessions[client] > 1 and self._exceeds(room[client], sessions[client]):
                full.add(client)  # also for its later sessions, however small: they do not pass each other
            (beyond if client in full else within).append(ticket)
        return within + beyond

    # --- looking ahead ---

    def concurrency(self, now: float) -> float:
        """Open sessions, averaged over the last `AdmissionTiming.concurrency_seconds`."""
        return self._concurrency.mean(now) if self._concurrency is not None else 0.0

    def releases(self, now: float) -> tuple[KvRelease, ...]:
        """When a newcomer can have room beyond `kv_token_blocks_open`, ascending in time and bounded.

        The waiting sessions are served first, so this begins after their admissions. O(n log n), computed every time.
        """
        return self._look_ahead(now).newcomer.releases

    @property
    def kv_token_blocks_open(self) -> int:
        """Room that a newcomer can have at once: none while others wait."""
        full = bool(self._queue) or len(self._held) >= self._max_sessions
        return 0 if full else max(0, self.kv_token_blocks_free)

    def forecast(self, now: float) -> QueueForecast:
        """The forecast, at most `AdmissionTiming.forecast_seconds` old, for about as many waiting sessions as now.

        O(n log n) for n open and waiting sessions when it is recomputed; thousands of simultaneous arrivals reuse it.
        """
        made = self._forecast
        if made is not None and 0 <= now - made.at_seconds < self._timing.forecast_seconds:
            before = len(made.starts)
            if abs(len(self._queue) - before) <= before // 8:
                return made
        self._forecast = self._look_ahead(now)
        return self._forecast

    def places(self) -> dict[bytes, int]:
        """Each waiting session's place; 1 is the next one."""
        return {ticket.session_id: place for place, ticket in enumerate(self._in_turn(), start=1)}

    def start_seconds(self, session_id: bytes, now: float) -> float:
        """Seconds until a waiting session is expected to be admitted."""
        forecast = self.forecast(now)
        start = forecast.starts.get(session_id)
        if start is None:  # the session came after the forecast was made
            return self._newcomer_wait(forecast, self._waiting[session_id][1], now)
        return max(0.0, start - now)

    def end_seconds(self, session_id: bytes, now: float) -> float:
        """When an open session is expected to have filled its reservation, at its present pace."""
        return self._end_seconds(self._held[session_id], self._position_seconds(), now)

    def retry_seconds(self, reservation: Reservation, now: float) -> float:
        """Seconds after which a session that is refused now should come again."""
        return max(self._timing.min_retry_seconds, self._newcomer_wait(self.forecast(now), reservation, now))

    def _newcomer_wait(self, forecast: QueueForecast, reservation: Reservation, now: float) -> float:
        wait = forecast.newcomer.wait_seconds(reservation.room, now)
        return wait if math.isfinite(wait) else self._expected_seconds(reservation, self._position_seconds())

    def _end_seconds(self, held: _Held, position_seconds: float | None, now: float) -> float:
        if held.pace.is_known or not held.reservation.prompt_tokens:
            return held.pace.end_seconds(held.reservation.kv_tokens, now)
        return max(now, held.since + self._expected_seconds(held.reservation, position_seconds))

    def _expected_seconds(self, reservation: Reservation, position_seconds: float | None) -> float:
        """Seconds for which a session is expected to hold its room."""
        kv_tokens, rows = reservation.kv_tokens, reservation.max_rows
        return self._hold_times.expected(kv_tokens, reservation.prompt_tokens, rows, position_seconds)

    def _position_seconds(self) -> float | None:
        """The pace of the sessions that decode now: the harmonic mean, because slow ones stay open longer."""
        paces = [held.pace.position_seconds for held in self._held.values() if held.pace.is_known]
        return statistics.harmonic_mean(paces) if paces else None

    def _look_ahead(self, now: float) -> QueueForecast:
        self.forecasts_made += 1
        pace = self._position_seconds()
        ends = [KvRelease(self._end_seconds(held, pace, now), held.reservation.room) for held in self._held.values()]
        order = [ticket.session_id for ticket in self._in_turn()]
        waiting = [self._waiting[session_id][1] for session_id in order]
        demands = [Demand(each.room, self._expected_seconds(each, pace)) for each in waiting]
        places = self._max_sessions - len(self._held)
        schedule = serve_in_order(now, self.kv_token_blocks_free, places, ends, demands, MAX_RELEASES)
        starts = dict(zip(order, self._turnover.corrected(schedule.starts, now), strict=True))
        return QueueForecast(now, starts, _within_reason(schedule.rest, now))

    def _count_sessions(self, now: float) -> None:
        if self._concurrency is None:
            self._concurrency = TimeAverage(self._timing.concurrency_seconds, now)
        self._concurrency = self._concurrency.after(len(self._held), now)


def _within_reason(room: Room, now: float) -> Room:
    """Bound the releases: paces measured on tiny sessions may put the end of a long one beyond a record's bounds."""
    latest = now + MAX_FORECAST_SECONDS
    return Room(room.free, tuple(KvRelease(min(at, latest), tokens) for at, tokens in room.releases))
