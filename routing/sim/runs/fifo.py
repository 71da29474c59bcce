"""The product's admission, simulated: the peers' own queue (admit/queue.py), and chains reserved under leases.

A session takes its reservations by the rules of admit/leases.py: one peer after the other in ascending id, and all
within a lease from the first; else it gives all back and asks the router again.  A peer's queue serves in the order in
which sessions first came to that peer, and no session overtakes a head that does not fit yet.  Every request is a
client of its own here: the clients of a scenario are places with many users, who would take turns.  A session starts
when its whole chain is reserved, and no retry grid rounds that.

Peers may come and go (`resize`, `reroute`).  A session that loses a peer keeps what it holds on the others under a
lease, is routed again, and waits for the replacement by the same rules.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...admit.leases import Lease, in_taking_order
from ...admit.queue import AdmissionQueue, Ticket
from ...perf import Segment
from ...route.wsrr import Ledger
from ...swarm import PeerId
from ...timing import LEASE_SECONDS
from ..kernel import Event, Kernel


@dataclass(frozen=True, slots=True)
class Job:
    """One request as the simulator plays it."""

    number: int
    """Its rank in order of arrival."""
    client: int
    kind: int
    arrival_seconds: float
    units_per_block: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A router's answer: the chain, how long it holds memory once started, and the wait it predicts."""

    chain: tuple[Segment, ...]
    held_seconds: float
    cost_seconds: float
    predicted_wait_seconds: float


RoutingRule = Callable[[Job, Ledger, float, frozenset[int]], Plan | None]
"""Asked with the time and the peers on which a session that ran before still holds what it computed; None: no chain."""


class _PeerRoom:
    """One peer's free units, and the queue for them, which is not bounded here."""

    def __init__(self, units: int) -> None:
        self.free = units
        self._queue = AdmissionQueue(max_waiting=sys.maxsize, max_per_client=sys.maxsize)
        self._waiting: dict[Ticket, _Session] = {}

    @property
    def head(self) -> _Session | None:
        """The session that is served next."""
        return self._waiting[self._queue.head] if self._queue else None

    def join(self, session: _Session, now: float) -> Ticket:
        number = session.job.number
        ticket = self._queue.join(PeerId(str(number)), number.to_bytes(8, "big"), now)
        self._waiting[ticket] = session
        return ticket

    def admit_head(self, units: int) -> None:
        self.free -= units
        del self._waiting[self._queue.admit_head()]

    def leave(self, ticket: Ticket, now: float) -> None:
        del self._waiting[ticket]
        self._queue.leave(ticket, now)

    def give_back_unused(self, ticket: Ticket, now: float) -> None:
        self._queue.give_back(ticket, now)


class _Session:
    """One job on its way: routed, reserving peer by peer, running, done."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.plan: Plan | None = None
        self.needs: list[tuple[int, int]] = []
        """(peer, units) in ascending peer id."""
        self.held = 0
        """How many of `needs` are reserved."""
        self.kept: list[tuple[int, int]] = []
        """(peer, units) reserved since before the session lost a peer."""
        self.end: Event | None = None
        """Set while it runs."""
        self.ends_at = 0.0
        self.ticket: Ticket | None = None
        """The place in the queue of the first peer that is not reserved, while it waits there."""
        self.tickets: list[Ticket] = []
        """The places that it had in the queues of the reserved peers, which are given back if it does not start."""
        self.lease = Lease()
        self.lease_end: Event | None = None
        self.overdue: Event | None = None
        self.booked_until = 0.0

    def waits_for(self, peer: int) -> bool:
        """Whether it has yet to start and means to reserve something new on the peer."""
        return self.end is None and any(j == peer for j, _ in self.needs)

    def holds(self, peer: int) -> bool:
        """Whether it runs on the peer, or ran there and keeps its lease."""
        held = (*self.kept, *self.needs) if self.end is not None else self.kept
        return any(j == peer for j, _ in held)


def _ignore(job: Job) -> None:
    """Tell nobody."""


class FifoSwarm:
    """The peers' queues and the sessions.

    `started(job, plan, wait_seconds)` is called when a session starts (again), `interrupted(job)` when it loses a peer
    while it runs, `finished(job)` when it ends.
    """

    def __init__(
        self,
        kernel: Kernel,
        units: Sequence[int],
        route: RoutingRule,
        started: Callable[[Job, Plan, float], None],
        *,
        lease_seconds: float = LEASE_SECONDS,
        interrupted: Callable[[Job], None] = _ignore,
        finished: Callable[[Job], None] = _ignore,
    ) -> None:
        self.kernel = kernel
        self.ledger = Ledger(units)
        """The router's view: every session from its decision to its estimated end."""
        self._rooms = [_PeerRoom(count) for count in units]
        self._route = route
        self._started = started
        self._lease_seconds = lease_seconds
        self._interrupted = interrupted
        self._finished = finished
        self._sessions: dict[int, _Session] = {}
        """The open ones, in order of arrival."""
        self._stranded: dict[int, _Session] = {}
        """Those for which no chain exists."""

    @property
    def open_sessions(self) -> int:
        """Sessions that have arrived and not ended."""
        return len(self._sessions)

    def arrive(self, job: Job) -> None:
        """A request arrives now."""
        session = self._sessions[job.number] = _Session(job)
        self._plan(session)

    def idle_units(self) -> list[int]:
        """Free units per peer."""
        return [room.free for room in self._rooms]

    def reserved_units(self) -> list[int]:
        """Units per peer that the open sessions hold."""
        reserved = [0] * len(self._rooms)
        for session in self._sessions.values():
            for peer, units in (*session.kept, *session.needs[: session.held]):
                reserved[peer] += units
        return reserved

    def queue_heads(self) -> list[tuple[int, int, int]]:
        """Per queue with waiting sessions: the peer, the units that the next session needs, the free units."""
        heads = ((peer, room, room.head) for peer, room in enumerate(self._rooms))
        return [(peer, head.needs[head.held][1], room.free) for peer, room, head in heads if head is not None]

    # --- peers come, go and change ---

    def resize(self, peer: int, units: int) -> None:
        """The peer has that many units from now on: it has joined, or is gone (0) after `reroute`."""
        self._rooms[peer].free += units - self.ledger.units[peer]
        self.ledger.resize(peer, units)

    def reroute(self, peer: int, *, running: bool) -> None:
        """The router no longer uses the peer: route the sessions again that wait for it, with `running` also those
        that hold it."""
        affected = [
            session
            for session in self._sessions.values()
            if session.waits_for(peer) or (running and session.holds(peer))
        ]
        freed: set[int] = set()
        for session in affected:
            freed |= self._detach(session, peer)
        for session in affected:
            freed |= self._plan(session)
        for freed_peer in sorted(freed):
            self._serve(freed_peer)

    def retry_stranded(self) -> None:
        """Route the sessions again that have no chain: one may exist now."""
        stranded, self._stranded = self._stranded, {}
        for number in sorted(stranded):
            self._plan(stranded[number])

    def running_on(self, peer: int) -> list[Job]:
        """The jobs that run on the peer now, in order of arrival."""
        sessions = (s for s in self._sessions.values() if s.end is not None and s.holds(peer))
        return [session.job for session in sessions]

    def set_remaining(self, job: Job, seconds: float) -> None:
        """A running session ends that much later, whatever the router believes."""
        session = self._sessions[job.number]
        assert session.end is not None
        session.end.cancel()
        self._end_after(session, seconds)

    def rebook(self, job: Job) -> None:
        """The router learns when a running session really ends."""
        session = self._sessions[job.number]
        assert session.plan is not None
        self._unbook(session)
        session.booked_until = session.ends_at
        if session.ends_at > self.kernel.now_seconds:
            self.ledger.book(session.plan.chain, session.ends_at, session.job.units_per_block)

    def _detach(self, session: _Session, peer: int) -> set[int]:
        """Take the session out of its queue or its run; it keeps the other peers on which it has computed.

        Returns the peers whose queues may go on.
        """
        self._unbook(session)
        self._end_lease(session)
        freed: list[tuple[int, int]] = []
        changed: set[int] = set()
        if session.end is not None:
            session.end.cancel()
            session.end = None
            session.kept = session.kept + session.needs
            self._interrupted(session.job)
        else:
            changed.add(self._leave_queue(session))
            freed = session.needs[: session.held]
            self._return_tickets(session)
        freed = freed + [hop for hop in session.kept if hop[0] == peer]
        session.kept = [hop for hop in session.kept if hop[0] != peer]
        session.needs, session.held, session.tickets = [], 0, []
        return changed | self._give_back(freed)

    def _leave_queue(self, session: _Session) -> int:
        """Take the session out of the queue in which it waits; returns the peer."""
        peer, _ = session.needs[session.held]
        assert session.ticket is not None
        self._rooms[peer].leave(session.ticket, self.kernel.now_seconds)
        session.ticket = None
        return peer

    def _return_tickets(self, session: _Session) -> None:
        """Tell the peers that the session gave back their room unused: it may come again, a round later."""
        for (peer, _), ticket in zip(session.needs, session.tickets, strict=False):
            self._rooms[peer].give_back_unused(ticket, self.kernel.now_seconds)
        session.tickets = []

    @staticmethod
    def _end_lease(session: _Session) -> None:
        session.lease = Lease()
        if session.lease_end is not None:
            session.lease_end.cancel()
            session.lease_end = None

    def _give_back(self, units: Sequence[tuple[int, int]]) -> set[int]:
        for peer, count in units:
            self._rooms[peer].free += count
        return {peer for peer, _ in units}

    # --- a session's way ---

    def _plan(self, session: _Session) -> set[int]:
        """Route the session and reserve; returns the peers whose queues may go on."""
        now = self.kernel.now_seconds
        self.ledger.expire(now)
        plan = session.plan = self._route(session.job, self.ledger, now, frozenset(j for j, _ in session.kept))
        hops = [(j, len(blocks) * session.job.units_per_block) for j, blocks in plan.chain] if plan else []
        session.needs = in_taking_order((hop for hop in hops if hop not in session.kept), lambda hop: hop[0])
        dropped = [hop for hop in session.kept if hop not in hops]
        session.kept = [hop for hop in session.kept if hop in hops]
        freed = self._give_back(dropped)
        if session.kept:
            session.lease = session.lease.after_taking(now, self._lease_seconds)
        if plan is None:
            self._stranded[session.job.number] = session
        else:
            self._book(session, now + plan.predicted_wait_seconds)
            self._reserve(session)
        return freed

    def _book(self, session: _Session, start_seconds: float) -> None:
        """Tell the router when this session is expected to end; look again if it has not started by `start`."""
        assert session.plan is not None
        session.booked_until = start_seconds + session.plan.held_seconds
        self.ledger.book(session.plan.chain, session.booked_until, session.job.units_per_block)
        if start_seconds > self.kernel.now_seconds:
            session.overdue = self.kernel.at(start_seconds, lambda: self._reestimate(session), priority=2)

    def _unbook(self, session: _Session) -> None:
        assert session.plan is not None
        if session.overdue is not None:
            session.overdue.cancel()
            session.overdue = None
        if session.booked_until > self.kernel.now_seconds:
            self.ledger.cancel(session.plan.chain, session.booked_until, session.job.units_per_block)

    def _reestimate(self, session: _Session) -> None:
        """It should have started by now: expect it after as long again as it has waited, at least a second."""
        self._unbook(session)
        waited = self.kernel.now_seconds - session.job.arrival_seconds
        self._book(session, self.kernel.now_seconds + max(waited, 1.0))

    def _reserve(self, session: _Session) -> None:
        """Take the next reservations in ascending peer id; stop at the first that has to wait."""
        while session.held < len(session.needs):
            peer, units = session.needs[session.held]
            room = self._rooms[peer]
            session.ticket = room.join(session, self.kernel.now_seconds)
            if room.head is not session or room.free < units:
                if session.overdue is None:  # predicted to start at once, but others are ahead of it
                    session.overdue = self.kernel.after(1.0, lambda: self._reestimate(session), priority=2)
                ends_at = session.lease.ends_at
                if session.lease_end is None and ends_at < math.inf:
                    session.lease_end = self.kernel.at(ends_at, lambda: self._give_up(session), priority=1)
                return
            self._admit(session, peer, units)
        self._start(session)

    def _admit(self, session: _Session, peer: int, units: int) -> None:
        """Give the head of a peer's queue its room."""
        assert session.ticket is not None
        self._rooms[peer].admit_head(units)
        session.tickets.append(session.ticket)
        session.ticket = None
        session.held += 1
        session.lease = session.lease.after_taking(self.kernel.now_seconds, self._lease_seconds)

    def _start(self, session: _Session) -> None:
        assert session.plan is not None
        now = self.kernel.now_seconds
        self._end_lease(session)
        session.tickets = []
        if now + session.plan.held_seconds != session.booked_until:
            self._unbook(session)
            self._book(session, now)
        elif session.overdue is not None:
            session.overdue.cancel()
        self._end_after(session, session.plan.held_seconds)
        self._started(session.job, session.plan, now - session.job.arrival_seconds)

    def _end_after(self, session: _Session, seconds: float) -> None:
        session.ends_at = self.kernel.now_seconds + seconds
        session.end = self.kernel.after(seconds, lambda: self._finish(session), priority=-1)

    def _finish(self, session: _Session) -> None:
        del self._sessions[session.job.number]
        self._unbook(session)  # of effect where it ends sooner than the router was told
        self._finished(session.job)
        self._release(session)

    def _give_up(self, session: _Session) -> None:
        """The lease ran out: give everything back and begin anew."""
        peer = self._leave_queue(session)
        self._end_lease(session)
        self._unbook(session)
        self._release(session)
        self._serve(peer)  # it may have been the head that did not fit
        self._plan(session)

    def _release(self, session: _Session) -> None:
        held = session.kept + session.needs[: session.held]
        session.kept, session.held = [], 0
        self._give_back(held)
        for peer, _ in held:
            self._serve(peer)
        self._return_tickets(session)

    def _serve(self, peer: int) -> None:
        """Let the queue's head go on while it fits."""
        room = self._rooms[peer]
        while (session := room.head) is not None:
            units = session.needs[session.held][1]
            if room.free < units:
                return
            self._admit(session, peer, units)
            self._reserve(session)
