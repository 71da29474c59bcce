"""The chain that a request from here would get, its alternatives if a peer fails, and why other peers are not used.

The choice is the client's own (`CurrentSwarm.choose`), and so are the predicted times (`swarm-client route`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ....proto.errors import NoChainError, SwarmError
from ....routing.route.budget import Meter, SearchBudget
from ....routing.swarm import BlockRange, PeerId, RequestSpec, short_id
from ...chain.machine.events import HopChoice
from ...survey.explain import Unmet, unused_peers
from ...survey.survey import predict
from ...swarm.snapshot import MOST_BYTES, CurrentSwarm
from ...timing import ClientTiming
from ..probe.messages import ProbeOutcome
from ..watch.sighting import Sighting
from ..written.words import failure_words

REQUEST = RequestSpec(128, 128)
"""The request to plan for, like the default of `swarm-client route`."""
MOST_ALTERNATIVES = 8
MOST_EXPLAINED = 100
"""In larger swarms it is explained only on request why peers are not used, at a millisecond per peer."""
SEARCH_SHARE = 0.2
"""The budget of each search here, as a share of a client's."""


@dataclass(frozen=True, slots=True)
class RouteHop:
    """One peer of the chain; predicted times of a step of one token."""

    peer: PeerId
    short_id: str
    name: str
    blocks: tuple[int, int]
    way_seconds: float
    """The network time to it from the node before."""
    visit_seconds: float
    """The fixed time at the peer, beside computing."""
    queue_seconds: float
    """Until it has room for the request."""
    compute_seconds: float
    weights: str
    measured_queue_seconds: float | None
    """As the last probe measured it on the same blocks, like `measured_compute_seconds`."""
    measured_compute_seconds: float | None


@dataclass(frozen=True, slots=True)
class Alternative:
    """The best chain that does not use one of the chain's peers."""

    without: PeerId
    short_id: str
    name: str
    chain: tuple[tuple[str, tuple[int, int]], ...]
    """Short ids and blocks; empty if there is none."""
    step_seconds: float | None
    failure: str
    """Why there is no such chain, in words."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A peer that is not on the chain."""

    peer: PeerId
    short_id: str
    name: str
    reason: str
    network_seconds_more: float | None
    """How much longer a step's network time is with the peer in its best place in the chain (< 0: shorter)..."""
    compute_seconds_more: float | None
    """...and its time at the peers. None: the peer cannot be used, or fits into no place of this chain."""


@dataclass(frozen=True, slots=True)
class RoutesBoard:
    """Routes of one model, from this node."""

    hops: tuple[RouteHop, ...] = ()
    return_seconds: float | None = None
    """This and the next three are None if there is no chain."""
    step_seconds: float | None = None
    exact: bool | None = None
    """Whether the chain is proven to be the best..."""
    unproven_seconds: float | None = None
    """...and the upper bound on how much faster another one might be; infinite without any bound."""
    failure: str = ""
    """Why there is no chain, in words."""
    alternatives: tuple[Alternative, ...] = ()
    not_chosen: tuple[PassedOver, ...] | None = ()
    """None: not asked for."""


def measured_hops(outcome: ProbeOutcome) -> dict[tuple[PeerId, int, int], tuple[float, float]]:
    """Return queue and compute seconds of a probe's hops, by peer and blocks."""
    return {(hop.peer, hop.start, hop.stop): (hop.queue_seconds, hop.compute_seconds) for hop in outcome.hops}


def routes_board(
    sighting: Sighting,
    measured: Mapping[tuple[PeerId, int, int], tuple[float, float]],
    now: float,
    clock: Callable[[], float],
    *,
    explained: bool = True,
) -> RoutesBoard:
    """Build the board, with several searches: call it in a thread.

    `measured`: queue and compute seconds of the last probe, by peer and blocks; `now` in Unix seconds; `clock`, in
    seconds, bounds the searches, each by a share of a client's budget. `explained`: say why other peers are not used.
    """
    current = _current(sighting, now)
    chosen = _chain(current, frozenset(), clock)
    if isinstance(chosen, str):
        return RoutesBoard(failure=chosen, not_chosen=_not_chosen(sighting, current, ()) if explained else None)
    chain = predict(chosen, current.prepared, push=True)
    hops = []
    for hop, choice in zip(chain.hops, chosen, strict=True):
        found = measured.get((hop.peer, hop.blocks.start, hop.blocks.stop))
        hops.append(
            RouteHop(
                hop.peer, short_id(hop.peer), hop.name, (hop.blocks.start, hop.blocks.stop), hop.way_seconds,
                hop.visit_seconds, choice.wait_seconds, hop.compute_seconds, hop.weights, *(found or (None, None)),
            )
        )  # fmt: skip
    return RoutesBoard(
        tuple(hops),
        chain.return_seconds,
        chain.step_seconds,
        chain.unproven_seconds == 0,
        chain.unproven_seconds,
        alternatives=tuple(_alternative(current, hop, clock) for hop in hops[:MOST_ALTERNATIVES]),
        not_chosen=_not_chosen(sighting, current, chosen) if explained else None,
    )


def _alternative(current: CurrentSwarm, hop: RouteHop, clock: Callable[[], float]) -> Alternative:
    found = _chain(current, frozenset({hop.peer}), clock)
    if isinstance(found, str):
        return Alternative(hop.peer, hop.short_id, hop.name, (), None, found)
    chain = predict(found, current.prepared, push=True)
    named = tuple((short_id(other.peer), (other.blocks.start, other.blocks.stop)) for other in chain.hops)
    return Alternative(hop.peer, hop.short_id, hop.name, named, chain.step_seconds, "")


def _current(sighting: Sighting, now: float) -> CurrentSwarm:
    timing = ClientTiming()
    return CurrentSwarm(sighting.prepared, now, (), {}, {}, timing.min_retry_seconds, timing.claim_stands_seconds)


def _chain(
    current: CurrentSwarm, excluded: frozenset[PeerId], clock: Callable[[], float]
) -> tuple[HopChoice, ...] | str:
    """Return the chain that a client would get, or why there is none, in words."""
    meter = Meter(SearchBudget(SEARCH_SHARE * ClientTiming().route_seconds, MOST_BYTES), clock)
    every = BlockRange(0, current.prepared.finder.swarm.model.num_blocks)
    try:
        return current.choose(every, excluded, REQUEST, None, meter, settle=True)
    except NoChainError as error:
        return str(error) if error.missing_blocks else failure_words(error.code)
    except SwarmError as error:
        return failure_words(error.code)


def _not_chosen(sighting: Sighting, current: CurrentSwarm, chosen: Sequence[HopChoice]) -> tuple[PassedOver, ...]:
    silent = {peer: Unmet(record, was_asked=True) for peer, record in sighting.silent.items()}
    return tuple(
        PassedOver(
            other.peer, short_id(other.peer), other.name, other.reason.value, other.network_seconds,
            other.compute_seconds,
        )
        for other in unused_peers(current, silent, chosen, REQUEST, push=True)
    )  # fmt: skip
