"""The product's admission, simulated: a FIFO queue per peer, a chain's reservations taken in ascending peer id.

A session takes its reservations one after the other in one order for everybody, hence no cycle of waiting.  While it
waits at a peer it keeps the earlier ones as leases, for a bounded time; then it gives all back, asks the router again
and rejoins with its original arrival time, so it loses no rank.  A queue serves strictly in order of arrival: nobody
overtakes a session that does not fit yet.  It starts when the whole chain is reserved, and no retry grid rounds that.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..perf import Segment
from ..wsrr import Ledger
from .kernel import Event, Kernel


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


Route = Callable[[Job, Ledger, float], Plan]


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

    __slots__ = ("booked_until", "held", "job", "lease", "needs", "overdue", "plan")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.plan: Plan | None = None
        self.needs: list[tuple[int, int]] = []
        """(peer, units) in ascending peer id."""
        self.held = 0
        """How many of `needs` are reserved."""
        self.lease: Event | None = None
        self.overdue: Event | None = None
        self.booked_until = 0.0


class FifoSwarm:
    """The peers' queues and the sessions; `done(job, plan, wait_seconds)` is called when a session starts."""

    def __init__(
        self,
        kernel: Kernel,
        units: Sequence[int],
        route: Route,
        started: Callable[[Job, Plan, float], None],
        *,
        lease_seconds: float = 30.0,
    ) -> None:
        self.kernel = kernel
        self.ledger = Ledger(units)
        """What the router sees: every session from its decision to its estimated end."""
        self._queues = [_Queue(count) for count in units]
        self._route = route
        self._started = started
        self._lease_seconds = lease_seconds
        self.open_sessions = 0

    def arrive(self, job: Job) -> None:
        """A request arrives now."""
        self.open_sessions += 1
        self._plan(_Session(job))

    def idle_units(self) -> list[int]:
        """Free units per peer."""
        return [queue.free for queue in self._queues]

    def _plan(self, session: _Session) -> None:
        now = self.kernel.now_seconds
        self.ledger.expire(now)
        plan = self._route(session.job, self.ledger, now)
        session.plan = plan
        session.needs = sorted((j, len(blocks) * session.job.units_per_block) for j, blocks in plan.chain)
        self._book(session, now + plan.predicted_wait_seconds)
        self._reserve(session)

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
            queue = self._queues[peer]
            first = not queue.waiting or session.job.number < queue.waiting[0][0]
            if not (first and queue.free >= units):
                queue.join(session)
                if session.overdue is None:  # predicted to start at once, but others are ahead of it
                    session.overdue = self.kernel.after(1.0, lambda: self._reestimate(session), priority=2)
                if session.held:
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
        self._started(session.job, session.plan, now - session.job.arrival_seconds)
        self.kernel.after(session.plan.held_seconds, lambda: self._finish(session), priority=-1)

    def _finish(self, session: _Session) -> None:
        self.open_sessions -= 1
        self._release(session)

    def _give_up(self, session: _Session) -> None:
        """The lease ran out: give everything back and rejoin with the original arrival time."""
        peer, _ = session.needs[session.held]
        self._queues[peer].leave(session)
        self._unbook(session)
        self._release(session)
        self._serve(peer)  # it may have been the head that did not fit
        self._plan(session)

    def _release(self, session: _Session) -> None:
        held, session.held = session.needs[: session.held], 0
        for peer, units in held:
            self._queues[peer].free += units
        for peer, _ in held:
            self._serve(peer)

    def _serve(self, peer: int) -> None:
        """The queue's head goes on while it fits."""
        queue = self._queues[peer]
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
