"""A plan as `swarm-peer plan` shows it: for people, and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...routing.outlook import Outlook
    from ..node import PeerPlan


def describe_plan(model: str, plan: PeerPlan) -> str:
    """The plan for people."""
    part = (
        [f"planned with {plan.planned_with} of about {plan.peers} peers: a swarm of thousands is placed in groups"]
        if plan.planned_with < plan.peers
        else []
    )
    if plan.blocks is None:
        return "\n".join(["this machine would host nothing: the swarm has no place for it now", *part])
    lines = [
        f"would host blocks {plan.blocks} of {plan.num_blocks} in {plan.numeric_format}, and offer"
        f" {plan.memory_bytes / 2**30:.2f} GiB for weights and attention caches",
        f"would fetch {plan.checkpoint_bytes / 2**20:.0f} MiB at most, from {model}",
    ]
    for when, outlook in (("now", plan.before), ("then", plan.after)):
        if outlook is not None:
            lines.append(
                f"{when:>4}: time of a token {_milliseconds(outlook.token_seconds)}, bound with"
                f" {outlook.concurrency} sessions at once {_milliseconds(outlook.bound_seconds)};"
                f" the weakest block is {outlook.weakest_block}, with {outlook.weakest_servers} servers"
            )
    return "\n".join([*lines, *part])


def plan_as_json(plan: PeerPlan) -> dict[str, object]:
    """Times in seconds, null where no chain is complete."""

    def figures(outlook: Outlook | None) -> dict[str, object] | None:
        if outlook is None:
            return None
        return {
            "R": outlook.concurrency,
            "token_seconds": _finite(outlook.token_seconds),
            "theorem2_bound_per_token_seconds": _finite(outlook.bound_seconds),
            "weakest_block": outlook.weakest_block,
            "weakest_block_servers": outlook.weakest_servers,
            "missing_blocks": list(outlook.uncovered),
        }

    return {
        "blocks": [plan.blocks.start, plan.blocks.stop] if plan.blocks else None,
        "num_blocks": plan.num_blocks,
        "numeric_format": plan.numeric_format,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "memory_bytes": plan.memory_bytes,
        "decode_seconds_per_block": plan.decode_seconds_per_block,
        "planned_with_peers": plan.planned_with,
        "peers": plan.peers,
        "now": figures(plan.before),
        "then": figures(plan.after),
    }


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if math.isfinite(seconds) else "none (no chain is complete)"
