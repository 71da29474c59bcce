"""Churn through old and lossy records: no move takes a block's last server, and the swarm comes to rest."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from blockswarm.routing.place.agent import Action, AgentState, BeginLoading, Loading, MoveTo, next_action
from blockswarm.routing.place.moves import ReplanPolicy
from blockswarm.routing.sim.studies.agents import ProtocolReport, ProtocolSetup, run_protocol
from blockswarm.routing.sim.worlds.population import BLOOM, Population
from blockswarm.routing.swarm import Swarm
from blockswarm.routing.timing import RECORD_LIFETIME_SECONDS

SMALL = Population(replace(BLOOM, num_blocks=12), fast_memory_bytes=(12e9,), slow_memory_bytes=(4e9, 6e9, 8e9))
EAGER = ReplanPolicy(horizon_seconds=48 * 3600.0, min_gain=0.005, load_bytes_per_second=100e6)
"""Moves at the slightest occasion, to have many of them."""
BUSY = ProtocolSetup(peers=7, hours=0.4, joins_per_hour=12, leaves_per_hour=6, crashes_per_hour=3, record_loss=0.3)


def run(seed: int, setup: ProtocolSetup = BUSY) -> ProtocolReport:
    return run_protocol(SMALL, setup, random.Random(seed), EAGER)


@pytest.mark.slow
def test_the_protocol_never_takes_a_last_server():
    """Snapshots up to 60 s old, a third of the records lost, clocks off by seconds, dozens of moves."""
    reports = [run(seed) for seed in range(4)]
    assert sum(report.moves for report in reports) > 40
    assert [report.last_servers_taken for report in reports] == [0] * len(reports)


def reckless(state: AgentState, snapshot: Swarm, policy: ReplanPolicy, **options: object) -> Action:
    """An agent that judges none of its claims."""
    if state.claim is None:
        return next_action(state, snapshot, policy, **options)  # type: ignore[arg-type]
    return (BeginLoading if state.loading is Loading.NOT_BEGUN else MoveTo)(state.claim.blocks)


@pytest.mark.long
def test_without_witnesses_last_servers_would_be_taken():
    """The check above can fail: peers that move on their own old snapshot alone do take last servers."""
    harsh = replace(BUSY, record_loss=0.5)
    reports = (run_protocol(SMALL, harsh, random.Random(seed), EAGER, reckless) for seed in range(1, 8))
    assert any(report.last_servers_taken > 0 for report in reports)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_old_records_alone_do_not_keep_the_swarm_from_resting(seed):
    """Without losses, but with records up to 60 s old, nothing moves once nobody comes or goes; equal seeds agree."""
    setup = replace(BUSY, record_loss=0.0)
    report = run(seed, setup)
    assert report.rested
    assert report.last_servers_taken == 0
    if seed == 0:
        assert run(seed, setup) == report


LOSSY = replace(BUSY, hours=0.2, joins_per_hour=0, leaves_per_hour=0, crashes_per_hour=0)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_static_swarm_rests_though_a_third_of_the_records_is_lost(seed):
    """A peer whose records were lost for a while is remembered, not taken for gone."""
    assert LOSSY.record_loss == 0.3
    report = run_protocol(SMALL, LOSSY, random.Random(seed))
    assert report.rested
    assert report.moves <= 2 * LOSSY.peers


@pytest.mark.long
def test_agents_that_forget_with_the_record_do_not_rest():
    """The check above can fail."""
    forgetful = replace(LOSSY, memory_seconds=RECORD_LIFETIME_SECONDS)
    assert not all(run_protocol(SMALL, forgetful, random.Random(seed)).rested for seed in range(3))


@pytest.mark.long
def test_a_peer_that_joins_at_once_takes_no_last_server_either():
    """It drops nothing; what it loads in vain is counted as abandoned, and the swarm still comes to rest."""
    setup = replace(BUSY, record_loss=0.0, joins_at_once=True)
    reports = [run(seed, setup) for seed in range(3)]
    assert [report.last_servers_taken for report in reports] == [0] * 3
    assert all(report.rested for report in reports)
