"""Words of a plan about the swarm that it was made for."""

from __future__ import annotations

from dataclasses import replace

from blockswarm.peer.node import PeerPlan
from blockswarm.peer.program.plan import describe_plan, plan_as_json

PLAN = PeerPlan(None, 8, "float32", 0, 0, 0.001, None, None, 40, 40)


def test_a_plan_for_a_part_of_a_swarm_says_so() -> None:
    assert "of about" not in describe_plan("model", PLAN)
    part = replace(PLAN, planned_with=400, peers=3000)
    assert "planned with 400 of about 3000 peers" in describe_plan("model", part)
    told = plan_as_json(part)
    assert (told["planned_with_peers"], told["peers"]) == (400, 3000)
