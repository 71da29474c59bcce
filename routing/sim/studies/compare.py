"""Policies against each other on the same requests, with the published fixed delays and without any."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from ..metrics import Summary, summarise
from ..runs.churn import ChurnReport
from ..runs.policies import InfeasibleError, prepare, run_under_churn
from ..runs.published import NeverRunsError, Progress, RequestResult, no_progress
from ..worlds.scenario import Scenario, SweepPoint


@dataclass(frozen=True, slots=True)
class ChurnSummary:
    """Events and requests of all runs together; see ChurnReport."""

    joins: int
    leaves: int
    crashes: int
    slowdowns: int
    interrupted_requests: int
    repairs: int
    restarts: int
    handovers: int
    mean_repair_seconds: float | None
    p95_repair_seconds: float | None
    unserved_requests: int

    @classmethod
    def of(cls, report: ChurnReport) -> ChurnSummary:
        """The summary of a report."""
        return cls(**{name: getattr(report, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class Row:
    """One policy on one scenario: all runs' requests together; `summary` is None where a run was infeasible."""

    scenario: str
    policy: str
    zero_fixed_delay: bool
    concurrency: tuple[int | None, ...]
    """R of every run."""
    summary: Summary | None
    reason: str = ""
    """Why it is infeasible."""
    churn: ChurnSummary | None = None
    """The effects of churn; None where the scenario has none."""
    point: SweepPoint | None = None
    """None where the scenario belongs to no sweep."""


def run_policy(
    scenario: Scenario, policy: str, *, zero_fixed_delay: bool, progress: Progress = no_progress
) -> tuple[Row, list[RequestResult]]:
    """All Monte Carlo runs of one policy, and every request's result."""
    run_all = _run_steady if scenario.churn_spec is None else _run_churning
    row, results = run_all(scenario, policy, zero_fixed_delay, progress)
    return replace(row, point=scenario.point), results


def _run_steady(
    scenario: Scenario, policy: str, zero_fixed_delay: bool, progress: Progress
) -> tuple[Row, list[RequestResult]]:
    results: list[RequestResult] = []
    concurrency: list[int | None] = []
    try:
        for run in range(scenario.runs):
            done = len(results)
            prepared = prepare(scenario.instance(run), policy, zero_fixed_delay=zero_fixed_delay)
            concurrency.append(prepared.concurrency)
            results += prepared.run(lambda n, done=done: progress(done + n))  # type: ignore[misc]
    except (InfeasibleError, NeverRunsError) as error:
        return Row(scenario.name, policy, zero_fixed_delay, tuple(concurrency), None, str(error)), []
    return Row(scenario.name, policy, zero_fixed_delay, tuple(concurrency), summarise(results)), results


def _run_churning(
    scenario: Scenario, policy: str, zero_fixed_delay: bool, progress: Progress
) -> tuple[Row, list[RequestResult]]:
    """The same while peers come and go; requests that nobody served are counted, not averaged."""
    results: list[RequestResult] = []
    concurrency: list[int | None] = []
    report = ChurnReport()
    try:
        for run in range(scenario.runs):
            done = len(results)
            designed, served, happened = run_under_churn(
                scenario.instance(run),
                policy,
                scenario.churn(run),
                lambda n, done=done: progress(done + n),  # type: ignore[misc]
                zero_fixed_delay=zero_fixed_delay,
            )
            concurrency.append(designed)
            results += served
            report = report.plus(happened)
    except (InfeasibleError, NeverRunsError) as error:
        return Row(scenario.name, policy, zero_fixed_delay, tuple(concurrency), None, str(error)), []
    summary = summarise(results)
    reason = "" if summary is not None else "no request was served"
    churn = ChurnSummary.of(report)
    return Row(scenario.name, policy, zero_fixed_delay, tuple(concurrency), summary, reason, churn), results


def compare(scenarios: Sequence[Scenario], policies: Sequence[str], progress: Progress = no_progress) -> list[Row]:
    """Every policy on every scenario (its own policies where none are named), both delay settings."""
    return [
        run_policy(scenario, policy, zero_fixed_delay=zero, progress=progress)[0]
        for scenario in scenarios
        for zero in (False, True)
        for policy in policies or scenario.policies
    ]


def per_token_samples(
    compared: Sequence[tuple[Row, list[RequestResult]]],
) -> dict[tuple[str, bool], dict[str, tuple[float, ...]]]:
    """By (scenario, zero fixed delays) and policy: every request's seconds per token; without the points of sweeps."""
    samples: dict[tuple[str, bool], dict[str, tuple[float, ...]]] = {}
    for row, results in compared:
        if results and row.point is None:
            of_setting = samples.setdefault((row.scenario, row.zero_fixed_delay), {})
            of_setting[row.policy] = tuple(result.total_seconds / result.new_tokens for result in results)
    return samples


def swept_seconds(
    rows: Iterable[Row],
) -> dict[tuple[str, str, bool], dict[float, dict[str, float | None]]]:
    """By (scenario, what is varied, zero fixed delays), then by value and policy: the mean seconds per token."""
    found: dict[tuple[str, str, bool], dict[float, dict[str, float | None]]] = {}
    for row in rows:
        if row.point is not None:
            sweep = found.setdefault((row.point.base, row.point.varied, row.zero_fixed_delay), {})
            seconds = row.summary.per_token_seconds if row.summary is not None else None
            sweep.setdefault(row.point.value, {})[row.policy] = seconds
    return found


def to_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV; the same rows give the same bytes.

    Columns about a sweep and about churn appear where a row has them.
    """
    rows = list(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields = list(Summary.__dataclass_fields__)
    churned = list(ChurnSummary.__dataclass_fields__) if any(row.churn is not None for row in rows) else []
    swept = list(SweepPoint.__dataclass_fields__) if any(row.point is not None for row in rows) else []
    writer.writerow(["scenario", "policy", "fixed_delays", "R", *fields, "infeasible", *swept, *churned])
    for row in rows:
        values = [""] * len(fields) if row.summary is None else [repr(v) for v in asdict(row.summary).values()]
        events = [""] * len(churned) if row.churn is None else [_or_empty(v) for v in asdict(row.churn).values()]
        delays = "zero" if row.zero_fixed_delay else "published"
        designed = "/".join(str(r) for r in row.concurrency if r is not None)
        point = [""] * len(swept) if row.point is None else list(asdict(row.point).values())
        writer.writerow([row.scenario, row.policy, delays, designed, *values, row.reason, *point, *events])
    return out.getvalue()


def _or_empty(value: float | None) -> str:
    return "" if value is None else repr(value)


def to_table(rows: Iterable[Row]) -> str:
    """A table for people, seconds per token; what churn did is a line below its row."""
    rows = list(rows)
    width = max([20, *(len(row.scenario) for row in rows)])
    head = f"{'scenario':{width}} {'policy':24} {'delays':10}"
    lines = [f"{head} {'per token':>10} {'ttft':>10} {'wait':>10} {'p95/token':>10}"]
    for row in rows:
        head = f"{row.scenario:{width}} {row.policy:24} {'zero' if row.zero_fixed_delay else 'published':10}"
        if row.summary is None:
            lines.append(f"{head} infeasible: {row.reason}")
        else:
            s = row.summary
            numbers = (s.per_token_seconds, s.ttft_seconds, s.wait_seconds, s.p95_per_token_seconds)
            lines.append(head + "".join(f" {value:10.3f}" for value in numbers))
        if row.churn is not None:
            lines.append(_churn_line(row.churn))
    return "\n".join(lines)


def _churn_line(churn: ChurnSummary) -> str:
    line = (
        f"    {churn.joins} joins, {churn.leaves} leaves, {churn.crashes} crashes, {churn.slowdowns} slow-downs: "
        f"{churn.interrupted_requests} requests interrupted, {churn.handovers} handed over, {churn.repairs} repaired, "
        f"{churn.restarts} restarted, {churn.unserved_requests} unserved"
    )
    if churn.mean_repair_seconds is None:
        return line
    return line + f"; lost per repair {churn.mean_repair_seconds:.3f} s (p95 {churn.p95_repair_seconds:.3f} s)"
