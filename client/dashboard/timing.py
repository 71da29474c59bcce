"""How long the dashboard waits for what, in one value that is injected. All are seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DashboardTiming:
    """The waits of one dashboard."""

    look_pause: float = 15.0
    """Pause between two looks at a swarm."""
    retry_pause: float = 5.0
    """The same after a look that failed."""
    stale: float = 60.0
    """A look that ended longer ago than this is shown as old."""
    probe_pause: float = 60.0
    """From the beginning of one probe to that of the next."""
    probe_stale: float = 180.0
    """A probe that ended longer ago than this says nothing of now."""
    measured: float = 900.0
    """A peer's measured time is shown for this time after the last probe through it."""
    probe: float = 60.0
    """A probe has ended within this time, or has failed."""
    open_model: float = 3600.0
    """The files of a model have been read within this time; the first time all of them are."""
    count_pause: float = 60.0
    """Between two entries of the history that count peers and blocks."""
    keep_history: float = 30 * 86400.0
    """Age at which an entry of the history goes."""
    prune_pause: float = 3600.0
    """Between two times at which old entries go."""
    read_history: float = 5.0
    """A page waits this long for its history."""
    fresh_page: float = 5.0
    """A page that was made longer ago than this is made again, so that the ages on it are right to this."""
    stream_pause: float = 1.0
    """Shortest time between two events of a stream."""
    stream_idle: float = 15.0
    """A stream without events says after this time that it is there."""
    export: float = 120.0
    """All models have been seen, and probed, within this time."""
    head: float = 15.0
    """A request's head has come within this time."""
    send: float = 30.0
    """A client that takes nothing for this long is gone."""
    stop: float = 1.0
    """How long answers that are under way have when the program ends."""
