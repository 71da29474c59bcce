"""The published simulation: requests booked on arrival, waits rounded up to a retry grid, constant delays.

Source: BPRR paper (arXiv 2512.21884) and its simulator; `docs/simulator.md` lists where the two disagree.  A session
holds its slots from the routing decision, also while it waits, until its estimated end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..perf import FloatArray, IntArray, PerfModel, Segment
from ..wsrr import Decision, Ledger, retry_wait_seconds


class Router(Protocol):
    """What decides a request's chain from the ledger alone."""

    def route(self, ledger: Ledger, now_seconds: float) -> Decision | None: ...


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request's way through the simulation; seconds."""

    client: int
    chain: tuple[Segment, ...]
    arrival_seconds: float
    raw_wait_seconds: float
    """Until the whole chain has memory."""
    wait_seconds: float
    """What it really waited (retry grid, queue)."""
    ttft_seconds: float
    total_seconds: float
    path_cost_seconds: float
    """What the policy minimised."""

    @property
    def start_seconds(self) -> float:
        return self.arrival_seconds + self.wait_seconds


class NeverRunsError(ValueError):
    """A request that no chain can ever serve."""


def simulate_published(
    model: PerfModel,
    routers: Sequence[Router],
    slots: IntArray,
    arrivals_seconds: FloatArray,
    request_client: IntArray,
    fixed_seconds: float,
) -> list[RequestResult]:
    """Run the requests in order of arrival; `routers[c]` serves client c. Raises NeverRunsError.

    `slots`: (n,) cache slots; `fixed_seconds` passes before every first token.
    """
    ledger = Ledger(slots.tolist())
    results = []
    for now, client in zip(arrivals_seconds.tolist(), request_client.tolist(), strict=True):
        ledger.expire(now)
        decision = routers[client].route(ledger, now)
        if decision is None or not np.isfinite(decision.wait_seconds):
            raise NeverRunsError("no chain of servers has room for one request")
        wait = retry_wait_seconds(decision.wait_seconds)
        first = model.first_token_seconds(client, decision.chain)
        service = first + (model.new_tokens - 1) * model.token_seconds(client, decision.chain)
        ledger.book(decision.chain, now + wait + fixed_seconds + service)
        results.append(
            RequestResult(
                client=client,
                chain=decision.chain,
                arrival_seconds=now,
                raw_wait_seconds=decision.wait_seconds,
                wait_seconds=wait,
                ttft_seconds=wait + fixed_seconds + first,
                total_seconds=wait + fixed_seconds + service,
                path_cost_seconds=decision.path_cost_seconds,
            )
        )
    return results
