"""The phases of a chain, and which may follow which.

    resting     -> away, choosing, connecting, moving, reserving, running
    choosing    -> away, connecting, looking, pausing, reserving
    looking     -> choosing
    pausing     -> choosing, looking
    reserving   -> away, choosing, connecting, pausing, resting
    connecting  -> away, choosing, connecting, rebuilding, resting
    rebuilding  -> away, choosing, connecting, rebuilding, resting
    running     -> away, choosing, connecting, examining, moving, reserving, resting
    examining   -> away, choosing, connecting, running
    away        -> choosing, connecting, examining, looking, running
    moving      -> away, choosing, connecting, resting

Every phase may end.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Phase(enum.Enum):
    """The machine's current activity."""

    RESTING = "resting"  # nothing is under way
    CHOOSING = "choosing"  # the router fills gaps
    LOOKING = "looking"  # the view of the swarm is refreshed
    PAUSING = "pausing"  # a pause before the next attempt
    RESERVING = "reserving"  # new hops are opened one by one, waiting for room
    CONNECTING = "connecting"  # hops are told their neighbours in a new epoch
    REBUILDING = "rebuilding"  # new hops get their caches by a replay
    RUNNING = "running"  # steps are under way
    EXAMINING = "examining"  # an answer is late: peers are probed
    AWAY = "away"  # no peer answers: it may be this machine's network
    MOVING = "moving"  # steps wait for the last part of a cache that moves to a replacement
    ENDED = "ended"


_P = Phase
TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    _P.RESTING: frozenset({_P.RUNNING, _P.CHOOSING, _P.CONNECTING, _P.MOVING, _P.RESERVING, _P.AWAY}),
    _P.CHOOSING: frozenset({_P.RESERVING, _P.CONNECTING, _P.LOOKING, _P.PAUSING, _P.AWAY}),
    _P.LOOKING: frozenset({_P.CHOOSING}),
    _P.PAUSING: frozenset({_P.CHOOSING, _P.LOOKING}),
    _P.RESERVING: frozenset({_P.RESTING, _P.CONNECTING, _P.CHOOSING, _P.PAUSING, _P.AWAY}),
    _P.CONNECTING: frozenset({_P.RESTING, _P.REBUILDING, _P.CONNECTING, _P.CHOOSING, _P.AWAY}),
    _P.REBUILDING: frozenset({_P.RESTING, _P.REBUILDING, _P.CONNECTING, _P.CHOOSING, _P.AWAY}),
    _P.RUNNING: frozenset({_P.RESTING, _P.EXAMINING, _P.MOVING, _P.RESERVING, _P.CONNECTING, _P.CHOOSING, _P.AWAY}),
    _P.EXAMINING: frozenset({_P.RUNNING, _P.CONNECTING, _P.CHOOSING, _P.AWAY}),
    _P.AWAY: frozenset({_P.RUNNING, _P.EXAMINING, _P.CONNECTING, _P.CHOOSING, _P.LOOKING}),
    _P.MOVING: frozenset({_P.RESTING, _P.CONNECTING, _P.CHOOSING, _P.AWAY}),
    _P.ENDED: frozenset(),
}
"""Which phase may follow which; every phase may end."""


WHOLE_CHAIN = frozenset({Phase.RUNNING, Phase.EXAMINING, Phase.AWAY})
"""The phases in which answers are accepted: the chain is whole and connected."""


def describe_transitions() -> str:
    """Return the table as text: a line for each phase, with those that may follow it."""
    return "\n".join(
        f"{phase.value:11} -> {', '.join(sorted(after.value for after in following))}"
        for phase, following in TRANSITIONS.items()
        if following
    )
