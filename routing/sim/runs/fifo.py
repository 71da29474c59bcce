"""The product's admission, simulated: a FIFO queue per peer, a chain's reservations taken in ascending peer id.

A session takes its reservations one after the other in one order for everybody, hence no cycle of waiting.  While it
waits at a peer it keeps the earlier ones as leases, for a bounded time; then it gives all back, asks the router again
and rejoins with its original arrival time, so it loses no rank.  A queue serves strictly in order of arrival: nobody
overtakes a session that does not fit yet.  It starts when the whole chain is reserved, and no retry grid rounds that.

Peers may come and go (`resize`, `reroute`).  A session that loses a peer keeps what it holds on the others as leases,
is routed again, and waits for the replacement with its original arrival time, by the same rules.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...perf import Segment
from ...route.wsrr import Ledger
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


Route = Callable[[Job, Ledger, float, frozenset[int]], Plan | None]
"""Asked with the time and the peers on which a session that ran before still holds what it computed; None: no chain."""


class _Queue:
    """One peer's free units and the sessions that wait for them, in order of arrival."""

    def __init__(self, units: int) -> None:
        self.free = units
        self.waiting: list[tuple[int, _Session]] = []

    def join(self, session: _Session) -> None:
        bisect.insort(self.waiting, (session.job.number, session), key=lambda entry: entry[0])

    def leave(self, session: _Session) -> None:
        self.waiting.remove((session.job.number, session))


class _Session:
    """One job on its way: routed, reserving peer by peer, running, done."""

    __slots__ = ("booked_until", "end", "ends_at", "held", "job", "kept", "lease", "needs", "overdue", "plan")

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
        self.lease: Event | None = None
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
        route: Route,
        started: Callable[[Job, Plan, float], None],
        *,
        lease_seconds: float = 30.0,
        interrupted: Callable[[Job], None] = _ignore,
        finished: Callable[[Job], None] = _ignore,
    ) -> None:
        self.kernel = kernel
        self.ledger = Ledger(units)
        """What the router sees: every session from its decision to its estimated end."""
        self.queues = [_Queue(count) for count in units]
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
        return [queue.free for queue in self.queues]

    def reserved_units(self) -> list[int]:
        """Units per peer that the open sessions hold."""
        reserved = [0] * len(self.queues)
        for session in self._sessions.values():
            for peer, units in (*session.kept, *session.needs[: session.held]):
                reserved[peer] += units
        return reserved

    # --- peers come, go and change ---

    def resize(self, peer: int, units: int) -> None:
        """The peer has that many units from now on: it has joined, or is gone (0) after `reroute`."""
        self.queues[peer].free += units - self.ledger.units[peer]
        self.ledger.resize(peer, units)

    def reroute(self, peer: int, *, running: bool) -> None:
        """The router no longer uses the peer: route again who waits for it, and with `running` who holds it."""
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
        for one in sorted(freed):
            self._serve(one)

    def retry_stranded(self) -> None:
        """Chains may exist that did not: route again who has none."""
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
        """Take the session out of its queue or its run; it keeps, beside `peer`, what it has computed something on.

        Returns the peers whose queues may go on.
        """
        self._unbook(session)
        if session.lease is not None:
            session.lease.cancel()
            session.lease = None
        freed: list[tuple[int, int]] = []
        changed: set[int] = set()
        if session.end is not None:
            session.end.cancel()
            session.end = None
            session.kept = session.kept + session.needs
            self._interrupted(session.job)
        else:
            queue_peer, _ = session.needs[session.held]
            self.queues[queue_peer].leave(session)
            changed.add(queue_peer)
            freed = session.needs[: session.held]
        freed = freed + [one for one in session.kept if one[0] == peer]
        session.kept = [one for one in session.kept if one[0] != peer]
        session.needs, session.held = [], 0
        return changed | self._give_back(freed)

    def _give_back(self, units: Sequence[tuple[int, int]]) -> set[int]:
        for peer, count in units:
            self.queues[peer].free += count
        return {peer for peer, _ in units}

    # --- a session's way ---

    def _plan(self, session: _Session) -> set[int]:
        """Route the session and reserve; returns the peers whose queues may go on."""
        now = self.kernel.now_seconds
        self.ledger.expire(now)
        plan = session.plan = self._route(session.job, self.ledger, now, frozenset(j for j, _ in session.kept))
        hops = sorted((j, len(blocks) * session.job.units_per_block) for j, blocks in plan.chain) if plan else []
        session.needs = [hop for hop in hops if hop not in session.kept]
        dropped = [hop for hop in session.kept if hop not in hops]
        session.kept = [hop for hop in session.kept if hop in hops]
        freed = self._give_back(dropped)
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
            queue = self.queues[peer]
            first = not queue.waiting or session.job.number < queue.waiting[0][0]
            if not (first and queue.free >= units):
                queue.join(session)
                if session.overdue is None:  # predicted to start at once, but others are ahead of it
                    session.overdue = self.kernel.after(1.0, lambda: self._reestimate(session), priority=2)
                if session.held or session.kept:
                    session.lease = self.kernel.after(self._lease_seconds, lambda: self._give_up(session), priority=1)
                return
            queue.free -= units
            session.held += 1
        self._start(session)

    def _start(self, session: _Session) -> None:
        assert session.plan is not None
        now = self.kernel.now_seconds
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
        """The lease ran out: give everything back and rejoin with the original arrival time."""
        peer, _ = session.needs[session.held]
        self.queues[peer].leave(session)
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

    def _serve(self, peer: int) -> None:
        """The queue's head goes on while it fits."""
        queue = self.queues[peer]
        while queue.waiting:
            session = queue.waiting[0][1]
            units = session.needs[session.held][1]
            if queue.free < units:
                return
            queue.waiting.pop(0)
            if session.lease is not None:
                session.lease.cancel()
                session.lease = None
            queue.free -= units
            session.held += 1
            self._reserve(session)
