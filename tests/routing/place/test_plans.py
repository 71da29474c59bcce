"""The plan from scratch is CG-BP's, found by other code."""

from __future__ import annotations

import random

import pytest
from blockswarm.routing.place import cgbp
from blockswarm.routing.place.plans import planned_ranges
from blockswarm.routing.place.view import PlanningView
from hypothesis import given, settings
from hypothesis import strategies as st
from support.placement import POLICY, random_swarm, settle


@pytest.mark.long
@given(st.integers(0, 10_000), st.integers(3, 20))
@settings(deadline=None, max_examples=40)
def test_the_plan_from_scratch_is_cgbp(seed, count):
    """Ignoring what is hosted, the first K peers of the plan get exactly CG-BP's windows: an independent code."""
    placed, _ = settle(random_swarm(random.Random(seed), count, blocks=20))
    view = PlanningView.of(placed, POLICY)
    try:
        plan = cgbp.place(view.model, view.concurrency)
    except cgbp.InfeasiblePlacementError:
        return
    assert (plan.sizes == view.sizes).all() or (plan.sizes == 0).any()
    if (plan.sizes == 0).any():  # The rule uses the peers that CG-BP drops; compare only where there are none.
        return
    planned = planned_ranges(view, sticky=False)
    for j in plan.order[: plan.covering]:
        assert tuple(planned[j]) == (plan.ranges[j].start, plan.ranges[j].stop)
