"""Does the placement rule keep a swarm near its best while peers come and go, and how much must be loaded for it?

`rest_after_every_event` carries out `decide` until it rests after every join and departure, and compares the result
with CG-BP from scratch: how far apart are they, and how many blocks had to be loaded.  All follows from the seed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...perf import PerfModel
from ...place.cgbp import InfeasiblePlacementError, place
from ...place.loaded import cheapest_chains
from ...place.moves import Reason, ReplanPolicy, after_move
from ...place.rule import decide
from ...place.view import PlanningView
from ...place.windows import range_rows
from ...swarm import Swarm
from ..worlds.population import Population


@dataclass(frozen=True, slots=True)
class RestReport:
    """The swarm at rest after one event. Distances are ratios minus one; None where nothing can be placed."""

    event: str
    peers: int
    concurrency: int
    moves: int
    loaded_blocks: int
    loaded_by_newcomer: int
    """Blocks of these that the joining peer itself had to load, whatever the rule."""
    mean_distance: float | None
    """Predicted mean request time, among as many as R is planned for, over the one of CG-BP from scratch."""
    bound_distance: float | None
    """Farthest client's token time on its cheapest chain over Theorem 2's bound for CG-BP from scratch."""


def rest_after_every_event(
    population: Population,
    peers: int,
    events: int,
    rng: random.Random,
    policy: ReplanPolicy | None = None,
    on_rest: Callable[[Swarm], None] | None = None,
) -> tuple[RestReport, ...]:
    """Start with `peers` peers at rest; then join or lose one at a time, with equal odds, between 60 % and 140 % of
    that number.  `on_rest` sees every swarm at rest."""
    policy = policy or ReplanPolicy()
    numbers = itertools.count()
    crowd = [population.peer(next(numbers), rng) for _ in range(peers)]
    swarm, _, _ = _settle(Swarm(population.model, tuple(crowd)), policy)
    reports = []
    for _ in range(events):
        joins = len(swarm.peers) < 0.6 * peers or (len(swarm.peers) < 1.4 * peers and rng.random() < 0.5)
        if joins:
            newcomer = population.peer(next(numbers), rng)
            swarm = replace(swarm, peers=(*swarm.peers, newcomer))
        else:
            gone = rng.randrange(len(swarm.peers))
            swarm = replace(swarm, peers=swarm.peers[:gone] + swarm.peers[gone + 1 :])
        swarm, moves, by_newcomer = _settle(swarm, policy)
        distance = distance_from_scratch(swarm, policy)
        reports.append(
            RestReport(
                event="join" if joins else "departure",
                peers=len(swarm.peers),
                concurrency=distance.concurrency,
                moves=len(moves),
                loaded_blocks=sum(moves),
                loaded_by_newcomer=by_newcomer,
                mean_distance=distance.mean,
                bound_distance=distance.bound,
            )
        )
        if on_rest is not None:
            on_rest(swarm)
    return tuple(reports)


def _settle(swarm: Swarm, policy: ReplanPolicy) -> tuple[Swarm, list[int], int]:
    """The swarm at rest, the blocks loaded in each move, and how many of them joining peers loaded."""
    loads = []
    by_newcomers = 0
    while (move := decide(swarm, policy)) is not None:
        loads.append(move.loaded_blocks)
        if move.reason is Reason.JOIN:
            by_newcomers += move.loaded_blocks
        swarm = after_move(swarm, move)
        if len(loads) > 3 * len(swarm.peers):
            raise RuntimeError(f"the swarm is not at rest after {len(loads)} moves of {len(swarm.peers)} peers")
    return swarm, loads, by_newcomers


@dataclass(frozen=True, slots=True)
class Distance:
    """How much slower a swarm is than placed from scratch: ratios minus one, None where nothing can be placed."""

    concurrency: int
    mean: float | None
    bound: float | None


def distance_from_scratch(swarm: Swarm, policy: ReplanPolicy) -> Distance:
    """Compare the present ranges with CG-BP's for the same R. Negative where the present ones are better."""
    view = PlanningView.of(swarm, policy)
    if view is None:
        return Distance(1, None, None)
    try:
        plan = place(view.model, view.concurrency)
    except InfeasiblePlacementError:
        return Distance(view.concurrency, None, None)
    scratch = range_rows(plan.ranges)
    mean = view.request_times(view.ranges).among_others / view.request_times(scratch).among_others - 1.0
    walk = float(cheapest_chains(_farthest_client_token(view.model), view.ranges).seconds[0])
    return Distance(view.concurrency, mean, walk / plan.bound_seconds - 1.0)


def _farthest_client_token(model: PerfModel) -> PerfModel:
    """One client, as far from every peer as the farthest, and requests of one decoded token: Theorem 2's setting."""
    farthest = model.rtt_seconds.max(axis=0, keepdims=True)
    zeros = np.zeros_like(model.prefill_seconds)
    return replace(
        model, new_tokens=2, rtt_seconds=farthest, prefill_rtt_seconds=np.zeros_like(farthest), prefill_seconds=zeros
    )
