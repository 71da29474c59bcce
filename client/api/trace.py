"""Describes how an answer was made, in headers and in the last event of a stream: chain, times, repairs, precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import SessionEvent
from ..program.account import REPAIRS
from ..report import ChainReport, GuessReport, HopReport

MAX_EVENTS = 64
"""If a request has more repairs, only the first ones are listed; all are counted."""


@dataclass(frozen=True, slots=True)
class Timings:
    """The times of one request in seconds, as this endpoint measured them."""

    queue: float
    """The wait for a slot (see `Gate`)."""
    first_token: float
    """From getting the slot to the first token."""
    total: float
    """From getting the slot to the end."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One answered request."""

    report: ChainReport
    events: tuple[SessionEvent, ...]
    timings: Timings
    tokens: int
    guesses: GuessReport
    head: str = "float32"
    """The numeric format of the endpoint's head."""

    @property
    def repairs(self) -> tuple[SessionEvent, ...]:
        return tuple(event for event in self.events if event.kind in REPAIRS)

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 if there are no further tokens."""
        rest = self.timings.total - self.timings.first_token
        return (self.tokens - 1) / rest if rest > 0 and self.tokens > 1 else 0.0

    @property
    def precision(self) -> str:
        """The numeric formats along the chain, each once, and int8 if the head is rounded to it."""
        formats = [hop.numeric_format for hop in self.report.hops if hop.numeric_format]
        return ",".join(dict.fromkeys([*formats, *(["int8"] if self.head == "int8" else [])]))

    def headers(self) -> dict[str, str]:
        """Return `Server-Timing`, and headers for what does not fit into it."""
        chain = ",".join(f"{peer}[{blocks}]" for peer, blocks in self.report.chain)
        return {
            "Server-Timing": ", ".join(self._server_timing()),
            "x-swarm-chain": chain,
            "x-swarm-repairs": str(len(self.repairs)),
            "x-swarm-precision": self.precision,
            "x-swarm-head": self.head,
            "x-swarm-trips": str(self.guesses.trips),
            "x-swarm-tokens-per-trip": f"{self.guesses.tokens_per_trip(self.tokens):.2f}",
            "x-swarm-guess-steps": str(self.guesses.guess_steps),
            "x-swarm-guesses": ",".join(f"{each.drafter}={each.right}/{each.guessed}" for each in self.guesses.drafts),
        }

    def _server_timing(self) -> list[str]:
        times = [("queue", self.timings.queue), ("first", self.timings.first_token), ("total", self.timings.total)]
        for index, hop in enumerate(self.report.hops):
            times += [
                (f"hop{index}-network", hop.network_seconds),
                (f"hop{index}-queue", hop.queue_seconds),
                (f"hop{index}-compute", hop.compute_seconds),
            ]
        if self.report.hops:
            times += [("return", self.report.return_seconds), ("step", self.report.step_seconds)]
        return [f"{name};dur={1000 * seconds:.2f}" for name, seconds in times]

    def as_json(self) -> dict[str, Any]:
        hops = {hop.peer: hop for hop in self.report.hops}
        return {
            "chain": [
                {"peer": peer, "blocks": [blocks.start, blocks.stop], **_hop(hops.get(peer))}
                for peer, blocks in self.report.chain
            ],
            "return_seconds": self.report.return_seconds,
            "step_seconds": self.report.step_seconds,
            "steps": self.report.steps,
            "queue_seconds": self.timings.queue,
            "first_token_seconds": self.timings.first_token,
            "seconds": self.timings.total,
            "tokens_per_second": self.tokens_per_second,
            "precision": self.precision,
            "head": self.head,
            "repair_count": len(self.repairs),
            "repairs": [told_event(event) for event in self.repairs[:MAX_EVENTS]],
            "guesses": self.guesses.as_json(self.tokens),
        }


def _hop(hop: HopReport | None) -> dict[str, Any]:
    if hop is None:
        return {}
    return {
        "network_seconds": hop.network_seconds,
        "queue_seconds": hop.queue_seconds,
        "compute_seconds": hop.compute_seconds,
        "format": hop.numeric_format,
        "weights": hop.weights.value,
    }


def told_event(event: SessionEvent) -> dict[str, Any]:
    """Return a repair as clients see it; `detail`, which may have text from peers, is left out."""
    return {"kind": event.kind, "peer": event.peer}
