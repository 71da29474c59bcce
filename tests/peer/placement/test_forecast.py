"""The log's words on a move, before and after."""

from __future__ import annotations

import math
from dataclasses import replace

from blockswarm.peer.placement.forecast import forecast_of, outcome
from blockswarm.routing.swarm import BlockRange
from support.placement import POLICY, peer, swarm

HOLE = BlockRange(8, 12)


def test_a_repair_is_told_with_its_hole() -> None:
    snapshot = swarm(peer("a", "0:4"), peer("b", "4:8"), peer("c", "4:8"), now=100.0)
    forecast = forecast_of(snapshot, snapshot.peers[2].id, HOLE, POLICY)
    assert (forecast.uncovered_before, forecast.uncovered_after) == (4, 0)
    assert math.isinf(forecast.seconds_before)
    assert math.isfinite(forecast.seconds_after)
    assert "blocks without a server 4 -> 0" in str(forecast)
    assert "for ever ->" in str(forecast)
    moved = replace(snapshot.peers[2], blocks=HOLE)
    line = outcome(forecast, swarm(*snapshot.peers[:2], moved, now=700.0), POLICY)
    predicted = f"{forecast.seconds_after:.3g} s"
    assert line.count(predicted) == 2, "nothing else has changed, so it came as predicted"
    assert line.startswith("600 s after the claim to blocks 8:12")
