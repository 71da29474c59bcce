"""More sessions than there is room for, on crossing chains: nobody is stuck, nothing leaks, all learn how it ends."""

from __future__ import annotations

from collections import Counter

import pytest
from support.toy_swarm import World

pytestmark = pytest.mark.slow


def test_a_thousand_sessions_on_crossing_chains() -> None:
    """No peer has room for a whole session, so every chain takes several peers, in any order; three times too many."""
    world = World([60, 60, 45, 45, 30, 30], clients=40, patience_seconds=40.0, seed=1)
    outcomes = world.play(1000, seconds=400.0, vanishing=0.0)
    assert set(outcomes) == {"tokens", "busy"}, outcomes
    assert outcomes["tokens"] > 200, outcomes
    assert outcomes.total() == 1000
    served = [visit.admitted_after for visit in world.visits if visit.admitted_after is not None]
    assert max(served) < 45, "nobody waits beyond its patience"
    assert any(event.kind == "queued" for visit in world.visits if visit.outcome == "tokens" for event in visit.events)
    world.check_nothing_is_left()


def test_clients_that_vanish_at_any_moment_leave_nothing_behind() -> None:
    world = World([60, 60, 45, 45, 30, 30], clients=40, patience_seconds=40.0, seed=2)
    outcomes = world.play(500, seconds=150.0, vanishing=0.6)
    assert set(outcomes) == {"tokens", "busy", "vanished"}, outcomes
    gone = [visit for visit in world.visits if visit.outcome == "vanished"]
    moments = Counter(visit.events[-1].kind if visit.events else "opening" for visit in gone)
    assert {"opening", "queued", "opened"} <= set(moments), moments
    world.check_nothing_is_left()
