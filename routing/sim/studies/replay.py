"""`swarm-sim replay`: one instance under one policy, reported in the instance files' units and numbering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...chains import NoCompleteChainError, compose, gbp_cr, theorem_4
from ...papers.instances import MILLISECOND, ChainCase, Instance
from ...papers.milp import solve_bprr
from ...place.cgbp import cheapest_token_chain, format_blocks, place
from ...swarm import BlockRange
from ..metrics import summarise
from ..runs.policies import OFFLINE_POLICIES, InfeasibleError, MissingFieldError, prepare
from ..runs.published import RequestResult, no_progress


def replay(
    instance: Instance, policy: str, *, zero_fixed_delay: bool = False, milp_seconds: float = 300.0
) -> dict[str, Any]:
    """The report as one JSON-able object; the MILP's solver stops after `milp_seconds`.

    Raises InfeasibleError, MissingFieldError.
    """
    if policy in OFFLINE_POLICIES:
        return _offline(instance, policy, milp_seconds)
    prepared = prepare(instance, policy, zero_fixed_delay=zero_fixed_delay)
    results = prepared.run(no_progress)
    report = {
        "instance": instance.name,
        "policy": policy,
        "feasible": True,
        "R": prepared.concurrency,
        "placement": placement_report(prepared.ranges, prepared.order),
        "theorem2_bound_per_token_ms": _ms(prepared.bound_seconds),
        "requests": [_request_report(result) for result in results],
    }
    return report | averages(results)


def infeasible_report(instance: Instance, policy: str, reason: str) -> dict[str, Any]:
    """The report where no placement or no chain exists."""
    return {"instance": instance.name, "policy": policy, "feasible": False, "reason": reason}


def placement_report(ranges: Sequence[BlockRange | None], order: Sequence[int]) -> dict[str, Any]:
    """First blocks from 1 and sizes; an unused server has 0 and 0."""
    return {
        "a": [r.start + 1 if r else 0 for r in ranges],
        "m": [len(r) if r else 0 for r in ranges],
        "order": list(order),
    }


def averages(results: Sequence[RequestResult]) -> dict[str, float | None]:
    """The published metrics; None without requests."""
    summary = summarise(results)
    if summary is None:
        return dict.fromkeys(("avg_per_token_ms", "avg_ttft_ms", "avg_wait_ms", "avg_remaining_per_token_ms"))
    return {
        "avg_per_token_ms": _ms(summary.per_token_seconds),
        "avg_ttft_ms": _ms(summary.ttft_seconds),
        "avg_wait_ms": _ms(summary.wait_seconds),
        "avg_remaining_per_token_ms": _ms(summary.remaining_per_token_seconds),
    }


def _request_report(result: RequestResult) -> dict[str, Any]:
    return {
        "client": result.client,
        "route": [j for j, _ in result.chain],
        "blocks": [[blocks.start + 1, blocks.stop] for _, blocks in result.chain],
        "raw_wait_ms": _ms(result.raw_wait_seconds),
        "wait_ms": _ms(result.wait_seconds),
        "start_ms": _ms(result.start_seconds),
        "ttft_ms": _ms(result.ttft_seconds),
        "total_ms": _ms(result.total_seconds),
        "path_cost_ms": _ms(result.path_cost_seconds),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / MILLISECOND


def _offline(instance: Instance, policy: str, milp_seconds: float) -> dict[str, Any]:
    """All requests present at once, without block limits, as the published offline problem has it."""
    if instance.requests_per_client is None:
        raise MissingFieldError(f"offline: is missing, but policy {policy} needs it")
    model = instance.model.without_block_limits()
    counts = [instance.requests_per_client] * model.num_clients
    report: dict[str, Any] = {"instance": instance.name, "policy": policy, "feasible": True}
    if policy == "milp":
        solved = solve_bprr(model, counts, time_limit_seconds=milp_seconds)
        total = solved.total_seconds
        report |= {
            "R": sum(counts),
            "placement": placement_report(solved.ranges, range(model.num_peers)),
            "routes": [[j for j, _ in chain] for chain in solved.chains],
            "gap": solved.gap,
        }
    else:
        plan = place(model, instance.concurrency or sum(counts))
        chains = [cheapest_token_chain(model, plan.ranges, client) for client in range(model.num_clients)]
        if any(chain is None for chain in chains):
            raise InfeasibleError(f"blocks {format_blocks(range(model.num_blocks))} have no chain")
        costs = [chain.cost for chain in chains if chain is not None]
        total = math.fsum(model.new_tokens * cost * count for cost, count in zip(costs, counts, strict=True))
        report |= {
            "R": plan.concurrency,
            "placement": placement_report(plan.ranges, plan.order),
            "theorem2_bound_per_token_ms": _ms(plan.bound_seconds),
            "route_per_client": [[j for j, _ in chain.chain] for chain in chains if chain is not None],
            "path_cost_per_client_ms": [_ms(cost) for cost in costs],
        }
    return report | {"total_ms": _ms(total), "avg_per_token_ms": _ms(total / sum(counts) / model.new_tokens)}


def summary(report: dict[str, Any]) -> str:
    """A few lines for people."""
    head = f"{report['instance']} under {report['policy']}: "
    if not report["feasible"]:
        return head + f"infeasible: {report['reason']}"
    lines = [head + f"R = {report['R']}"]
    sizes = zip(report["placement"]["a"], report["placement"]["m"], strict=True)
    lines += [f"  server {j}: blocks {a}-{a + m - 1}" for j, (a, m) in enumerate(sizes) if m]
    lines += [f"  {key}: {report[key]:.3f}" for key in report if key.endswith("_ms") and isinstance(report[key], float)]
    return "\n".join(lines)


def chains_report(cases: Sequence[ChainCase]) -> dict[str, Any]:
    """`swarm-sim chains`: per case what GBP-CR, GCA and Theorem 4 give, under the file's names; seconds.

    A case that holds no chain has an `error` instead; bounds of an unstable case are null.
    """
    return {"cases": [{"name": case.name} | _chain_case(case) for case in cases]}


def _chain_case(case: ChainCase) -> dict[str, Any]:
    try:
        composed = gbp_cr(case.model, case.capacity, case.requests_per_second, case.load)
    except NoCompleteChainError as error:
        return {"error": str(error)}
    chains = compose(case.model, composed.ranges)
    bounds = theorem_4(chains, case.requests_per_second)
    return {
        "placement": {str(j): [r.start + 1, len(r)] for j, r in enumerate(composed.ranges) if r is not None},
        "disjoint_chains": [list(chain) for chain in composed.disjoint_chains],
        "gca_chains": [
            {
                "servers": [j for j, _ in chain.chain],
                "capacity": chain.capacity,
                "service_time_s": chain.service_seconds,
            }
            for chain in chains
        ],
        "total_service_rate": math.fsum(chain.capacity / chain.service_seconds for chain in chains),
        "total_capacity": sum(chain.capacity for chain in chains),
        "theorem4_mean_response_s": [value if math.isfinite(value) else None for value in bounds.response_seconds],
        "theorem4_mean_occupancy": [value if math.isfinite(value) else None for value in bounds.occupancy],
    }
