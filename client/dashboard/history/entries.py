"""The values that the history stores, and those that it returns."""

from __future__ import annotations

from dataclasses import dataclass

OUTAGE = ("unseen", "seen")
GAP = ("incomplete", "complete")
PROBING = ("probe-failed", "probe-works")
"""Kinds of events that follow each other: the newest one in the history holds until there is another one."""


@dataclass(frozen=True, slots=True)
class ProbeEntry:
    """One probe of one model."""

    model: str
    """The id of the model, as in the URLs of pages."""
    at_seconds: float
    """Unix time at which it ended."""
    code: str
    """"" if it worked."""
    seconds: float
    first_token_seconds: float | None
    tokens_per_second: float | None
    repairs: int


@dataclass(frozen=True, slots=True)
class CountEntry:
    """The counts of a look, stored once a minute."""

    model: str
    at_seconds: float
    serving: int
    others: int
    silent: int
    missing_blocks: int
    weakest_servers: int
    free_sessions: int


@dataclass(frozen=True, slots=True)
class EventEntry:
    """Something that happened in a swarm."""

    model: str
    at_seconds: float
    kind: str
    """"joined", "left", "silent", "answers", "restarted", "state", "moved", "claims", "incomplete", "complete",
    "unseen", "seen", "probe-failed", "probe-works", "failover" or "more"."""
    peer: str
    """The peer's id; "" if the event concerns the whole swarm."""
    name: str
    """The peer's name, by its own account."""
    detail: str
    """A description in this program's words."""


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """An event with its number; numbers increase, also across restarts."""

    number: int
    event: EventEntry


@dataclass(frozen=True, slots=True)
class Bucket:
    """The history of one model in one interval of time. None: nothing is known of it."""

    begins_at: float
    """Unix time."""
    probes: int
    good_probes: int
    tokens_per_second: float | None
    """The mean over the successful probes, like `first_token_seconds`."""
    first_token_seconds: float | None
    repairs: int
    peers: float | None
    """The mean number of serving peers."""

    @property
    def availability(self) -> float | None:
        """The share of probes that worked."""
        return self.good_probes / self.probes if self.probes else None


@dataclass(frozen=True, slots=True)
class Availability:
    """How many of the probes in a period have worked."""

    good: int
    probes: int
    since: float
    """Unix time of the first of them."""

    @property
    def share(self) -> float:
        return self.good / self.probes
