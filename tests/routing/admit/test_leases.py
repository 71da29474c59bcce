"""Leases: one order for everybody, and one time for the whole chain."""

from __future__ import annotations

from blockswarm.routing.admit.leases import Lease, in_taking_order
from blockswarm.routing.timing import LEASE_SECONDS


def test_peers_are_taken_in_the_order_of_their_ids_whatever_the_chain() -> None:
    assert in_taking_order([("c", 0), ("a", 2), ("b", 1)], lambda hop: hop[0]) == [("a", 2), ("b", 1), ("c", 0)]


def test_the_first_peer_that_is_taken_sets_the_lease_of_all() -> None:
    """Else a session could hold room for as long as there are peers to wait for."""
    lease = Lease().after_taking(100.0)
    assert lease.ends_at == 100.0 + LEASE_SECONDS
    assert lease.after_taking(120.0) == lease
    assert Lease().after_taking(100.0, lease_seconds=5.0).ends_at == 105.0
