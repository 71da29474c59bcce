"""Reserves room on several peers when a session must wait for it: one peer after the other, in ascending order of id.

All sessions take peers in the same order, so no two can each hold what the other waits for (no deadlock).  Room that is
held while a session waits for the next peer is a lease: after `lease_seconds` all of it is given back, and the session
may start again; peers remember when it arrived.  No I/O here: the machine opens the hops that `next_hop` returns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ....proto.errors import DeadlineExceeded, PeerBusy, SwarmError
from ....routing.admit.leases import Lease, in_taking_order
from ...timing import ChainTiming
from .facts import HopFacts


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """A peer did not admit the session; all room that was taken must be given back."""

    error: SwarmError
    waited: bool
    """Whether the session was queued there; it then keeps its rank if it comes again."""


@dataclass(slots=True)
class OrderedReservation:
    """The admission of a chain's new hops, one after the other."""

    chain: tuple[HopFacts, ...]
    """The whole chain, in order."""
    began_at: float
    """When the chain was chosen; the `wait_seconds` of its hops count from then."""
    patience_ends: float
    timing: ChainTiming
    waiting: list[HopFacts] = field(default_factory=list)
    """Not opened yet, the next one first."""
    taken: list[HopFacts] = field(default_factory=list)
    lease: Lease = field(default_factory=Lease)
    answer_by: float = math.inf
    told: tuple[int, float] | None = None
    """The last hop's place in the queue and its estimate, as last told to the user."""

    @classmethod
    def of(
        cls, chain: Sequence[HopFacts], new: Sequence[HopFacts], now: float, wait_seconds: float, timing: ChainTiming
    ) -> OrderedReservation:
        """Start the reservation of `new`, the hops of `chain` that must be opened, within `wait_seconds`."""
        return cls(tuple(chain), now, now + wait_seconds, timing, waiting=in_taking_order(new, lambda hop: hop.peer))

    @property
    def new(self) -> list[HopFacts]:
        """The hops that the reservation has opened or will open."""
        return [*self.taken, *self.waiting]

    @property
    def until(self) -> float:
        """When the wait for the next hop must end."""
        return min(self.patience_ends, self.lease.ends_at)

    @property
    def deadline(self) -> float:
        """When to give up the last hop if it has not answered."""
        return self.answer_by if self.told is None else self.until + self.timing.answer_seconds

    def next_hop(self, now: float) -> HopFacts | NotAdmitted | None:
        """Return the hop to open now; None: wait for the last one, or all are open (`is_complete`).

        NotAdmitted: the reservation has failed.
        """
        for hop in self.taken:
            if hop.error is not None:
                return NotAdmitted(hop.error, waited=self.told is not None)
        if self.taken and not self.taken[-1].opened:
            if now < self.deadline:
                return None
            self.taken[-1].fail(DeadlineExceeded(f"{self.taken[-1].choice.address} does not answer"))
            return self.next_hop(now)
        if self.taken:
            self.lease = self.lease.after_taking(now, self.timing.lease_seconds)
        if not self.waiting:
            return None
        if self.until <= now:
            return NotAdmitted(PeerBusy(1.0, "the peers of the chain had no room in time"), waited=True)
        hop = self.waiting.pop(0)
        self.taken.append(hop)
        self.told, self.answer_by = None, now + self.timing.answer_seconds
        return hop

    @property
    def is_complete(self) -> bool:
        return not self.waiting and all(hop.opened and hop.alive for hop in self.taken)

    def news(self, now: float) -> tuple[HopFacts, int, float] | None:
        """Return the hop with news of its queue, the place there, and the seconds until the whole chain has room.

        The seconds are the larger of that peer's estimate and the announced waits of the hops still to be opened. None
        if there is nothing new for the user.
        """
        if not self.taken or self.taken[-1].queued in (None, self.told):
            return None
        hop = self.taken[-1]
        self.told = hop.queued
        assert hop.queued is not None
        place, estimate = hop.queued
        later = max((other.choice.wait_seconds for other in self.waiting), default=0.0)
        return hop, place, max(estimate, self.began_at + later - now)
