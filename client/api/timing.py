"""How long the endpoint waits for its clients, in one value that is injected. All are seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndpointTiming:
    """The waits of one endpoint."""

    body_seconds: float = 30.0
    """A request's body has come within this time."""
    send_seconds: float = 60.0
    """A client that takes nothing for this long is gone."""
    stop_seconds: float = 2.0
    """How long answers that are under way have to say that the endpoint ends."""
