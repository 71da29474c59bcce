"""The `[churn]` table of a scenario: which peers join, leave, crash or become slow, and when.

    [churn]                          # either rates per hour for the whole swarm (Poisson, from the seed) ...
    joins_per_hour = 2.0             # a newcomer equals a random server of the cluster: same hardware, same place
    leaves_per_hour = 1.0            # a random peer drains, then goes
    crashes_per_hour = 1.0           # a random peer is gone at once; noticed at once
    slowdowns_per_hour = 1.0         # a random peer computes slow_factor times slower for slow_seconds
    slow_factor = 4.0
    slow_seconds = 600.0
    after_seconds = 3600.0           # the rates hold until this time after the last arrival
    drain_seconds = 120.0            # a leaving peer takes no new sessions; what still runs then is handed over
    refresh_seconds = 20.0           # the announced cost of a peer follows its true speed after this time

    [[churn.events]]                 # ... or a list of events, in any order
    at_seconds = 30.0
    kind = "crash"                   # "join", "leave", "crash" or "slow"
    server = 3                       # who; servers count from 0, newcomers follow in order of joining
    #                                  (for "join": whose hardware and place the newcomer has)
    # factor, duration_seconds       for "slow"
    # blocks = "12:20"               for "join": a fixed range; without it the re-planning rule places the newcomer

A join's time is when the newcomer begins to serve: loading came before.  Peers that are there already are not moved.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from ...papers.instances import Field
from ...swarm import BlockRange
from ...timing import DRAIN_SECONDS, RECORD_REFRESH_SECONDS

_MOST_EVENTS = 10_000
_SECONDS_RANGE = (0.0, 1e10)
_MOST_PER_HOUR = 1e6
_MOST_FACTOR = 1e6


class Kind(enum.Enum):
    """The kinds of events in a peer's life."""

    JOIN = "join"
    LEAVE = "leave"
    CRASH = "crash"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class ChurnEvent:
    """One event; `server` None: one of those that it can happen to, `pick` in [0, 1) says which."""

    at_seconds: float
    kind: Kind
    server: int | None = None
    pick: float = 0.0
    factor: float = 1.0
    duration_seconds: float = 0.0
    blocks: BlockRange | None = None


@dataclass(frozen=True, slots=True)
class ChurnSpec:
    """The `[churn]` table; rates per hour."""

    rates: tuple[tuple[Kind, float], ...] = ()
    events: tuple[ChurnEvent, ...] = ()
    slow_factor: float = 4.0
    slow_seconds: float = 600.0
    after_seconds: float = 3600.0
    drain_seconds: float = DRAIN_SECONDS
    refresh_seconds: float = RECORD_REFRESH_SECONDS

    def draw(self, last_arrival_seconds: float, rng: np.random.Generator) -> tuple[ChurnEvent, ...]:
        """The events of one run in order of time: the listed ones, or Poisson processes.

        Raises ValueError if the rates make too many.
        """
        drawn = list(self.events)
        end = last_arrival_seconds + self.after_seconds
        expected = sum(per_hour for _, per_hour in self.rates) * end / 3600.0
        if expected > _MOST_EVENTS:
            raise ValueError(f"the rates make about {expected:.0f} events, more than {_MOST_EVENTS}")
        for kind, per_hour in self.rates:
            count = int(rng.poisson(per_hour * end / 3600.0))
            for at, pick in zip(rng.uniform(0.0, end, count).tolist(), rng.random(count).tolist(), strict=True):
                drawn.append(ChurnEvent(at, kind, None, pick, self.slow_factor, self.slow_seconds))
        return tuple(sorted(drawn, key=lambda event: event.at_seconds))


def read_churn(field: Field, servers: int, num_blocks: int) -> ChurnSpec | None:
    """Read and check the table; None if nothing ever happens. Raises InstanceError naming the file and the field."""
    rate_keys = {f"{name}_per_hour": kind for name, kind in _RATES.items()}
    numbers = {
        "slow_factor": (1.0, _MOST_FACTOR),
        "slow_seconds": _SECONDS_RANGE,
        "after_seconds": _SECONDS_RANGE,
        "drain_seconds": _SECONDS_RANGE,
        "refresh_seconds": _SECONDS_RANGE,
    }
    field.keys((), {*rate_keys, *numbers, "events"})
    given = {
        key: field.child(key).number(low, high)
        for key, (low, high) in numbers.items()
        if field.child(key).value is not None
    }
    rates = [
        (kind, field.child(key).number(0, _MOST_PER_HOUR))
        for key, kind in rate_keys.items()
        if field.child(key).value is not None
    ]
    rates = [(kind, rate) for kind, rate in rates if rate > 0]
    events = field.child("events")
    listed = _events(events, servers, num_blocks) if events.value is not None else ()
    if rates and listed:
        raise events.error("give either rates or a list of events")
    if not rates and not listed:
        return None
    return ChurnSpec(rates=tuple(rates), events=listed, **given)


_RATES = {"joins": Kind.JOIN, "leaves": Kind.LEAVE, "crashes": Kind.CRASH, "slowdowns": Kind.SLOW}


def _events(field: Field, servers: int, num_blocks: int) -> tuple[ChurnEvent, ...]:
    """The list, in order of time; every event must find its server there."""
    items = field.items(most=_MOST_EVENTS)
    read = sorted(((_event(item, num_blocks), item) for item in items), key=lambda pair: pair[0].at_seconds)
    there, known = set(range(servers)), servers
    left: set[int] = set()
    for event, item in read:
        assert event.server is not None
        if event.kind is Kind.JOIN:
            if event.server >= servers:
                raise item.child("server").error(f"must be one of the {servers} servers that the cluster starts with")
            there.add(known)
            known += 1
        elif event.server not in there or (event.kind is Kind.LEAVE and event.server in left):
            raise item.child("server").error(f"there is no server {event.server} at {event.at_seconds:g} s")
        elif event.kind is Kind.CRASH:
            there.remove(event.server)
        elif event.kind is Kind.LEAVE:
            left.add(event.server)
    return tuple(event for event, _ in read)


def _event(field: Field, num_blocks: int) -> ChurnEvent:
    field.keys({"at_seconds", "kind", "server"}, {"factor", "duration_seconds", "blocks"})
    names = [kind.value for kind in Kind]
    if field.child("kind").value not in names:
        raise field.child("kind").error(f"{field.child('kind').value!r} is not one of {', '.join(names)}")
    kind = Kind(field.child("kind").value)
    allowed = {Kind.SLOW: {"factor", "duration_seconds"}, Kind.JOIN: {"blocks"}}.get(kind, set())
    for key in ("factor", "duration_seconds", "blocks"):
        if field.child(key).value is not None and key not in allowed:
            raise field.child(key).error(f'has no meaning for "{kind.value}"')
    slow = kind is Kind.SLOW
    return ChurnEvent(
        at_seconds=field.child("at_seconds").number(*_SECONDS_RANGE),
        kind=kind,
        server=field.child("server").integer(0, 10**6),
        factor=field.child("factor").number(1, _MOST_FACTOR) if slow else 1.0,
        duration_seconds=field.child("duration_seconds").number(*_SECONDS_RANGE) if slow else 0.0,
        blocks=_blocks(field.child("blocks"), num_blocks) if field.child("blocks").value is not None else None,
    )


def _blocks(field: Field, num_blocks: int) -> BlockRange:
    try:
        blocks = BlockRange.parse(field.text())
    except ValueError as error:
        raise field.error(str(error)) from error
    if blocks.stop > num_blocks:
        raise field.error(f"{blocks} ends after the model's {num_blocks} blocks")
    return blocks
