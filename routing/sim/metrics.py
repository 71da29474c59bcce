"""The figures of a run: means as published, and the times that users feel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .runs.published import RequestResult


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over the requests, seconds; quantiles of the whole request's time per token."""

    requests: int
    per_token_seconds: float
    ttft_seconds: float
    wait_seconds: float
    remaining_per_token_seconds: float
    p50_per_token_seconds: float
    p95_per_token_seconds: float
    p99_per_token_seconds: float
    max_wait_seconds: float


def summarise(results: Sequence[RequestResult]) -> Summary | None:
    """The summary of a run; None without requests.

    Per token: sum of (completion - arrival) / sum of generated tokens, as published.
    """
    if not results:
        return None
    count = len(results)
    total = math.fsum(r.total_seconds for r in results)
    ttft = math.fsum(r.ttft_seconds for r in results)
    tokens = sum(r.new_tokens for r in results)
    later_tokens = tokens - count
    per_token = np.array([r.total_seconds / r.new_tokens for r in results])
    p50, p95, p99 = (float(q) for q in np.quantile(per_token, (0.5, 0.95, 0.99)))
    return Summary(
        requests=count,
        per_token_seconds=total / tokens,
        ttft_seconds=ttft / count,
        wait_seconds=math.fsum(r.wait_seconds for r in results) / count,
        remaining_per_token_seconds=(total - ttft) / later_tokens if later_tokens else 0.0,
        p50_per_token_seconds=p50,
        p95_per_token_seconds=p95,
        p99_per_token_seconds=p99,
        max_wait_seconds=max(r.wait_seconds for r in results),
    )
