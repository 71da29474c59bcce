"""Figures of routing and placement: decision times, simulation speed, policies compared, the gap to the optimum.

Sections: routes (on the client's own path, see `routes.py`), placement, simulation, policies, optimum, map (pings and
chains, see `live_map.py`).  Everything from fixed seeds.  Times are CPU times of one core where the key says ms or cpu.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from blockswarm.routing.papers.instances import Instance
from blockswarm.routing.papers.milp import NoSolutionError, solve_bprr
from blockswarm.routing.perf import PerfModel
from blockswarm.routing.place import cgbp
from blockswarm.routing.place import rule as replan
from blockswarm.routing.sim.runs.policies import prepare
from blockswarm.routing.sim.runs.published import no_progress
from blockswarm.routing.sim.studies.compare import run_policy
from blockswarm.routing.sim.worlds.cluster import clustered, scattered
from blockswarm.routing.sim.worlds.geography import bundled_topology
from blockswarm.routing.sim.worlds.scenario import ModelShape, Scenario
from blockswarm.routing.sim.worlds.workload import Lengths
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    Coordinate,
    ModelSpec,
    PeerId,
    PeerSpec,
    RequestSpec,
    Swarm,
)

from .live_map import live_map
from .routes import routes
from .turns import turns

PEERS, BLOCKS, PER_PEER = 1000, 80, 8


def timed(action: Callable[[int], object], repeats: int) -> dict[str, float]:
    """CPU milliseconds of an action (one thread does the work), after one run that is not counted."""
    action(0)
    times = []
    for number in range(1, repeats + 1):
        begin = time.process_time()
        action(number)
        times.append((time.process_time() - begin) * 1e3)
    return {"p50_ms": float(np.median(times)), "p99_ms": float(np.quantile(times, 0.99)), "runs": repeats}


# --- placement ---------------------------------------------------------------------------------------------------


def random_swarm(rng: np.random.Generator) -> Swarm:
    """1,000 peers, on average 100 per block."""
    peers = []
    for number in range(PEERS):
        size = int(rng.integers(PER_PEER // 2, PER_PEER * 3 // 2 + 1))
        start = int(rng.integers(0, BLOCKS - size + 1))
        peers.append(
            PeerSpec(
                id=PeerId(f"peer{number:04d}"),
                blocks=BlockRange(start, start + size),
                cost=ComputeCost(float(rng.uniform(0.001, 0.02)), prefill_fixed=0.01, prefill_per_token=1e-4),
                memory_bytes=float(rng.uniform(6e9, 24e9)),
                kv_tokens_total=12_000,
                kv_tokens_free=12_000,
                coordinate=Coordinate(tuple(rng.normal(0, 0.03, 3).tolist()), float(rng.uniform(0, 0.01)), 0.1),
                client_centroids=(Coordinate((0.0, 0.0, 0.0), 0.005, 0.1),),
                concurrency=2.0,
            )
        )
    return Swarm(ModelSpec(BLOCKS, 0.5e9, 4096.0), tuple(peers))


def placement() -> dict[str, Any]:
    """One placement from scratch (CG-BP), one re-planning decision, and a turn of a peer's agent (see `turns.py`), for
    1,000 peers x 80 blocks."""
    rng = np.random.default_rng(7)
    swarm = random_swarm(rng)
    rtt = np.array([client_rtts(swarm, rng) for _ in range(4)])
    model = PerfModel.of_swarm(swarm, request=RequestSpec(128, 128), client_rtt_seconds=rtt)
    return {
        "cgbp": timed(lambda _: cgbp.place(model, 20), 20),
        "replan": timed(lambda _: replan.decide(swarm), 10),
        "turn": turns(swarm),
    }


def client_rtts(swarm: Swarm, rng: np.random.Generator) -> list[float]:
    """A client at a random place."""
    here = Coordinate(tuple(rng.normal(0, 0.03, 3).tolist()), 0.005)
    return [here.rtt_seconds(peer.coordinate) for peer in swarm.peers if peer.coordinate is not None]


# --- simulation speed -------------------------------------------------------------------------------------------


def on_map(name: str, map_name: str, servers: int, rate: float, **fields: Any) -> Scenario:
    """Servers scattered over a published map, otherwise the published defaults."""
    rtt = bundled_topology(map_name).rtt_seconds()
    return scenario(name, lambda rng: scattered(rtt, servers, 0.2, 1, rng), rate, **fields)


def scenario(name: str, place: Callable[[np.random.Generator], Any], rate: float, **fields: Any) -> Scenario:
    """A scenario with the published defaults."""
    defaults = Scenario(
        name=name,
        seed=11,
        runs=3,
        policies=(),
        shape=ModelShape(),
        place=place,
        prompt=Lengths(20),
        answer=Lengths(128),
        requests=100,
        requests_per_second=rate,
        trace=None,
        count_tokens=False,
        concurrency=None,
        initial_seconds=0.07,
        allocation_seconds=60.0,
        petals_allocation_seconds=250.0,
    )
    return replace(defaults, **fields)


def simulation(requests: int) -> dict[str, Any]:
    """Requests per second of wall time, and the wall time of a long run."""
    runs = [(100, requests, "ours"), (100, requests, "ours_chains"), (60, 20_000, "proposed")]
    runs += [(100, 20_000, "proposed"), (1000, 500, "proposed"), (1000, 200, "ours")]
    return {f"{policy}_{servers}_peers": simulated(servers, count, policy) for servers, count, policy in runs}


def simulated(servers: int, requests: int, policy: str) -> dict[str, Any]:
    """One run, and what it took; of 1,000 peers with R given, as our rule's search for R takes minutes there."""
    instance = speed_instance(servers, requests)
    if servers >= 1000:
        instance = replace(instance, requests_per_second=None, concurrency=100)
    prepared = prepare(instance, policy, zero_fixed_delay=True)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    prepared.run(no_progress)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    print(f"{policy}, {servers} peers: {requests} requests in {cpu:.1f} s of CPU", file=sys.stderr, flush=True)
    return {
        "requests": requests,
        "wall_seconds": seconds,
        "cpu_seconds": cpu,
        "requests_per_cpu_second": requests / cpu,
    }


def speed_instance(servers: int, requests: int) -> Instance:
    """Servers on a synthetic map, loaded to about a third of what they carry."""
    rng = np.random.default_rng(servers)
    where = rng.uniform(0, 0.05, (servers + 1, 2))
    rtt = np.sqrt(((where[:, None] - where) ** 2).sum(axis=2))
    base = scenario("speed", lambda r: scattered(rtt, servers, 0.2, 1, r), 0.02 * servers, requests=requests, runs=1)
    return base.instance(0)


# --- policies ---------------------------------------------------------------------------------------------------

POLICIES = ("petals", "proposed", "ours", "ours_chains")


def policies() -> dict[str, Any]:
    """Seconds per token on the published set-ups, both delay settings; `never_worse` names where ours is beaten."""
    cases = [
        on_map("abovenet_9", "abovenet", 9, 0.5),
        on_map("abovenet_15", "abovenet", 15, 0.5, answer=Lengths(64)),
        on_map("bellcanada_19", "bellcanada", 19, 0.5),
        on_map("gtsce_60", "gtsce", 60, 0.5),
        on_map("gtsce_60_fast_arrivals", "gtsce", 60, 2.0),
        scenario("clustered_2_7", lambda rng: clustered(2, 7), 0.1, prompt=Lengths(10), initial_seconds=0.1),
        scenario("clustered_5_21", lambda rng: clustered(5, 21), 0.5, prompt=Lengths(10), initial_seconds=0.1),
    ]
    report: dict[str, Any] = {}
    beaten = []
    for case in cases:
        for zero in (False, True):
            rows = {policy: run_policy(case, policy, zero_fixed_delay=zero)[0] for policy in POLICIES}
            key = f"{case.name}/{'zero' if zero else 'published'}"
            report[key] = {p: row.summary.per_token_seconds if row.summary else None for p, row in rows.items()}
            best = min((report[key][p] for p in ("petals", "proposed") if report[key][p] is not None), default=np.inf)
            beaten += [f"{key}: {p}" for p in ("ours", "ours_chains") if (report[key][p] or np.inf) > best * (1 + 1e-9)]
    return report | {"beaten_in": beaten}


# --- the gap to the optimum -------------------------------------------------------------------------------------


def optimum(instances: int) -> dict[str, Any]:
    """Time of all requests present at once: CG-BPRR, and CG-BP with our R, over the exact program's optimum."""
    rng = np.random.default_rng(5)
    gaps: dict[str, list[float]] = {"cg_bprr": [], "ours": []}
    solved = proven = 0
    while solved < instances:
        model, requests = small_instance(rng)
        try:
            best = solve_bprr(model, [requests], time_limit_seconds=20.0)
            found = {"cg_bprr": offline_seconds(model, requests, requests)}
            found["ours"] = min(offline_seconds(model, r, requests) for r in our_candidates(model, requests))
        except (NoSolutionError, cgbp.InfeasiblePlacementError):
            continue
        solved += 1
        proven += best.gap <= 1e-4
        for policy, seconds in found.items():
            gaps[policy].append(seconds / best.total_seconds - 1)
    return {
        policy: {"median": float(np.median(found)), "worst": float(np.max(found))} for policy, found in gaps.items()
    } | {"instances": solved, "proven_optimal": proven}


def small_instance(rng: np.random.Generator) -> tuple[PerfModel, int]:
    """3 servers, 4 to 6 blocks, 2 or 3 requests of one client."""
    n, blocks = 3, int(rng.integers(4, 7))
    rtt = rng.integers(5, 80, (1, n)) / 1e3
    model = PerfModel(
        num_blocks=blocks,
        block_bytes=1e9,
        session_bytes=0.25e9,
        new_tokens=10,
        memory_bytes=rng.integers(3, 9, n) * 1e9,
        block_limit=np.full(n, blocks, dtype=np.int64),
        decode_seconds=rng.integers(2, 20, n) / 1e3,
        prefill_seconds=rng.integers(2, 20, n) / 1e3,
        rtt_seconds=rtt,
        prefill_rtt_seconds=rtt,
    )
    return model, int(rng.integers(2, 4))


def our_candidates(model: PerfModel, requests: int) -> list[int]:
    """Our own rule offline: the R >= the number of requests with the best chain (all fit at once by design)."""
    return [r for r in cgbp.distinct_concurrencies(model) if r >= requests] or [requests]


def offline_seconds(model: PerfModel, concurrency: int, requests: int) -> float:
    """Objective of the offline problem for CG-BP with that R: everyone on the cheapest chain."""
    plan = cgbp.place(model, concurrency)
    chain = cgbp.cheapest_token_chain(model, plan.ranges, 0)
    assert chain is not None
    return requests * model.new_tokens * chain.cost


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench_routing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--only", choices=["routes", "placement", "simulation", "policies", "optimum", "map"], action="append"
    )
    parser.add_argument("--requests", type=int, default=1_000_000, help="length of the long simulation")
    parser.add_argument("--instances", type=int, default=100, help="small instances for the gap to the optimum")
    parser.add_argument("--repeats", type=int, default=200, help="requests that are timed on each snapshot")
    chosen = parser.parse_args()
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "routes": lambda: routes(chosen.repeats),
        "placement": placement,
        "simulation": lambda: simulation(chosen.requests),
        "policies": policies,
        "optimum": lambda: optimum(chosen.instances),
        "map": live_map,
    }
    report = {}
    for name in chosen.only or sections:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        report[name] = sections[name]()
    print(json.dumps(report) if chosen.json else json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
