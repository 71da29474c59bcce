"""Leases: how long a session keeps room on some peers of its chain while it waits for room on the others.

* Every session takes its peers one after the other, in ascending order of their ids.  So no two sessions can each hold
  room that the other waits for.
* Once the first peer is taken, all others must be taken within the lease.  When the lease ends, all room is given back,
  and the session may begin again.
* Peers remember when a session came (queue.py): it rejoins with its rank at a peer where it was still waiting, and one
  round later at a peer where it gave back unused room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..timing import LEASE_SECONDS

H = TypeVar("H")


def in_taking_order(hops: Iterable[H], peer_of: Callable[[H], Any]) -> list[H]:
    """The hops of a chain in the order in which a session takes room on them."""
    return sorted(hops, key=peer_of)


@dataclass(frozen=True, slots=True)
class Lease:
    """The moment by which all peers of a chain must be taken; infinite while none is."""

    ends_at: float = math.inf

    def after_taking(self, now: float, lease_seconds: float = LEASE_SECONDS) -> Lease:
        """The lease after a peer is taken `now`: only the first peer sets it."""
        return Lease(min(self.ends_at, now + lease_seconds))
