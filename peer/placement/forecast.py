"""The predicted gain of a move and, some time later, its outcome; for the log."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...routing.outlook import outlook_of, with_peer_at
from ...routing.place.moves import ReplanPolicy
from ...routing.swarm import BlockRange, PeerId, Swarm


@dataclass(frozen=True, slots=True)
class Forecast:
    """The prediction made with a claim; times are infinite if no chain is complete."""

    at_seconds: float
    blocks: BlockRange
    seconds_before: float
    """Mean time of the planned request beside the number of others that is planned for."""
    seconds_after: float
    uncovered_before: int
    """The number of blocks that nobody serves."""
    uncovered_after: int

    def __str__(self) -> str:
        parts = []
        if self.uncovered_before:
            parts.append(f"blocks without a server {self.uncovered_before} -> {self.uncovered_after}")
        parts.append(f"a request takes {_seconds(self.seconds_before)} -> {_seconds(self.seconds_after)}")
        return ", ".join(parts)


def forecast_of(swarm: Swarm, peer: PeerId, blocks: BlockRange, policy: ReplanPolicy) -> Forecast:
    """Predict the swarm if the peer serves these blocks instead of its present ones and nothing else changes."""
    before, after = outlook_of(swarm, policy), outlook_of(with_peer_at(swarm, peer, blocks), policy)
    return Forecast(
        at_seconds=swarm.now_seconds,
        blocks=blocks,
        seconds_before=before.request_seconds if before else math.inf,
        seconds_after=after.request_seconds if after else math.inf,
        uncovered_before=len(before.uncovered) if before else swarm.model.num_blocks,
        uncovered_after=len(after.uncovered) if after else swarm.model.num_blocks,
    )


def outcome(forecast: Forecast, swarm: Swarm, policy: ReplanPolicy) -> str:
    """Describe the outcome of a move in one line, by a snapshot of the present swarm."""
    now = outlook_of(swarm, policy)
    seconds = now.request_seconds if now else math.inf
    return (
        f"{swarm.now_seconds - forecast.at_seconds:.0f} s after the claim to blocks {forecast.blocks}: a request takes"
        f" {_seconds(seconds)} by the costs announced now; {_seconds(forecast.seconds_after)} was predicted, and"
        f" it was {_seconds(forecast.seconds_before)} before"
    )


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if math.isfinite(value) else "for ever"
