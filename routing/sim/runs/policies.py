"""The policies that the simulator compares: a placement, a router, and how memory is handed out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...hops import HopGraph
from ...papers.baselines import (
    PetalsRouter,
    petals_place,
    petals_pool_sessions,
    petals_pool_slots,
    petals_sizes,
    petals_throughput,
)
from ...papers.instances import Instance
from ...perf import IntArray
from ...place.cgbp import (
    InfeasiblePlacementError,
    amortised_seconds,
    conservative_sizes,
    format_blocks,
    greedy_order,
    harmless_concurrency,
    place,
    published_concurrency,
)
from ...place.concurrency import best_concurrency
from ...route.wsrr import Decision, Ledger, WaitingRouter
from ...swarm import BlockRange
from .churn import Churn, ChurnReport
from .product import run_chains, run_exact
from .published import Progress, RequestResult, Router, simulate_published
from .push import PushTimes
from .under_churn import run_with_churn

OFFLINE_POLICIES = ("cg_bprr", "milp")
PETALS_POLICIES = ("petals", "petals_optimized_rr", "petals_optimized_order", "petals_optimized_number")
PRODUCT_POLICIES = ("ours", "ours_push", "ours_chains")
ONLINE_POLICIES = ("proposed", *PETALS_POLICIES, *PRODUCT_POLICIES)
CHURN_POLICIES = ("ours",)
"""Those that say what happens to a request whose peer goes."""

_NO_CHURN = (
    "policy: {policy!r} cannot run with [churn], only " + ", ".join(CHURN_POLICIES) + " can: the published simulation "
    "books a request until its end when it arrives, fixed chains have no rule for a lost server, and repairs are not "
    "simulated with pushing"
)


class InfeasibleError(ValueError):
    """The policy has no placement or no chain for this instance; the message names the blocks."""


class MissingFieldError(ValueError):
    """The instance lacks what the policy needs; the message is `field: what is wrong`."""


Run = Callable[[Progress], list[RequestResult]]


@dataclass(frozen=True)
class Prepared:
    """A policy set up for an instance: placed, and ready to run."""

    ranges: tuple[BlockRange | None, ...]
    order: tuple[int, ...]
    concurrency: int | None
    bound_seconds: float | None
    run: Run
    """Simulates all requests. Raises NeverRunsError."""


class _OptimalRouter:
    """The exact myopic optimum in the place of WS-RR ("Optimized RR")."""

    def __init__(self, router: WaitingRouter) -> None:
        self._router = router

    def route(self, ledger: Ledger, now_seconds: float) -> Decision | None:
        return self._router.optimal_route(ledger, now_seconds)


def prepare(instance: Instance, policy: str, *, zero_fixed_delay: bool = False) -> Prepared:
    """Place the blocks by the policy's rule and set its routers up. Raises InfeasibleError, MissingFieldError."""
    if policy not in ONLINE_POLICIES:
        raise MissingFieldError(f"policy: {policy!r} is not one of {', '.join(ONLINE_POLICIES + OFFLINE_POLICIES)}")
    try:
        if policy == "proposed":
            return _proposed(instance, zero_fixed_delay)
        if policy in PETALS_POLICIES:
            return _petals(instance, policy, zero_fixed_delay)
        return _product(instance, policy, zero_fixed_delay)
    except InfeasiblePlacementError as error:
        raise InfeasibleError(str(error)) from error


def design_concurrency(instance: Instance) -> int:
    """The instance's R, or R by the published rule."""
    if instance.concurrency is not None:
        return instance.concurrency
    if instance.requests_per_second is None:
        raise MissingFieldError("R: is missing, and without lambda_per_ms no rule can choose it")
    return published_concurrency(instance.model, instance.requests_per_second, instance.initial_delay_seconds)


def waiting_routers(instance: Instance, ranges: tuple[BlockRange | None, ...]) -> dict[tuple[int, int], WaitingRouter]:
    """WS-RR with whole-request costs, by (kind, client)."""
    graph = HopGraph(instance.model.num_blocks, ranges)
    return {
        (number, client): WaitingRouter(
            graph, graph.hub_edges(*kind.model.request_hop_seconds(client)), kind.units_per_block
        )
        for number, kind in enumerate(instance.request_kinds())
        for client in range(instance.model.num_clients)
    }


def _proposed(instance: Instance, zero_fixed_delay: bool) -> Prepared:
    plan = place(instance.model, design_concurrency(instance))
    allocation = 0.0 if zero_fixed_delay else instance.allocation_seconds
    return Prepared(
        ranges=plan.ranges,
        order=plan.order,
        concurrency=plan.concurrency,
        bound_seconds=plan.bound_seconds,
        run=_published_run(
            instance, waiting_routers(instance, plan.ranges), instance.cache_units(plan.sizes), allocation
        ),
    )


def _petals(instance: Instance, policy: str, zero_fixed_delay: bool) -> Prepared:
    model, spec = instance.model, instance.petals
    if spec is None:
        raise MissingFieldError(f"petals: is missing, but policy {policy} needs it")
    concurrency: int | None = None
    order: Sequence[int] = spec.join_order
    sizes = petals_sizes(model, spec)
    unit = instance.unit_bytes if instance.unit_bytes is not None else model.session_bytes
    units = petals_pool_slots(replace(model, session_bytes=unit), spec, sizes)
    allowed = petals_pool_sessions(model, spec, sizes)
    if policy in ("petals_optimized_order", "petals_optimized_number"):
        concurrency = design_concurrency(instance)
        conservative = conservative_sizes(model, concurrency)
        if policy == "petals_optimized_order":
            placed_first = greedy_order(amortised_seconds(model, conservative))
            order = [*placed_first, *(j for j in spec.join_order if j not in placed_first)]
        else:
            sizes = conservative
            units, allowed = instance.cache_units(sizes), model.full_sessions(sizes)
    ranges = petals_place(model.num_blocks, sizes, petals_throughput(spec, sizes), order)
    require_cover(model.num_blocks, ranges)
    routers: dict[tuple[int, int], Router]
    if policy == "petals_optimized_rr":
        routers = {key: _OptimalRouter(router) for key, router in waiting_routers(instance, ranges).items()}
    else:
        routers = {
            (number, client): PetalsRouter(kind.model, spec, ranges, allowed, client, kind.units_per_block)
            for number, kind in enumerate(instance.request_kinds())
            for client in range(model.num_clients)
        }
    return Prepared(
        ranges=ranges,
        order=tuple(order),
        concurrency=concurrency,
        bound_seconds=None,
        run=_published_run(instance, routers, units, 0.0 if zero_fixed_delay else spec.allocation_seconds),
    )


def _product(instance: Instance, policy: str, zero_fixed_delay: bool) -> Prepared:
    """Our R and CG-BP; then the exact router with FIFO queues, through the client or pushing, or GCA's chains with JFFC
    and one queue."""
    allocation = 0.0 if zero_fixed_delay else instance.allocation_seconds
    fixed = instance.initial_delay_seconds + allocation
    plan = place(instance.model, product_concurrency(instance, fixed))
    push = _push_times(instance) if policy == "ours_push" else None

    def simulate(progress: Progress) -> list[RequestResult]:
        if policy == "ours_chains":
            return run_chains(instance, plan, fixed, progress)
        return run_exact(instance, plan, fixed, progress, push)

    return Prepared(
        ranges=plan.ranges,
        order=plan.order,
        concurrency=plan.concurrency,
        bound_seconds=plan.bound_seconds,
        run=simulate,
    )


def _push_times(instance: Instance) -> list[PushTimes]:
    """By kind of request. Round trips between servers come with what PETALS needs."""
    if instance.petals is None:
        raise MissingFieldError("rtt_raw: is needed by policy ours_push, and read only together with petals")
    try:
        return [PushTimes(kind.model, instance.petals.raw_rtt_seconds) for kind in instance.request_kinds()]
    except ValueError as error:
        raise MissingFieldError(f"rtt_raw: {error}") from error


def run_under_churn(
    instance: Instance, policy: str, churn: Churn, progress: Progress, *, zero_fixed_delay: bool
) -> tuple[int, list[RequestResult], ChurnReport]:
    """Our R, and the run while peers come and go. Raises InfeasibleError, NeverRunsError, MissingFieldError."""
    if policy not in CHURN_POLICIES:
        raise MissingFieldError(_NO_CHURN.format(policy=policy))
    fixed = instance.initial_delay_seconds + (0.0 if zero_fixed_delay else instance.allocation_seconds)
    try:
        plan = place(instance.model, product_concurrency(instance, fixed))
    except InfeasiblePlacementError as error:
        raise InfeasibleError(str(error)) from error
    results, report = run_with_churn(instance, plan, fixed, churn, progress)
    return plan.concurrency, results, report


def product_concurrency(instance: Instance, fixed_seconds: float) -> int:
    """R by our rule; where no rate is known, the instance's R or the largest that does not lengthen its chains."""
    if instance.requests_per_second is not None:
        return best_concurrency(instance.model, instance.requests_per_second, fixed_seconds)
    if instance.concurrency is not None:
        return harmless_concurrency(instance.model, instance.concurrency)
    raise MissingFieldError("R: is missing, and without lambda_per_ms no rule can choose it")


def require_cover(num_blocks: int, ranges: Sequence[BlockRange | None]) -> None:
    """Raises InfeasibleError naming the blocks that nobody hosts."""
    hosted = np.zeros(num_blocks, dtype=bool)
    for blocks in ranges:
        if blocks is not None:
            hosted[blocks.start : blocks.stop] = True
    if not hosted.all():
        missing = format_blocks(int(b) for b in np.flatnonzero(~hosted))
        raise InfeasibleError(f"blocks {missing} cannot be placed: the servers' memory does not hold the model")


def _published_run(
    instance: Instance, routers: Mapping[tuple[int, int], Router], units: IntArray, allocation_seconds: float
) -> Run:
    fixed = instance.initial_delay_seconds + allocation_seconds
    return lambda progress: simulate_published(instance, routers, units, fixed, progress)
