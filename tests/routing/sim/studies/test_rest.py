"""A swarm at rest is about as good as one placed from scratch, and a departure loads little."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from blockswarm.routing.sim.studies.rest import rest_after_every_event
from blockswarm.routing.sim.worlds.population import BLOOM, Population


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_rest_stays_close_to_placing_from_scratch(seed):
    """Aim: 10 % at the 95th percentile of the predicted mean and of Theorem 2's bound; a departure loads little."""
    reports = rest_after_every_event(Population(replace(BLOOM, num_blocks=24)), 14, 40, random.Random(seed))
    for name in ("mean_distance", "bound_distance"):
        distances = [getattr(report, name) for report in reports if getattr(report, name) is not None]
        assert np.quantile(distances, 0.95) <= 0.10
    departures = [report.loaded_blocks for report in reports if report.event == "departure"]
    assert np.mean(departures) < 24 / 4
