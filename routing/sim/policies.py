"""The policies that the simulator compares: a placement, a router, and how memory is handed out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..baselines import (
    PetalsRouter,
    PetalsSpec,
    petals_place,
    petals_pool_sessions,
    petals_pool_slots,
    petals_sizes,
    petals_throughput,
)
from ..cgbp import (
    InfeasiblePlacementError,
    amortised_seconds,
    conservative_sizes,
    format_blocks,
    greedy_order,
    place,
    published_concurrency,
)
from ..hops import HopGraph
from ..instances import Instance
from ..perf import IntArray, PerfModel
from ..swarm import BlockRange
from ..wsrr import Decision, Ledger, WaitingRouter
from .published import NeverRunsError, RequestResult, Router, simulate_published

OFFLINE_POLICIES = ("cg_bprr", "milp")
PETALS_POLICIES = ("petals", "petals_optimized_rr", "petals_optimized_order", "petals_optimized_number")
PUBLISHED_POLICIES = ("proposed", *PETALS_POLICIES)


class InfeasibleError(ValueError):
    """The policy has no placement or no chain for this instance; the message names the blocks."""


class MissingFieldError(ValueError):
    """The instance lacks what the policy needs; the message is `field: what is wrong`."""


@dataclass(frozen=True)
class Prepared:
    """A policy set up for an instance: placed, and ready to run."""

    ranges: tuple[BlockRange | None, ...]
    order: tuple[int, ...]
    concurrency: int | None
    bound_seconds: float | None
    slots: IntArray
    run: Callable[[], list[RequestResult]]


class _OptimalRouter:
    """The exact myopic optimum in the place of WS-RR ("Optimized RR")."""

    def __init__(self, router: WaitingRouter) -> None:
        self._router = router

    def route(self, ledger: Ledger, now_seconds: float) -> Decision | None:
        return self._router.optimal_route(ledger, now_seconds)


def prepare(instance: Instance, policy: str, *, zero_fixed_delay: bool = False) -> Prepared:
    """Place the blocks by the policy's rule and set its routers up. Raises InfeasibleError, MissingFieldError."""
    try:
        if policy == "proposed":
            return _proposed(instance, zero_fixed_delay)
        if policy in PETALS_POLICIES:
            return _petals(instance, policy, zero_fixed_delay)
    except (InfeasiblePlacementError, NeverRunsError) as error:
        raise InfeasibleError(str(error)) from error
    raise MissingFieldError(f"policy: {policy!r} is not one of {', '.join(PUBLISHED_POLICIES + OFFLINE_POLICIES)}")


def design_concurrency(instance: Instance) -> int:
    """The instance's R, or R by the published rule."""
    if instance.concurrency is not None:
        return instance.concurrency
    if instance.requests_per_second is None:
        raise MissingFieldError("R: is missing, and without lambda_per_ms no rule can choose it")
    return published_concurrency(instance.model, instance.requests_per_second, instance.initial_delay_seconds)


def waiting_router(model: PerfModel, ranges: tuple[BlockRange | None, ...], client: int) -> WaitingRouter:
    """WS-RR with whole-request costs for one client."""
    graph = HopGraph(model.num_blocks, ranges)
    return WaitingRouter(graph, graph.hub_edges(*model.request_hop_seconds(client)))


def _proposed(instance: Instance, zero_fixed_delay: bool) -> Prepared:
    model = instance.model
    plan = place(model, design_concurrency(instance))
    routers = [waiting_router(model, plan.ranges, client) for client in range(model.num_clients)]
    return Prepared(
        ranges=plan.ranges,
        order=plan.order,
        concurrency=plan.concurrency,
        bound_seconds=plan.bound_seconds,
        slots=(slots := model.cache_slots(plan.sizes)),
        run=_published_run(instance, routers, slots, 0.0 if zero_fixed_delay else instance.allocation_seconds),
    )


def _petals(instance: Instance, policy: str, zero_fixed_delay: bool) -> Prepared:
    model, spec = instance.model, instance.petals
    if spec is None:
        raise MissingFieldError(f"petals: is missing, but policy {policy} needs it")
    concurrency: int | None = None
    order: Sequence[int] = spec.join_order
    sizes = petals_sizes(model, spec)
    slots = petals_pool_slots(model, spec, sizes)
    allowed = petals_pool_sessions(model, spec, sizes)
    if policy in ("petals_optimized_order", "petals_optimized_number"):
        concurrency = design_concurrency(instance)
        conservative = conservative_sizes(model, concurrency)
        if policy == "petals_optimized_order":
            placed_first = greedy_order(amortised_seconds(model, conservative))
            order = [*placed_first, *(j for j in spec.join_order if j not in placed_first)]
        else:
            sizes = conservative
            slots, allowed = model.cache_slots(sizes), model.full_sessions(sizes)
    ranges = petals_place(model.num_blocks, sizes, petals_throughput(spec, sizes), order)
    _require_cover(model.num_blocks, ranges)
    routers = [_petals_policy_router(model, spec, ranges, allowed, policy, c) for c in range(model.num_clients)]
    return Prepared(
        ranges=ranges,
        order=tuple(order),
        concurrency=concurrency,
        bound_seconds=None,
        slots=slots,
        run=_published_run(instance, routers, slots, 0.0 if zero_fixed_delay else spec.allocation_seconds),
    )


def _petals_policy_router(
    model: PerfModel,
    spec: PetalsSpec,
    ranges: tuple[BlockRange | None, ...],
    allowed: IntArray,
    policy: str,
    client: int,
) -> Router:
    if policy == "petals_optimized_rr":
        return _OptimalRouter(waiting_router(model, ranges, client))
    return PetalsRouter(model, spec, ranges, allowed, client)


def _require_cover(num_blocks: int, ranges: Sequence[BlockRange | None]) -> None:
    hosted = np.zeros(num_blocks, dtype=bool)
    for blocks in ranges:
        if blocks is not None:
            hosted[blocks.start : blocks.stop] = True
    if not hosted.all():
        missing = format_blocks(int(b) for b in np.flatnonzero(~hosted))
        raise InfeasibleError(f"blocks {missing} cannot be placed: the servers' memory does not hold the model")


def _published_run(
    instance: Instance, routers: Sequence[Router], slots: IntArray, allocation_seconds: float
) -> Callable[[], list[RequestResult]]:
    def run() -> list[RequestResult]:
        try:
            return simulate_published(
                instance.model,
                routers,
                slots,
                instance.arrivals_seconds,
                instance.request_client,
                instance.initial_delay_seconds + allocation_seconds,
            )
        except NeverRunsError as error:
            raise InfeasibleError(str(error)) from error

    return run
