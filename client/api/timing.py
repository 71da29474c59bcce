"""How long the endpoint waits for its clients, in one value that is injected. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndpointTiming:
    """The waits of one endpoint."""

    body_seconds: float = 30.0
    """Time-out for a request's head, and for its body."""
    send_seconds: float = 60.0
    """A client that reads nothing for this long is taken as gone."""
    stop_seconds: float = 2.0
    """How long running answers have to report that the endpoint stops."""
