"""Policies against each other on the same requests, with the published fixed delays and without any."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .metrics import Summary, summarise
from .policies import InfeasibleError, prepare
from .published import NeverRunsError, Progress, RequestResult, no_progress
from .scenario import Scenario


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


def run_policy(
    scenario: Scenario, policy: str, *, zero_fixed_delay: bool, progress: Progress = no_progress
) -> tuple[Row, list[RequestResult]]:
    """All Monte Carlo runs of one policy, and every request's result."""
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
    """By (scenario, zero fixed delays) and policy: every request's seconds per token."""
    samples: dict[tuple[str, bool], dict[str, tuple[float, ...]]] = {}
    for row, results in compared:
        if results:
            of_setting = samples.setdefault((row.scenario, row.zero_fixed_delay), {})
            of_setting[row.policy] = tuple(result.total_seconds / result.new_tokens for result in results)
    return samples


def to_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV; the same rows give the same bytes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields = list(Summary.__dataclass_fields__)
    writer.writerow(["scenario", "policy", "fixed_delays", "R", *fields, "infeasible"])
    for row in rows:
        values = [""] * len(fields) if row.summary is None else [repr(v) for v in asdict(row.summary).values()]
        delays = "zero" if row.zero_fixed_delay else "published"
        designed = "/".join(str(r) for r in row.concurrency if r is not None)
        writer.writerow([row.scenario, row.policy, delays, designed, *values, row.reason])
    return out.getvalue()


def to_table(rows: Iterable[Row]) -> str:
    """A table for people, seconds per token."""
    lines = [
        f"{'scenario':20} {'policy':24} {'delays':10} {'per token':>10} {'ttft':>10} {'wait':>10} {'p95/token':>10}"
    ]
    for row in rows:
        head = f"{row.scenario:20} {row.policy:24} {'zero' if row.zero_fixed_delay else 'published':10}"
        if row.summary is None:
            lines.append(f"{head} infeasible: {row.reason}")
            continue
        s = row.summary
        numbers = (s.per_token_seconds, s.ttft_seconds, s.wait_seconds, s.p95_per_token_seconds)
        lines.append(head + "".join(f" {value:10.3f}" for value in numbers))
    return "\n".join(lines)
