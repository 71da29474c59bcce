"""Chains without a proof: each is one, costs what it says, and is found where walks would come back to their peers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from blockswarm.routing.perf import FloatArray
from blockswarm.routing.route.beam import promising_chain
from blockswarm.routing.route.budget import UNLIMITED, Meter, OverBudgetError, SearchBudget
from blockswarm.routing.route.lattice import Lattice, Spans
from blockswarm.routing.route.passes import Ends, Memory, Pass
from blockswarm.routing.swarm import BlockRange
from support.ticks import Ticks

NUM_BLOCKS = 6


class Case:
    """Peers with room for a few blocks each, and random costs."""

    def __init__(self, seed: int, n: int = 6) -> None:
        rng = np.random.default_rng(seed)
        starts = rng.integers(0, 4, n)
        stops = np.minimum(NUM_BLOCKS, starts + rng.integers(2, NUM_BLOCKS, n))
        self.ranges = [BlockRange(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]
        self.room, self.per_block = rng.integers(1, 4, n), rng.uniform(0, 1, n)
        self.between = rng.uniform(0, 2, (n, n))
        np.fill_diagonal(self.between, np.inf)
        self.ends = Ends(rng.uniform(0, 1, n), rng.uniform(0, 1, n))
        self.lattice = Lattice.of(Spans.of(NUM_BLOCKS, self.ranges), self.between)

    @property
    def cost(self) -> FloatArray:
        fits = self.lattice.length <= self.room[self.lattice.peer]
        return np.where(fits, self.per_block[self.lattice.peer] * self.lattice.length, np.inf)

    @property
    def onward(self) -> FloatArray:
        return Pass(Memory.of(self.lattice, ()), self.cost[None], self.ends).onward(0)

    def seconds(self, chain: list[tuple[int, BlockRange]]) -> float:
        ways = sum(self.between[i, j] for (i, _), (j, _) in itertools.pairwise(chain))
        compute = sum(self.per_block[j] * len(blocks) for j, blocks in chain)
        return float(self.ends.enter[chain[0][0]] + ways + compute + self.ends.leave[chain[-1][0]])

    def best(self, at: int = 0, chain: tuple[tuple[int, BlockRange], ...] = ()) -> float:
        """Over every chain of distinct peers; infinite if there is none."""
        if at == NUM_BLOCKS:
            return self.seconds(list(chain))
        free = (j for j, hosted in enumerate(self.ranges) if at in hosted and all(j != used for used, _ in chain))
        return min(
            (
                self.best(stop, (*chain, (j, BlockRange(at, stop))))
                for j in free
                for stop in range(at + 1, min(self.ranges[j].stop, at + int(self.room[j])) + 1)
            ),
            default=float("inf"),
        )


@pytest.mark.parametrize("seed", range(30))
def test_a_chain_uses_no_peer_twice_and_costs_what_it_says(seed: int) -> None:
    case = Case(seed)
    best = case.best()
    found = promising_chain(case.lattice, case.cost, case.onward, case.ends, UNLIMITED)
    assert (found is None) == (best == float("inf"))  # so few peers that no partial chain is dropped
    if found is not None:
        chain = [case.lattice.segment(index) for index in found.segments]
        assert [blocks.start for _, blocks in chain] == [0, *(blocks.stop for _, blocks in chain[:-1])]
        assert chain[-1][1].stop == NUM_BLOCKS
        assert len({j for j, _ in chain}) == len(chain)
        assert all(case.ranges[j].covers(blocks) and len(blocks) <= case.room[j] for j, blocks in chain)
        assert found.cost == pytest.approx(case.seconds(chain))
        assert found.cost == pytest.approx(best)


def test_a_narrow_beam_still_gives_a_chain_if_not_the_best() -> None:
    costs = []
    for seed in range(30):
        case = Case(seed)
        found = promising_chain(case.lattice, case.cost, case.onward, case.ends, UNLIMITED, width=2)
        if found is not None:
            costs.append(found.cost / case.best())
    assert min(costs) == pytest.approx(1.0)
    assert max(costs) > 1.0 + 1e-9


def test_the_beam_ends_with_its_time() -> None:
    case = Case(1)
    with pytest.raises(OverBudgetError):
        promising_chain(case.lattice, case.cost, case.onward, case.ends, Meter(SearchBudget(seconds=2.0), Ticks()))
