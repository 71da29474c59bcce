"""The chain that a request from here would get, what follows if one of its peers fails, and why others are not on it.

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
"""The request that is planned for, as `swarm-client route` has it."""
MOST_ALTERNATIVES = 8
MOST_EXPLAINED = 100
"""Swarms of more peers say only to those that ask why the others are not on the chain: a millisecond for each."""
SEARCH_SHARE = 0.2
"""Part of a client's time for a search that each search takes here at most."""


@dataclass(frozen=True, slots=True)
class RouteHop:
    """One peer of the chain; predicted times of a step of one token."""

    peer: PeerId
    short_id: str
    name: str
    blocks: tuple[int, int]
    way_seconds: float
    """The way to it from the node before."""
    visit_seconds: float
    """At the peer, beside computing."""
    queue_seconds: float
    """Until it has room for the request."""
    compute_seconds: float
    weights: str
    measured_queue_seconds: float | None
    """As the last probe found it on the same blocks, as the next."""
    measured_compute_seconds: float | None


@dataclass(frozen=True, slots=True)
class Alternative:
    """The best chain without one of the peers."""

    without: PeerId
    short_id: str
    name: str
    chain: tuple[tuple[str, tuple[int, int]], ...]
    """Short ids and blocks; empty if there is none."""
    step_seconds: float | None
    failure: str
    """Why there is none, in words."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A peer that is not on the chain."""

    peer: PeerId
    short_id: str
    name: str
    reason: str
    network_seconds_more: float | None
    """The time that the network of a step takes more with the peer in its best place in the chain, or less..."""
    compute_seconds_more: float | None
    """...and that at the peers. None: it does not fit into this chain without others that are not in it."""


@dataclass(frozen=True, slots=True)
class RoutesBoard:
    """Routes of one model, from this node."""

    hops: tuple[RouteHop, ...] = ()
    return_seconds: float | None = None
    """Without a chain this is None, as the next ones."""
    step_seconds: float | None = None
    exact: bool | None = None
    """The chain is proven to be the best..."""
    gap_seconds: float | None = None
    """...or another one may be done this much sooner; infinite: nothing is known."""
    failure: str = ""
    """Why there is no chain, in words."""
    alternatives: tuple[Alternative, ...] = ()
    not_chosen: tuple[PassedOver, ...] | None = ()
    """None: nobody has asked for these."""


def measured_hops(outcome: ProbeOutcome) -> dict[tuple[PeerId, int, int], tuple[float, float]]:
    """Queue and compute seconds of a probe's hops, by peer and blocks."""
    return {(hop.peer, hop.start, hop.stop): (hop.queue_seconds, hop.compute_seconds) for hop in outcome.hops}


def routes_board(
    sighting: Sighting,
    measured: Mapping[tuple[PeerId, int, int], tuple[float, float]],
    now: float,
    clock: Callable[[], float],
    *,
    explained: bool = True,
) -> RoutesBoard:
    """`measured`: by peer and blocks, queue and compute seconds of the last probe; `now` in Unix seconds.

    Without `explained` nothing is said of the peers that are not on the chain.
    `clock` bounds the searches, in seconds: each takes a part of what a client gives one, so this is for a thread.
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
        chain.gap_seconds == 0,
        chain.gap_seconds,
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
    """The chain that a client would get; or why there is none, in words."""
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
