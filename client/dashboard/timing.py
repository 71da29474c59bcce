"""The dashboard's time-outs and pauses, in one value that is injected. All are in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DashboardTiming:
    """The time-outs and pauses of one dashboard."""

    look_pause: float = 15.0
    """Pause between two looks at a swarm."""
    retry_pause: float = 5.0
    """Pause after a look that failed."""
    stale: float = 60.0
    """A look older than this counts as stale."""
    probe_pause: float = 60.0
    """Interval from the start of one probe to that of the next."""
    probe_stale: float = 180.0
    """A probe older than this says nothing about the present."""
    measured: float = 900.0
    """How long a peer's measured time is shown after the last probe through it."""
    probe: float = 60.0
    """Time-out of a probe."""
    open_model: float = 3600.0
    """Time-out for reading a model's files; the first time all of them are read."""
    count_pause: float = 60.0
    """Interval between two entries of the history that count peers and blocks."""
    keep_history: float = 30 * 86400.0
    """Age at which an entry of the history is deleted."""
    prune_pause: float = 3600.0
    """Interval between two deletions of old entries."""
    read_history: float = 5.0
    """How long a page waits for its history."""
    fresh_page: float = 5.0
    """A page older than this is rendered again, which bounds the error of the ages on it."""
    stream_pause: float = 1.0
    """Shortest time between two events of a stream."""
    stream_idle: float = 15.0
    """A stream without events sends a comment after this time, to show that it is alive."""
    export: float = 120.0
    """Time-out of an export for seeing, and probing, all models."""
    head: float = 15.0
    """Time-out for a request's head."""
    send: float = 30.0
    """A client that reads nothing for this long is taken as gone."""
    stop: float = 1.0
    """How long running answers have when the program stops."""
