"""A route from a snapshot in one call, for tests that ask each snapshot once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from blockswarm.routing.route.budget import UNLIMITED, Meter
from blockswarm.routing.route.router import RouteFinder, RouteQuery
from blockswarm.routing.rtt import RttTable
from blockswarm.routing.swarm import BlockRange, PeerId, RequestSpec, Route, Swarm


def query_of(
    finder: RouteFinder, request: RequestSpec, excluded: Collection[PeerId] = (), **fields: object
) -> RouteQuery:
    """A query of the whole model for which all peers may be used, unless `fields` say otherwise."""
    defaults = {
        "blocks": BlockRange(0, finder.swarm.model.num_blocks),
        "usable": np.array([peer.id not in excluded for peer in finder.peers], dtype=bool),
        "now_seconds": finder.swarm.now_seconds,
    }
    return RouteQuery(request, **{**defaults, **fields})  # type: ignore[arg-type]


def cheapest_route(
    swarm: Swarm,
    *,
    request: RequestSpec,
    client_rtt_seconds: Mapping[PeerId, float],
    peer_rtt_seconds: RttTable | Callable[[PeerId, PeerId], float],
    push: bool = True,
    meter: Meter = UNLIMITED,
    **fields: object,
) -> Route:
    """The cheapest route of a snapshot; `fields` of the query."""
    finder = RouteFinder(swarm, client_rtt_seconds, peer_rtt_seconds if push else None)
    return finder.cheapest_route(query_of(finder, request, **fields), meter)
