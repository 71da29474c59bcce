"""The exact programs, solved by HiGHS: placement and routing together (BPRR), and routing for a given placement.

Source: BPRR paper (arXiv 2512.21884), offline problem and its linearisation.  NP-hard; for small cases only.
Inside this module blocks count from 1 as in the paper (a_j first block, m_j blocks, source a=0 m=1, sink a=L+1 m=1).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..hops import SOURCE, HopGraph
from ..perf import PerfModel, Segment
from ..swarm import BlockRange

MOST_MATRIX_ENTRIES = 10_000_000
"""Larger programs are refused: HiGHS would not finish."""


class TooLargeError(ValueError):
    """The program has too many coefficients to be worth starting."""


class NoSolutionError(ValueError):
    """The program is infeasible, or no solution was found within the time limit (the message says which)."""


@dataclass(frozen=True)
class MilpResult:
    """The best solution found; optimal up to `gap`."""

    ranges: tuple[BlockRange | None, ...]
    chains: tuple[tuple[Segment, ...], ...]
    """One chain per request, in order of client."""
    total_seconds: float
    """Objective: sum over requests of l_max x per-token time."""
    gap: float
    """Relative gap between the incumbent and the proven bound; 0 for a proven optimum."""


@dataclass
class _Program:
    """min cost x, subject to lower <= row x <= upper; grown row by row."""

    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    integral: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def variable(self, low: float, high: float, *, integral: bool, cost: float = 0.0) -> int:
        self.cost.append(cost)
        self.lower.append(low)
        self.upper.append(high)
        self.integral.append(int(integral))
        return len(self.cost) - 1

    def at_most(self, terms: dict[int, float], bound: float) -> None:
        self.rows.append((terms, -np.inf, bound))

    def equal(self, terms: dict[int, float], value: float) -> None:
        self.rows.append((terms, value, value))

    def solve(self, time_limit_seconds: float) -> tuple[np.ndarray, float, float]:
        """(x, objective, gap). Raises NoSolutionError."""
        from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
        from scipy.sparse import csr_array  # type: ignore[import-untyped]

        values = [value for terms, _, _ in self.rows for value in terms.values()]
        columns = [column for terms, _, _ in self.rows for column in terms]
        starts = np.cumsum([0, *(len(terms) for terms, _, _ in self.rows)])
        matrix = csr_array((values, columns, starts), shape=(len(self.rows), len(self.cost)))
        low, high = (np.array([row[side] for row in self.rows]) for side in (1, 2))
        with _without_solver_chatter():
            found = milp(
                np.array(self.cost),
                integrality=np.array(self.integral),
                bounds=Bounds(np.array(self.lower), np.array(self.upper)),
                constraints=LinearConstraint(matrix, low, high),
                options={"time_limit": time_limit_seconds},
            )
        if found.x is None:
            reason = "infeasible" if found.status == 2 else f"unsolved after {time_limit_seconds:g} s"
            raise NoSolutionError(f"the exact program is {reason}")
        return found.x, float(found.fun), float(found.mip_gap or 0.0)


@contextlib.contextmanager
def _without_solver_chatter() -> Iterator[None]:
    """HiGHS prints debugging lines on the process's stdout, whatever its options say; they go nowhere."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        libc.fflush(None)  # what the solver left in C's buffer
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@dataclass(frozen=True, slots=True)
class _Link:
    """One request's link and its variables; None where an endpoint makes the product a multiple of f."""

    origin: int | None
    target: int | None
    f: int
    alpha: int | None
    beta: int | None
    gamma: int | None
    delta: int | None

    def blocks(self) -> dict[int, float]:
        """alpha + gamma - beta - delta = k f, of a link into a server."""
        assert self.alpha is not None
        assert self.gamma is not None
        if self.beta is None or self.delta is None:
            return {self.alpha: 1.0, self.gamma: 1.0, self.f: -1.0}
        return {self.alpha: 1.0, self.gamma: 1.0, self.beta: -1.0, self.delta: -1.0}


def solve_bprr(model: PerfModel, requests_per_client: Sequence[int], *, time_limit_seconds: float) -> MilpResult:
    """Placement and routing of all requests at once; servers too small for one block are left out.

    Raises TooLargeError and NoSolutionError.  Block limits of the model apply.
    """
    servers = [j for j in range(model.num_peers) if model.memory_bytes[j] >= model.block_bytes * (1 - 1e-12)]
    servers = [j for j in servers if model.block_limit[j] > 0]
    clients = [c for c, count in enumerate(requests_per_client) for _ in range(count)]
    n, num_blocks = len(servers), model.num_blocks
    links_per_request = n * n + n
    if (5 * len(clients) * links_per_request + 2 * n) * (2 * n + 14 * len(clients) * links_per_request) > 1e4 * (
        MOST_MATRIX_ENTRIES
    ):
        raise TooLargeError(f"{len(clients)} requests on {n} servers are too many for the exact program")
    program = _Program()
    first = [program.variable(1, num_blocks, integral=True) for _ in servers]
    size = [program.variable(1, float(model.block_limit[j]), integral=True) for j in servers]
    for a, m in zip(first, size, strict=True):
        program.at_most({a: 1, m: 1}, num_blocks + 1)
    block_bytes, session_bytes = float(model.block_bytes), float(model.session_bytes)
    memory: list[dict[int, float]] = [{m: block_bytes} for m in size]
    all_links = []
    for client in clients:
        links = _links(program, model, client, servers)
        all_links.append(links)
        _flow(program, links, n)
        for link in links:
            _hop_rules(program, link, first, size, num_blocks)
            if link.target is not None:
                for variable, sign in link.blocks().items():
                    terms = memory[link.target]
                    terms[variable] = terms.get(variable, 0.0) + sign * session_bytes
    for j, terms in zip(servers, memory, strict=True):
        scale = session_bytes  # keeps the coefficients near 1, whatever the unit
        program.at_most({v: c / scale for v, c in terms.items()}, float(model.memory_bytes[j]) / scale + 1e-9)
    x, total, gap = program.solve(time_limit_seconds)
    ranges: list[BlockRange | None] = [None] * model.num_peers
    for j, a, m in zip(servers, first, size, strict=True):
        ranges[j] = BlockRange(round(x[a]) - 1, round(x[a]) - 1 + round(x[m]))
    chains = tuple(_chain(links, x, servers, ranges) for links in all_links)
    return MilpResult(tuple(ranges), chains, total, gap)


def _links(program: _Program, model: PerfModel, client: int, servers: Sequence[int]) -> list[_Link]:
    """The variables of one request: f and the products alpha = a_j f, beta = a_i f, gamma = m_j f, delta = m_i f."""
    tokens, num_blocks = model.new_tokens, model.num_blocks
    visit, per_block = model.token_hop_seconds(client)
    links = []
    for i in [None, *range(len(servers))]:
        for j in [*range(len(servers)), None]:
            if i == j:
                continue

            def product(high: float, unit_cost: float) -> int:
                return program.variable(0, high, integral=False, cost=unit_cost)

            if j is None:
                f = program.variable(0, 1, integral=True)
                beta, delta = product(num_blocks, 0), product(num_blocks, 0)
                links.append(_Link(i, None, f, None, beta, None, delta))
                continue
            compute = tokens * float(per_block[servers[j]])
            trip = tokens * float(visit[servers[j]])
            alpha, gamma = product(num_blocks + 1, compute), product(num_blocks, compute)
            if i is None:  # beta = 0 and delta = f
                f = program.variable(0, 1, integral=True, cost=trip - compute)
                links.append(_Link(None, j, f, alpha, None, gamma, None))
            else:
                f = program.variable(0, 1, integral=True, cost=trip)
                beta, delta = product(num_blocks, -compute), product(num_blocks, -compute)
                links.append(_Link(i, j, f, alpha, beta, gamma, delta))
    return links


def _flow(program: _Program, links: Sequence[_Link], n: int) -> None:
    program.equal({link.f: 1 for link in links if link.origin is None}, 1)
    program.equal({link.f: 1 for link in links if link.target is None}, 1)
    for j in range(n):
        terms = {link.f: 1.0 for link in links if link.target == j}
        terms |= {link.f: -1.0 for link in links if link.origin == j}
        program.equal(terms, 0)


def _hop_rules(program: _Program, link: _Link, a: Sequence[int], m: Sequence[int], num_blocks: int) -> None:
    """Constraints 4 and 5 (a feasible hop) and 6 (the products)."""
    i, j, f = link.origin, link.target, link.f
    if j is not None:
        assert link.alpha is not None
        assert link.gamma is not None
        _product(program, link.alpha, a[j], f, num_blocks + 1)
        _product(program, link.gamma, m[j], f, num_blocks)
        if i is None:
            program.at_most({link.alpha: 1}, 1)
        else:
            program.at_most({link.alpha: 1, a[i]: -1, m[i]: -1}, 0)
    elif i is not None:
        program.at_most({f: num_blocks + 1, a[i]: -1, m[i]: -1}, 0)
    if i is not None:
        assert link.beta is not None
        assert link.delta is not None
        _product(program, link.beta, a[i], f, num_blocks)
        _product(program, link.delta, m[i], f, num_blocks)
        if j is not None:
            program.at_most({link.beta: 1, link.delta: 1, a[j]: -1, m[j]: -1}, -1)
    elif j is not None:  # source: beta + delta = f, a_j + m_j - 1 >= 1 always holds
        return


def _product(program: _Program, z: int, x: int, f: int, high: float) -> None:
    """z = x f for a binary f and 0 <= x <= high."""
    program.at_most({z: 1, f: -high}, 0)
    program.at_most({z: 1, x: -1}, 0)
    program.at_most({x: 1, f: high, z: -1}, high)


def _chain(
    links: Sequence[_Link], x: np.ndarray, servers: Sequence[int], ranges: Sequence[BlockRange | None]
) -> tuple[Segment, ...]:
    follows = {link.origin: link.target for link in links if x[link.f] > 0.5}
    chain: list[Segment] = []
    at, block = follows[None], 0
    while at is not None:
        hosted = ranges[servers[at]]
        assert hosted is not None
        chain.append((servers[at], BlockRange(block, hosted.stop)))
        at, block = follows[at], hosted.stop
    return tuple(chain)


def solve_routing(
    model: PerfModel,
    ranges: tuple[BlockRange | None, ...],
    requests_per_client: Sequence[int],
    *,
    time_limit_seconds: float,
) -> MilpResult:
    """The optimal routing of all requests for a given placement: integer flows g^c_ij over the feasible hops."""
    hops = HopGraph(model.num_blocks, ranges).hops()
    program = _Program()
    last = [j for j, _ in hops if ranges[j] is not None and ranges[j].stop == model.num_blocks]  # type: ignore[union-attr]
    memory: dict[int, dict[int, float]] = {j: {} for j, _ in hops}
    flows: list[dict[tuple[int, int], int]] = []
    for client, count in enumerate(requests_per_client):
        visit, per_block = model.token_hop_seconds(client)
        flow: dict[tuple[int, int], int] = {}
        for j, preds in hops:
            for i, k in preds:
                cost = model.new_tokens * float(visit[j] + per_block[j] * k)
                flow[i, j] = program.variable(0, count, integral=True, cost=cost)
                memory[j][flow[i, j]] = float(k)
        into = {j: {v: 1.0 for (_, target), v in flow.items() if target == j} for j, _ in hops}
        out = {j: {v: -1.0 for (origin, _), v in flow.items() if origin == j} for j, _ in hops}
        program.equal({v: 1.0 for (origin, _), v in flow.items() if origin == SOURCE}, count)
        for j, _ in hops:
            if j in last:
                sink = program.variable(0, count, integral=True)
                out[j][sink] = -1.0
            program.equal(into[j] | out[j], 0)
        flows.append(flow)
    sizes = np.array([len(r) if r is not None else 0 for r in ranges], dtype=np.int64)
    for j, slots in enumerate(model.cache_slots(sizes).tolist()):
        if memory.get(j):
            program.at_most(memory[j], slots)
    x, total, gap = program.solve(time_limit_seconds)
    chains: list[tuple[Segment, ...]] = []
    for flow, count in zip(flows, requests_per_client, strict=True):
        left = {hop: round(x[v]) for hop, v in flow.items()}
        chains += [_take_chain(left, ranges) for _ in range(count)]
    return MilpResult(ranges, tuple(chains), total, gap)


def _take_chain(left: dict[tuple[int, int], int], ranges: Sequence[BlockRange | None]) -> tuple[Segment, ...]:
    """Take one unit of flow off `left`, source to sink."""
    chain: list[Segment] = []
    at, block = SOURCE, 0
    while True:
        onward = next((hop for hop, amount in left.items() if hop[0] == at and amount > 0), None)
        if onward is None:
            return tuple(chain)
        left[onward] -= 1
        at = onward[1]
        hosted = ranges[at]
        assert hosted is not None
        chain.append((at, BlockRange(block, hosted.stop)))
        block = hosted.stop
