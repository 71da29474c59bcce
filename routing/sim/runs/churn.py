"""Churn in numbers: the events of a run, the report of their effects, and the model with all newcomers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...papers.instances import Instance
from ...perf import IntArray, PerfModel
from ..worlds.churn_table import ChurnEvent
from .progress import Prefill


@dataclass(frozen=True)
class Churn:
    """The events of one run, and the time of a rebuild on the servers that the run begins with."""

    events: tuple[ChurnEvent, ...]
    """In order of time."""
    prompt_tokens: tuple[int, ...]
    """By kind of request."""
    prefill: Prefill
    drain_seconds: float
    refresh_seconds: float


@dataclass(frozen=True, slots=True)
class ChurnReport:
    """The events and their cost, over all runs of a scenario."""

    joins: int = 0
    leaves: int = 0
    crashes: int = 0
    slowdowns: int = 0
    interrupted_requests: int = 0
    """Requests that lost a peer by a crash while they ran."""
    repairs: int = 0
    """Resumptions that kept at least one hop's cache."""
    restarts: int = 0
    """Resumptions that had to rebuild every hop."""
    handovers: int = 0
    """Interruptions because a draining peer went; resumed like the others."""
    unserved_requests: int = 0
    repair_seconds: tuple[float, ...] = ()
    """Per resumption: waiting for room, rebuilding lost caches, and the step that was begun in vain."""

    @property
    def mean_repair_seconds(self) -> float | None:
        return math.fsum(self.repair_seconds) / len(self.repair_seconds) if self.repair_seconds else None

    @property
    def p95_repair_seconds(self) -> float | None:
        return float(np.quantile(self.repair_seconds, 0.95)) if self.repair_seconds else None

    def plus(self, other: ChurnReport) -> ChurnReport:
        """Both together."""
        return ChurnReport(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


def server_of(event: ChurnEvent, among: Sequence[int]) -> int | None:
    """The event's server: the one that it names, or its pick."""
    if event.server is not None or not among:
        return event.server
    return among[int(event.pick * len(among))]


def columns(model: PerfModel, peers: IntArray) -> PerfModel:
    """The model of these peers, (k,) indices, in their order."""
    return replace(
        model,
        memory_bytes=model.memory_bytes[peers],
        block_limit=model.block_limit[peers],
        decode_seconds=model.decode_seconds[peers],
        prefill_seconds=model.prefill_seconds[peers],
        rtt_seconds=model.rtt_seconds[:, peers],
        prefill_rtt_seconds=model.prefill_rtt_seconds[:, peers],
    )


def expanded(instance: Instance, origin: IntArray) -> Instance:
    """The instance with all peers that will ever join."""
    if len(origin) == instance.model.num_peers:
        return instance
    kinds = tuple(replace(kind, model=columns(kind.model, origin)) for kind in instance.kinds)
    return replace(instance, model=columns(instance.model, origin), kinds=kinds)
