"""Room on several peers where a session has to wait for it: one peer after the other, in ascending order of their ids.

Everybody takes the peers in the same order, so no two sessions can each hold what the other waits for.  What is held
already while a session waits for the next peer is a lease: after `lease_seconds` all of it is given back, and the
session may begin anew; peers remember its arrival.  No I/O here: the machine opens the hops that `next_hop` names.
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
    """A peer did not give room; everything that was taken has to be given back."""

    error: SwarmError
    waited: bool
    """The session had a place in the queue, and keeps its rank if it comes again."""


@dataclass(slots=True)
class OrderedReservation:
    """The new hops of a chain on their way to being admitted."""

    chain: tuple[HopFacts, ...]
    """The whole chain, in order."""
    began_at: float
    """When the chain was chosen, with the waits that its hops then had."""
    patience_ends: float
    timing: ChainTiming
    waiting: list[HopFacts] = field(default_factory=list)
    """Not opened yet, the next one first."""
    taken: list[HopFacts] = field(default_factory=list)
    lease: Lease = field(default_factory=Lease)
    answer_by: float = math.inf
    told: tuple[int, float] | None = None
    """The last hop's place and estimate, as the user was told."""

    @classmethod
    def of(
        cls, chain: Sequence[HopFacts], new: Sequence[HopFacts], now: float, wait_seconds: float, timing: ChainTiming
    ) -> OrderedReservation:
        """`new` are the hops of `chain` that have to be opened, within `wait_seconds`."""
        return cls(tuple(chain), now, now + wait_seconds, timing, waiting=in_taking_order(new, lambda hop: hop.peer))

    @property
    def new(self) -> list[HopFacts]:
        """The hops that the reservation opens or has opened."""
        return [*self.taken, *self.waiting]

    @property
    def until(self) -> float:
        """When the wait for the next hop has to be over."""
        return min(self.patience_ends, self.lease.ends_at)

    @property
    def deadline(self) -> float:
        """When to look again whether the last hop has answered."""
        return self.answer_by if self.told is None else self.until + self.timing.answer_seconds

    def next_hop(self, now: float) -> HopFacts | NotAdmitted | None:
        """The hop to open now; None: wait for the last one; NotAdmitted: it has failed.

        Nothing is left when `is_complete`.
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
        """The hop whose queue has news for the user, the place there, and the seconds until the whole chain has room:
        by that peer's estimate, and by what was expected of those that are taken after it.
        """
        if not self.taken or self.taken[-1].queued in (None, self.told):
            return None
        hop = self.taken[-1]
        self.told = hop.queued
        assert hop.queued is not None
        place, estimate = hop.queued
        later = max((other.choice.wait_seconds for other in self.waiting), default=0.0)
        return hop, place, max(estimate, self.began_at + later - now)
