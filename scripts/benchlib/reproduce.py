"""The published experiments again, beside ours: what scripts/reproduce_paper runs and writes down."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from blockswarm.routing.papers.instances import Instance
from blockswarm.routing.place.cgbp import InfeasiblePlacementError, mean_request_seconds, place
from blockswarm.routing.place.moves import ReplanPolicy
from blockswarm.routing.place.view import PlanningView
from blockswarm.routing.sim.plots import Distribution, draw, sweep_of
from blockswarm.routing.sim.runs.product import run_exact
from blockswarm.routing.sim.runs.published import RequestResult, no_progress
from blockswarm.routing.sim.studies.agents import ProtocolSetup, run_protocol
from blockswarm.routing.sim.studies.compare import Row, run_policy
from blockswarm.routing.sim.studies.places import Lie, PlacedSwarm
from blockswarm.routing.sim.studies.rest import RestReport, rest_after_every_event
from blockswarm.routing.sim.worlds.cluster import Cluster, clustered, scattered
from blockswarm.routing.sim.worlds.geography import TOPOLOGIES, Planet, bundled_topology, violation_fraction
from blockswarm.routing.sim.worlds.population import BLOOM, Population
from blockswarm.routing.sim.worlds.scenario import ModelShape, Scenario
from blockswarm.routing.sim.worlds.workload import Lengths
from blockswarm.routing.swarm import Swarm

from .reproduce_text import BEGINNING, COORDINATES, DESIGN, NOT_REPRODUCED, PROTOCOL, PUSH, REST

POLICIES = (
    "petals",
    "petals_optimized_order",
    "petals_optimized_number",
    "petals_optimized_rr",
    "proposed",
    "ours",
    "ours_push",
    "ours_chains",
)
OURS = ("ours", "ours_push", "ours_chains")
DEFAULT_SERVERS = {"abovenet": 9, "bellcanada": 19, "gtsce": 60}
SERVERS = {
    "abovenet": (6, 10, 15, 20, 22),
    "bellcanada": (10, 15, 20, 25, 40),
    "gtsce": (10, 15, 20, 25, 40),
}
FAST_FRACTIONS = {
    "abovenet": (0.1, 0.2, 0.3, 0.4, 0.5),
    "bellcanada": (0.1, 0.2, 0.3, 0.4, 0.5),
    "gtsce": (0.01, 0.03, 0.06, 0.1, 0.3),
}
RATES = (0.05, 0.1, 0.5, 1.0, 2.0)
ANSWERS = (64, 128, 256, 384, 512)
CONCURRENCIES = (2, 4, 8, 16, 32, 48, 64, 96, 128)

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Experiment:
    """Runs policies on scenarios once and remembers the rows."""

    runs: int
    rows: dict[tuple[str, str, bool], Row]
    results: dict[tuple[str, str, bool], list[RequestResult]]

    def row(self, scenario: Scenario, policy: str, zero: bool) -> Row:
        key = scenario.name, policy, zero
        if key not in self.rows:
            hint(f"  {len(self.rows) + 1}: {scenario.name}, {policy}, {'zero' if zero else 'published'} delays")
            self.rows[key], self.results[key] = run_policy(
                replace(scenario, runs=self.runs), policy, zero_fixed_delay=zero
            )
        return self.rows[key]

    def per_token(self, scenario: Scenario, policy: str, zero: bool) -> float | None:
        summary = self.row(scenario, policy, zero).summary
        return None if summary is None else summary.per_token_seconds


# --- scenarios ---------------------------------------------------------------------------------------------------


def scenario(name: str, place_servers: Callable[[np.random.Generator], Cluster], **fields: object) -> Scenario:
    """A scenario with the published defaults."""
    defaults = Scenario(
        name=name,
        seed=2512,
        runs=1,
        policies=POLICIES,
        shape=ModelShape(),
        place=place_servers,
        prompt=Lengths(20),
        answer=Lengths(128),
        requests=100,
        requests_per_second=0.5,
        trace=None,
        count_tokens=False,
        concurrency=None,
        initial_seconds=0.07,
        allocation_seconds=60.0,
        petals_allocation_seconds=250.0,
    )
    return replace(defaults, **fields)


def on_map(name: str, servers: int, fast: float = 0.2, label: str = "", **fields: object) -> Scenario:
    """Servers at random nodes of a map, one other node is the client."""
    rtt = bundled_topology(name).rtt_seconds()
    title = f"{name}, {servers} servers{label}"
    return scenario(title, lambda rng: scattered(rtt, servers, fast, 1, rng), **fields)


def tables() -> list[Scenario]:
    """The set-ups of the published tables: the testbed's clusters, and nine servers on each map."""
    found = []
    for fast, slow, petals_delay in ((2, 7, 250.0), (5, 21, 350.0)):
        for rate in (0.1, 0.5):
            found.append(
                scenario(
                    f"clustered, {fast} fast + {slow} slow, {rate}/s",
                    lambda rng, fast=fast, slow=slow: clustered(fast, slow),
                    prompt=Lengths(10),
                    requests_per_second=rate,
                    initial_seconds=0.1,
                    petals_allocation_seconds=petals_delay,
                )
            )
    for name in TOPOLOGIES:
        for rate in (0.1, 0.5):
            found.append(on_map(name, 9, label=f", {rate}/s", requests_per_second=rate))
    return found


def sweeps(name: str) -> dict[str, tuple[tuple[float, ...], list[Scenario]]]:
    """The sweeps of a map: what is varied -> (values, scenarios)."""
    n = DEFAULT_SERVERS[name]
    return {
        "servers": (SERVERS[name], [on_map(name, c) for c in SERVERS[name]]),
        "fraction of fast servers": (
            FAST_FRACTIONS[name],
            [on_map(name, n, f, label=f", {f:g} fast") for f in FAST_FRACTIONS[name]],
        ),
        "requests per second": (
            RATES,
            [
                on_map(name, n, label=f", {r:g}/s", requests_per_second=r, requests=max(10, round(200 * r)))
                for r in RATES
            ],
        ),
        "generated tokens": (
            ANSWERS,
            [on_map(name, n, label=f", {a} tokens", answer=Lengths(a)) for a in ANSWERS],
        ),
    }


def design_sweep(name: str) -> tuple[tuple[float, ...], list[Scenario]]:
    """The published policy with R given instead of chosen."""
    n = DEFAULT_SERVERS[name]
    return CONCURRENCIES, [on_map(name, n, label=f", R = {r}", concurrency=r) for r in CONCURRENCIES]


# --- writing -----------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def volunteers(blocks: int) -> Population:
    """Peers with less memory than the published servers: no few of them hold the model."""
    return Population(
        replace(BLOOM, num_blocks=blocks), fast_memory_bytes=(16e9, 24e9), slow_memory_bytes=(6e9, 8e9, 12e9)
    )


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def comparison_table(experiment: Experiment, scenarios: Sequence[Scenario], zero: bool) -> str:
    """Seconds per token of every policy, and how much less the published and our policy need than PETALS."""
    rows = []
    for scenario in scenarios:
        values = {policy: experiment.per_token(scenario, policy, zero) for policy in POLICIES}
        petals = values["petals"]
        savings = [
            percent(1 - value / petals, 0) if petals is not None and value is not None else "–"
            for value in (values["proposed"], values["ours"])
        ]
        rows.append([scenario.name, *(number(value) for value in values.values()), *savings])
    return table(["seconds per token", *POLICIES, "proposed saves", "ours saves"], rows)


def sweep_section(experiment: Experiment, folder: Path, name: str) -> str:
    """The sweeps of one map: a plot and a table for each delay setting."""
    text = f"### {name}\n\n"
    for zero, what in ((False, "published fixed delays"), (True, "zero fixed delays")):
        panels = []
        scenarios: list[Scenario] = []
        for varied, (values, cases) in sweeps(name).items():
            points = {
                value: {p: experiment.per_token(scenario, p, zero) for p in POLICIES}
                for value, scenario in zip(values, cases, strict=True)
            }
            panels.append(sweep_of(f"{name}: {varied}", varied, points))
            scenarios += cases
        file = folder / f"sweeps_{name}_{'zero' if zero else 'published'}.svg"
        draw(file, panels, "seconds per token")
        unique = list({scenario.name: scenario for scenario in scenarios}.values())
        text += f"With {what}:\n\n![{name}, {what}]({folder.name}/{file.name})\n\n"
        text += comparison_table(experiment, unique, zero) + "\n"
    return text


def design_section(experiment: Experiment, folder: Path) -> str:
    """R too small, R too large: the published policy over R, and the R that the two rules choose."""
    panels, rows = [], []
    for name in TOPOLOGIES:
        values, cases = design_sweep(name)
        times = [experiment.per_token(scenario, "proposed", True) for scenario in cases]
        base = on_map(name, DEFAULT_SERVERS[name])
        rules = {}
        for policy in ("proposed", "ours"):
            row = experiment.row(base, policy, True)
            chosen = sorted(r for r in row.concurrency if r is not None)
            rules[policy] = (f"{chosen[0]}–{chosen[-1]}" if chosen else "–", experiment.per_token(base, policy, True))
        given = "CG-BP + WS-RR with R given"
        panels.append(sweep_of(f"{name}: R", "R", {r: {given: t} for r, t in zip(values, times, strict=True)}))
        rows.append(
            [name, *(number(t) for t in times)]
            + [f"{number(rules[p][1])} (R {rules[p][0]})" for p in ("proposed", "ours")]
        )
    draw(folder / "design_concurrency.svg", panels, "seconds per token")
    head = ["zero fixed delays", *(f"R = {r}" for r in CONCURRENCIES), "published rule", "ours"]
    return f"![R]({folder.name}/design_concurrency.svg)\n\n" + table(head, rows)


def distribution_section(experiment: Experiment, folder: Path) -> str:
    panels = []
    for name in TOPOLOGIES:
        scenario = on_map(name, 9, label=", 0.5/s")
        samples = {}
        for policy in ("petals", "proposed", *OURS):
            experiment.row(scenario, policy, True)
            found = experiment.results[scenario.name, policy, True]
            samples[policy] = tuple(r.total_seconds / r.new_tokens for r in found)
        panels.append(Distribution(f"{name}, 9 servers", "seconds per token", {k: v for k, v in samples.items() if v}))
    draw(folder / "distributions.svg", panels, "")
    return f"![distributions]({folder.name}/distributions.svg)\n"


def verdict_section(experiment: Experiment) -> str:
    """The published claims against what was simulated, and where ours is beaten."""
    names = sorted({name for name, _, _ in experiment.rows})
    text = ""
    beaten = []
    for zero, what in ((False, "published fixed delays"), (True, "zero fixed delays")):
        savings: dict[str, list[float]] = {policy: [] for policy in POLICIES[1:]}
        for name in names:
            found = {p: experiment.rows.get((name, p, zero)) for p in POLICIES}
            times = {
                p: r.summary.per_token_seconds for p, r in found.items() if r is not None and r.summary is not None
            }
            for policy in savings:
                if policy in times and "petals" in times:
                    savings[policy].append(1 - times[policy] / times["petals"])
            best = min((times[p] for p in ("petals", "proposed") if p in times), default=None)
            for policy in OURS:
                if best is not None and found[policy] is not None:
                    ours = times.get(policy)
                    if ours is None or ours > best * (1 + 1e-9):
                        excess = "infeasible" if ours is None else f"+{percent(ours / best - 1)}"
                        beaten.append([name, what, policy, excess])
        rows = [
            [
                policy,
                str(len(values)),
                percent(float(np.median(values)), 0),
                percent(min(values), 0),
                percent(max(values), 0),
                f"{sum(v > 0.005 for v in values)} / {sum(v < -0.005 for v in values)}",
            ]
            for policy, values in savings.items()
            if values
        ]
        text += f"Time per token saved against PETALS, {what}:\n\n"
        text += table(["policy", "scenarios", "median", "least", "most", "better / worse by 0.5 %"], rows) + "\n"
    text += f"{PUSH}\n{push_table(experiment)}\n"
    text += "Where one of our policies is slower than the better of PETALS and the published policy:\n\n"
    text += table(["scenario", "delays", "policy", "excess"], beaten) if beaten else "Nowhere.\n"
    return text


def push_table(experiment: Experiment) -> str:
    """The time that pushing saves against the same policy through the client, over all scenarios that ran both."""
    rows = []
    for zero, what in ((False, "published fixed delays"), (True, "zero fixed delays")):
        saved = []
        for name, policy, its_zero in sorted(experiment.rows):
            if policy == "ours_push" and its_zero == zero:
                push, hub = (experiment.rows[name, variant, zero].summary for variant in ("ours_push", "ours"))
                if push is not None and hub is not None:
                    saved.append(1 - push.per_token_seconds / hub.per_token_seconds)
        rows.append([what, str(len(saved)), *(percent(f(saved)) for f in (np.median, min, max))])
    return table(["time per token saved", "scenarios", "median", "least", "most"], rows)


# --- coordinates and re-planning -----------------------------------------------------------------------------------


def coordinates_section() -> str:
    rows = []
    cases: list[tuple[str, np.ndarray]] = [(name, bundled_topology(name).rtt_seconds()) for name in TOPOLOGIES]
    for fraction, factor in ((0.0, 2.0), (0.10, 2.0), (0.10, 3.0)):
        planet = Planet(violation_fraction=fraction, violation_factor=factor)
        label = f"planet, 120 nodes, {100 * fraction:.0f} % of the pairs {factor:.0f} times as far"
        cases.append((label, planet.rtt_seconds(120, random.Random(5))))
    for label, rtt in cases:
        noisy = PlacedSwarm(rtt, random.Random(1))
        rows.append(
            [label, percent(violation_fraction(rtt)), _placed(PlacedSwarm(rtt, random.Random(1), jitter=0.0), 60)]
        )
        rows[-1] += [_placed(noisy, 6), _placed(noisy, 54)]
        rng, count = random.Random(2), len(rtt)
        liars = rng.sample(range(1, count), round(count / 10))
        rows[-1].append(_placed(PlacedSwarm(rtt, rng, liars=dict.fromkeys(liars, Lie.CROWD)), 60))
        noisy.run(30)
        rows[-1].append(f"{np.mean(noisy.changes[60:]) / count * 3600 / noisy.turn_seconds:.1f}")
    return table(
        [
            "round trips",
            "pairs with a shorter detour",
            "no noise",
            "noise, 1 min",
            "noise, 10 min",
            "10 % lie",
            "changes",
        ],
        rows,
    )


def _placed(swarm: PlacedSwarm, turns: int) -> str:
    swarm.run(turns)
    quality = swarm.accuracy()
    return f"{percent(quality.median)} / {percent(quality.p90)}"


def simulated_ratio(swarm: Swarm, policy: ReplanPolicy) -> float | None:
    """Mean simulated request time (exact router, FIFO queues, half of R in parallel) over the one of CG-BP from scratch
    with the same R; None where nothing can be placed."""
    view = PlanningView.of(swarm, policy)
    if view is None:
        return None
    try:
        scratch = place(view.model, view.concurrency)
    except InfeasiblePlacementError:
        return None
    ranges = tuple(peer.claim.blocks if peer.claim else peer.blocks for peer in view.peers)
    present = replace(scratch, ranges=ranges, sizes=view.ranges[:, 1] - view.ranges[:, 0])
    rng = np.random.default_rng(1)
    rate = 0.5 * min(view.concurrency, 40) / mean_request_seconds(view.model, scratch.ranges)
    requests = 60
    instance = Instance(
        name="rest",
        model=view.model,
        prompt_tokens=policy.request.prompt_tokens,
        initial_delay_seconds=0.0,
        allocation_seconds=0.0,
        arrivals_seconds=np.cumsum(rng.exponential(1 / rate, requests)),
        request_client=rng.choice(
            view.model.num_clients, requests, p=view.client_weights / view.client_weights.sum()
        ).astype(np.int64),
        requests_per_second=rate,
        concurrency=view.concurrency,
        requests_per_client=None,
        petals=None,
    )
    ours, reference = (
        np.mean([r.total_seconds for r in run_exact(instance, plan, 0.0, no_progress)]) for plan in (present, scratch)
    )
    return float(ours / reference - 1)


def quantiles(values: Sequence[float]) -> list[str]:
    return [percent(float(np.quantile(values, q))) for q in (0.5, 0.95, 1.0)]


def rest_section(events: int, seeds: int) -> str:
    policy = ReplanPolicy()
    rows, loads = [], []
    for peers, blocks in ((10, 24), (25, 70), (60, 70)):
        population = volunteers(blocks)
        reports: list[RestReport] = []
        simulated: list[float] = []

        def measure(swarm: Swarm, into: list[float] = simulated) -> None:
            if (ratio := simulated_ratio(swarm, policy)) is not None:
                into.append(ratio)

        for seed in range(seeds):
            reports += rest_after_every_event(population, peers, events, random.Random(seed), policy, measure)
        label = f"{peers} peers, {blocks} blocks"
        rows += [
            [
                label,
                "Theorem 2's bound",
                *quantiles([r.bound_distance for r in reports if r.bound_distance is not None]),
            ],
            [label, "predicted mean", *quantiles([r.mean_distance for r in reports if r.mean_distance is not None])],
            [label, "simulated mean", *quantiles(simulated)],
        ]
        for event in ("join", "departure"):
            those = [r for r in reports if r.event == event]
            others = [r.loaded_blocks - r.loaded_by_newcomer for r in those]
            loads.append(
                [
                    label,
                    event,
                    str(len(those)),
                    number(float(np.mean([r.loaded_by_newcomer for r in those])), 1),
                    number(float(np.mean(others)), 1),
                    str(max(others)),
                    str(max(r.moves for r in those)),
                ]
            )
    return (
        table(["swarm", "distance from scratch", "median", "p95", "worst"], rows)
        + "\n"
        + table(
            ["swarm", "event", "events", "blocks loaded by the newcomer", "by others, mean", "worst", "most moves"],
            loads,
        )
    )


def protocol_section(seeds: int) -> str:
    rows = []
    population = volunteers(24)
    for loss in (0.0, 0.1, 0.3):
        setup = ProtocolSetup(peers=12, hours=3.0, record_loss=loss)
        found = [run_protocol(population, setup, random.Random(seed)) for seed in range(seeds)]
        hours = sum(r.seconds for r in found) / 3600
        rows.append(
            [
                percent(loss, 0),
                number(hours, 0),
                str(sum(r.joins + r.leaves + r.crashes for r in found)),
                str(sum(r.moves for r in found)),
                str(sum(r.withdrawn_claims for r in found)),
                str(sum(r.last_servers_taken for r in found)),
                str(sum(r.crash_coincidences for r in found)),
                percent(sum(r.uncovered_seconds for r in found) / sum(r.seconds for r in found), 2),
                f"{sum(r.rested for r in found)} of {len(found)}",
            ]
        )
    head = ["records lost", "hours", "joins, leaves, crashes", "moves", "claims withdrawn", "last servers taken"]
    return table([*head, "moves that met a crash", "time with a block uncovered", "rested"], rows)


BEGUN = time.monotonic()
CLEAR_LINE = "\r\x1b[K"


def say(what: str) -> None:
    """A line about the progress, with the minutes since the start."""
    minutes, seconds = divmod(int(time.monotonic() - BEGUN), 60)
    clear = CLEAR_LINE if sys.stderr.isatty() else ""
    print(f"{clear}[{minutes:2}:{seconds:02}] {what}", file=sys.stderr, flush=True)


def hint(what: str) -> None:
    """Show on a terminal, and only there, what is being done; the next line takes its place."""
    if sys.stderr.isatty():
        print(f"{CLEAR_LINE}{what}", end="", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="reproduce_paper", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, to try it out")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where simulator.md and its plots go")
    chosen = parser.parse_args()
    folder = chosen.out / "simulator"
    folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(2 if chosen.quick else 5, {}, {})
    parts = [BEGINNING.format(runs=experiment.runs)]
    say(f"{experiment.runs} runs of every scenario; several minutes in all")
    say("tables ...")
    for zero, what in ((False, "published fixed delays"), (True, "zero fixed delays")):
        parts.append(f"## Tables, {what}\n\n{comparison_table(experiment, tables(), zero)}")
    parts.append("## Sweeps\n")
    for name in TOPOLOGIES:
        say(f"sweeps on {name} ...")
        parts.append(sweep_section(experiment, folder, name))
    say("the choice of R ...")
    parts.append(f"## The choice of R\n\n{DESIGN}\n{design_section(experiment, folder)}")
    parts.append(
        "## Distributions\n\nZero fixed delays, 0.5 requests/s; the axis is logarithmic, and equal curves lie on each"
        f" other, the later ones thinner.\n\n{distribution_section(experiment, folder)}"
    )
    parts.append(f"## What of the published claims holds here\n\n{verdict_section(experiment)}")
    say("coordinates ...")
    parts.append(f"## Network coordinates\n\n{COORDINATES}\n{coordinates_section()}")
    say("re-planning ...")
    rest = rest_section(15 if chosen.quick else 60, 1 if chosen.quick else 8)
    parts.append(f"## Re-planning\n\n{REST}\n{rest}")
    parts.append(f"{PROTOCOL}\n{protocol_section(1 if chosen.quick else 3)}")
    parts.append(NOT_REPRODUCED)
    (chosen.out / "simulator.md").write_text("\n".join(parts), encoding="utf-8")
    say(f"wrote {chosen.out / 'simulator.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
