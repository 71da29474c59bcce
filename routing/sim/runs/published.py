"""The published simulation: requests booked on arrival, waits rounded up to a retry grid, constant delays.

Source: BPRR paper (arXiv 2512.21884) and its simulator; `docs/simulator.md` lists where the two disagree.  A session
holds its slots from the routing decision, also while it waits, until its estimated end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...papers.instances import Instance
from ...perf import IntArray, Segment
from ...route.wsrr import Decision, Ledger, retry_wait_seconds

Progress = Callable[[int], None]
"""Told how many requests have been simulated."""


def no_progress(done: int) -> None:
    """Tell nobody."""


class Router(Protocol):
    """A rule that decides a request's chain from the ledger alone."""

    def route(self, ledger: Ledger, now_seconds: float) -> Decision | None: ...


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request's way through the simulation; seconds."""

    client: int
    chain: tuple[Segment, ...]
    arrival_seconds: float
    raw_wait_seconds: float
    """Until the whole chain has memory, as predicted at the decision."""
    wait_seconds: float
    """The real wait (retry grid, queue)."""
    ttft_seconds: float
    total_seconds: float
    path_cost_seconds: float
    """The quantity that the policy minimised."""
    new_tokens: int

    @property
    def start_seconds(self) -> float:
        return self.arrival_seconds + self.wait_seconds


class Times(Protocol):
    """How long a kind of request takes on a chain, seconds."""

    @property
    def new_tokens(self) -> int: ...
    def first_token_seconds(self, client: int, chain: Sequence[Segment]) -> float: ...
    def token_seconds(self, client: int, chain: Sequence[Segment]) -> float: ...


class NeverRunsError(ValueError):
    """A request that no chain can ever serve."""

    def __init__(self) -> None:
        super().__init__("no chain of servers ever has room for one request")


def result_of(
    times: Times,
    client: int,
    chain: tuple[Segment, ...],
    *,
    arrival_seconds: float,
    predicted_wait_seconds: float,
    wait_seconds: float,
    fixed_seconds: float,
    path_cost_seconds: float,
) -> RequestResult:
    """The result of a request that waited for `wait_seconds`, by the performance model."""
    first = wait_seconds + fixed_seconds + times.first_token_seconds(client, chain)
    return RequestResult(
        client=client,
        chain=chain,
        arrival_seconds=arrival_seconds,
        raw_wait_seconds=predicted_wait_seconds,
        wait_seconds=wait_seconds,
        ttft_seconds=first,
        total_seconds=first + (times.new_tokens - 1) * times.token_seconds(client, chain),
        path_cost_seconds=path_cost_seconds,
        new_tokens=times.new_tokens,
    )


def simulate_published(
    instance: Instance,
    routers: Mapping[tuple[int, int], Router],
    units: IntArray,
    fixed_seconds: float,
    progress: Progress = no_progress,
) -> list[RequestResult]:
    """Run the requests in order of arrival; `routers[kind, client]` decides. Raises NeverRunsError.

    `units`: (n,) of cache; `fixed_seconds` passes before every first token.
    """
    ledger = Ledger(units.tolist())
    kinds = instance.request_kinds()
    results = []
    for number, now in enumerate(instance.arrivals_seconds.tolist()):
        client, kind = int(instance.request_client[number]), instance.kind_of(number)
        ledger.expire(now)
        decision = routers[kind, client].route(ledger, now)
        if decision is None or not np.isfinite(decision.wait_seconds):
            raise NeverRunsError
        result = result_of(
            kinds[kind].model,
            client,
            decision.chain,
            arrival_seconds=now,
            predicted_wait_seconds=decision.wait_seconds,
            wait_seconds=retry_wait_seconds(decision.wait_seconds),
            fixed_seconds=fixed_seconds,
            path_cost_seconds=decision.path_cost_seconds,
        )
        ledger.book(decision.chain, now + result.total_seconds, kinds[kind].units_per_block)
        results.append(result)
        progress(number + 1)
    return results
